"""Which fields may differ when a run is resumed, and which must stay, each group with its reason.

A run that goes on ends as it would have without the interruption. So what its numbers rest on must be as it
was; what only says when it ends, what is measured beside it or how the same sums are computed may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mathrl.config import Config
from mathrl.recipes import differences

MAY_CHANGE: Mapping[str, tuple[str, ...]] = {
    "names": ("recipe", "description", "run.name", "run.output_dir"),
    "when a run ends; the schedule of the learning rate follows train.num_steps": (
        "train.num_steps",
        "train.max_seconds",
        "evaluate.early_stop_patience",
        "reward.function_timeout_s",
        "rollout.max_sync_gap",
    ),
    "what is kept and told of it": ("checkpoint", "tracking"),
    "looks change no step; before and after are measured alike, the first anew where it was otherwise": (
        "evaluate.num_problems",
        "evaluate.every_steps",
        "evaluate.every_num_problems",
        "evaluate.num_samples",
        "evaluate.temperature",
    ),
    "how the same work is cut and computed: memory and time, results but for rounding": (
        "run.num_threads",
        "reward.num_workers",
        "train.overlap",
        "update.micro_batch_tokens",
        "update.fused_lora",
        "update.compile",
        "update.share_prompts",
        "update.gradient_checkpointing",
        "rollout.gpu_memory_fraction",
        "rollout.max_sequences",
        "rollout.num_replicas",
        "rollout.compile_engine",
    ),
}
"""Reason -> fields, or whole sections, that a resumed run may have otherwise."""

MUST_STAY: Mapping[str, tuple[str, ...]] = {
    "every random choice derives from it": ("run.seed",),
    "another device or number type computes other numbers": ("run.device",),
    "the model, how it is asked, and the shape of what trains": ("model", "lora"),
    "the problems and their order; those held out": ("data",),
    "the reference would have been another one, and the folder says how it was made": ("sft",),
    "what is sampled": (
        "rollout.engine",
        "rollout.problems_per_step",
        "rollout.group_size",
        "rollout.max_prompt_tokens",
        "rollout.max_completion_tokens",
        "rollout.temperature",
        "rollout.top_p",
        "rollout.top_k",
        "rollout.merge_adapter",
    ),
    "what a completion earns; a verdict may hang on its limits": (
        "reward.correct",
        "reward.wrong",
        "reward.unparsed",
        "reward.no_answer",
        "reward.truncated",
        "reward.format",
        "reward.length",
        "reward.mask_truncated",
        "reward.functions",
        "reward.model_path",
        "reward.model_weight",
        "reward.timeout_s",
        "reward.memory_mb",
    ),
    "how it is learnt": (
        "algorithm",
        "reward_model",
        "update.learning_rate",
        "update.warmup_steps",
        "update.schedule",
        "update.weight_decay",
        "update.beta1",
        "update.beta2",
        "update.max_grad_norm",
        "update.num_epochs",
        "update.num_minibatches",
    ),
    "looks of one curve must have one limit": ("evaluate.max_completion_tokens",),
}
"""Reason -> fields, or whole sections, that must be as the run's folder has them."""


def decided(groups: Mapping[str, tuple[str, ...]], field: str) -> bool:
    """Whether a dotted field, or its section, stands in one of the groups."""
    return any(field in names or field.partition(".")[0] in names for names in groups.values())


def hindrances(config: Config, saved: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (saved value, value now) of the fields for which a run cannot go on as ``config``."""
    return {k: v for k, v in differences(config, saved).items() if not decided(MAY_CHANGE, k)}
