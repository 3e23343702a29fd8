"""TRL's GRPOTrainer on our run's reference, problems, prompts, reward and settings.

No gradient checkpointing and no importance correction, its fastest way. Its own vLLM answers the held-out
problems greedily every few steps; that time is left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mathrl.config import Config
from mathrl.data.prompts import make_template
from mathrl.data.rows import extract_rule
from mathrl.rewards.scorer import RewardScorer
from mathrl.run.files import write_json
from mathrl.types import Completion, Group, Problem

EVERY = 10  # steps between two looks at the held-out problems


def train(
    config: Config,
    reference: Path,
    problems: Sequence[Problem],
    held_out: Sequence[Problem],
    *,
    seconds: float,
    target: float,
    out: Path,
) -> None:
    """Train for so many seconds of steps or until ``target`` of the held-out problems are answered rightly.

    The curve of held-out accuracy over the seconds stands in ``out``, a JSON file, anew after every look.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    cuda = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(reference, padding_side="left")
    template = make_template(config, tokenizer)
    scorer = RewardScorer(config.reward, extract_rule(config.data))

    def judge(asked: list[Problem], texts: list[str]) -> list[float]:
        groups = [Group(p, (), (Completion((), t, "stop", None),)) for p, t in zip(asked, texts, strict=True)]
        return [group.rewards[0] for group in scorer.score(groups)]

    def reward(completions: list[str], index: list[int], **_: Any) -> list[float]:
        return judge([problems[i] for i in index], completions)

    rollout, lora = config.rollout, config.lora
    completions = rollout.problems_per_step * rollout.group_size
    size = min(32, completions)  # 256 rows took 96 GiB, and 64 beside two runs of ours what was left
    own: dict[str, Any] = {"use_cpu": True, "bf16": False}
    if cuda:
        own = {"use_vllm": True, "vllm_mode": "colocate", "vllm_importance_sampling_correction": False}
        own["vllm_gpu_memory_utilization"] = 0.12  # 17 GiB of an H200: other runs may share it
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            reference, dtype=torch.bfloat16 if cuda else torch.float32
        ),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(out.with_suffix("")),
            seed=config.run.seed,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=completions // size,
            num_generations=rollout.group_size,
            max_completion_length=rollout.max_completion_tokens,
            temperature=rollout.temperature,
            beta=config.algorithm.kl_coef or 0.0,
            learning_rate=config.update.learning_rate,
            lr_scheduler_type=config.update.schedule,
            warmup_steps=config.update.warmup_steps,
            loss_type="grpo",
            max_steps=config.train.num_steps,
            gradient_checkpointing=False,
            logging_steps=10**6,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **own,
        ),
        train_dataset=Dataset.from_dict(
            {"prompt": [template.text(p) for p in problems], "index": list(range(len(problems)))}
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora.rank, lora_alpha=int(lora.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )

    def accuracy() -> float:
        if not cuda:
            return 0.0  # trying the script only
        from vllm import SamplingParams

        trainer.vllm_generation.sync_weights()
        outputs = trainer.vllm_generation.llm.generate(
            [{"prompt_token_ids": list(template.encode(p))} for p in held_out],
            SamplingParams(temperature=0.0, max_tokens=rollout.max_completion_tokens),
            use_tqdm=False,
        )
        return sum(judge(held_out, [o.outputs[0].text for o in outputs])) / len(held_out)

    points: list[dict[str, float]] = []
    used, last = 0.0, 0.0

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal last
            if state.global_step == 0:
                points.append({"step": 0, "seconds": 0.0, "accuracy": accuracy()})
            last = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            nonlocal used
            if cuda:
                torch.cuda.synchronize()
            used += time.perf_counter() - last
            control.should_training_stop |= used > seconds  # it may stand already, for the last step
            if state.global_step % EVERY == 0 or control.should_training_stop:
                points.append({"step": state.global_step, "seconds": used, "accuracy": accuracy()})
                control.should_training_stop |= points[-1]["accuracy"] >= target
                write_json(out, {"curve": points, "seconds": used})
                print(points[-1], flush=True)

    trainer.add_callback(Watch())
    try:
        trainer.train()
    finally:
        scorer.close()
