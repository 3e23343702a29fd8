"""Check a recipe before anything is written: a PreparedRun, or one sentence that says what is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mathrl.algorithms.table import Algorithm, resolve_algorithm
from mathrl.commands.going_on import check_folder
from mathrl.commands.model_source import check_reward_model_is_there
from mathrl.commands.settle import settle_demonstrations, settle_limits, settle_micro_batch
from mathrl.config import Config
from mathrl.data.few_shot import draw_examples, template_with_examples
from mathrl.data.hub import check_model
from mathrl.data.problem_set import ProblemSet, check_enough, keep_fitting
from mathrl.data.problems import Role, load_problems
from mathrl.data.prompts import PromptTemplate
from mathrl.errors import UserError
from mathrl.policy.loading import context_of, empty_model, load_tokenizer, stop_ids
from mathrl.policy.lora_targets import check_targets
from mathrl.policy.weight_files import check_weights
from mathrl.recipes import check_named
from mathrl.rewards.functions import RewardFunction, checked, load_functions
from mathrl.rewards.learned import check_reward_model
from mathrl.run.folder import RunFolder
from mathrl.run.tracking import check_trackers
from mathrl.training.given_adapter import check_adapter
from mathrl.training.sft import Demonstrations
from mathrl.types import Group, Problem

HELD_OUT: Role = "held_out"
SECOND_SET: Role = "held_out_templates"  # problems told in templates that were never trained on


AfterStep = Callable[[int, Mapping[str, float], Sequence[Group]], bool | None]
"""Called as (steps done, metrics, scored groups) after every step; False ends the run there."""


@dataclass(frozen=True)
class Additions:
    """What Python adds to a recipe: objects that no TOML file can hold."""

    reward_functions: Sequence[RewardFunction | Callable[..., Any]] = ()
    after_step: AfterStep | None = None


@dataclass(frozen=True)
class PreparedRun:
    """A checked recipe: what will run, on which problems, into which folder."""

    config: Config  # with all that was open settled
    asked: Config  # as it was asked for
    algorithm: Algorithm
    train: ProblemSet
    held_out: dict[str, ProblemSet]  # by name; "held_out" first
    demonstrations: Demonstrations | None  # None: the reference is made already
    shown: tuple[Problem, ...]  # worked examples before every question
    folder: RunFolder
    goes_on: bool  # a run that has begun in the folder
    reward_functions: tuple[RewardFunction, ...] = ()
    after_step: AfterStep | None = None
    called: bool = False  # from Python, where a call goes on and no command


def prepare(
    config: Config, *, resume: bool, overwrite: bool, additions: Additions | None = None
) -> PreparedRun:
    """Check everything that can be wrong; nothing is written.

    Raises:
        UserError: what is wrong, where, and what to do.
    """
    check_named(config)
    asked = config
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    config, folder, goes_on = check_folder(config, resume=resume, overwrite=overwrite)
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda' and there is no CUDA device here: use auto or cpu")
    called, additions = additions is not None, additions or Additions()
    _check_callback(additions.after_step)
    functions = checked([*load_functions(config.reward), *additions.reward_functions])
    if config.reward.learned:
        check_reward_model_is_there(config.reward.learned, "reward.model_path")
        check_reward_model(config.reward.learned, "reward.model_path")
    check_trackers(config.tracking)
    train = load_problems(config.data, "train", config.run.seed)
    shown, train = draw_examples(config.data, train, config.run.seed)
    held_out = _held_out_sets(config)
    _check_model(config)
    demonstrations = None
    if config.sft.skip or (goes_on and folder.reference.is_dir()):
        template = _template_of(config, shown, "" if config.sft.skip else str(folder.reference))
    else:
        config, demonstrations = settle_demonstrations(config, shown)
        template = demonstrations.template if demonstrations else _template_of(config, shown)
    stop_ids(template.tokenizer, config.model.stop_tokens)
    if config.lora.targets != "all-linear":
        check_targets(empty_model(config.model), config.lora)
    config = settle_limits(config, template, (train, *held_out.values()), context_of(config.model))
    config = settle_micro_batch(config)
    train = _fitting(config, template, train)
    held_out = {
        name: _fitting(config, template, problems, most=config.evaluate.num_problems)
        for name, problems in held_out.items()
    }
    check_enough(config.rollout.problems_per_step, train)
    return PreparedRun(
        config,
        asked,
        algorithm,
        train,
        held_out,
        demonstrations,
        shown,
        folder,
        goes_on,
        functions,
        additions.after_step,
        called,
    )


def _check_callback(after_step: AfterStep | None) -> None:
    """It is called after the first step, and that may be hours away."""
    if after_step is None:
        return
    try:
        inspect.signature(after_step).bind(1, {}, ())
    except TypeError as error:
        raise UserError(f"after_step must take (steps done, metrics, groups): {error}") from None
    except ValueError:  # a callable of C tells no parameters
        return


def _check_model(config: Config) -> None:
    """What a model's files can be refused for before they are read."""
    if config.model.path:
        check_model(config.model.path)
        check_weights(config.model.path)
        if config.model.adapter:
            check_adapter(config)


def _held_out_sets(config: Config) -> dict[str, ProblemSet]:
    """Those that the data have, by name."""
    found = {role: load_problems(config.data, role, config.run.seed) for role in (HELD_OUT, SECOND_SET)}
    return {role: problems for role, problems in found.items() if problems is not None}


def _template_of(config: Config, shown: Sequence[Problem], reference: str = "") -> PromptTemplate:
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(reference or config.model.path, trusted=trusted)
    return template_with_examples(config, tokenizer, shown)


def _fitting(
    config: Config, template: PromptTemplate, found: ProblemSet, most: int | None = None
) -> ProblemSet:
    """The first ``most`` problems (all: None), none with a prompt that is too long.

    Raises:
        UserError: a prompt is over ``rollout.max_prompt_tokens``, or so long that a completion leaves the
            model's context, and ``data.skip_long_prompts`` is not set; or no problem is left.
    """
    limit, completion = config.rollout.max_prompt_tokens, config.rollout.max_completion_tokens
    context = context_of(config.model)
    called = f"prompt over rollout.max_prompt_tokens {limit}"
    if context - completion < limit:
        called = f"prompt over the {context - completion} tokens that rollout.max_completion_tokens leaves"

    def against(length: int) -> str:
        if length > limit:
            return f"its prompt has {length} tokens, more than rollout.max_prompt_tokens {limit}"
        if length + completion > context:
            return (
                f"its prompt of {length} tokens and rollout.max_completion_tokens {completion} do not fit "
                f"the model's context of {context} tokens"
            )
        return ""

    reasons = (against(len(ids)) for ids in template.encode_all(found.problems))
    return keep_fitting(found, reasons, called=called, skip=config.data.skip_long_prompts, most=most)
