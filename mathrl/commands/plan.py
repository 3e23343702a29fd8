"""``mathrl plan``: what a recipe takes of a GPU's memory, as a table, and the budgets that would fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from cyclopts import App, Parameter

from mathrl.commands.recipe_fields import Overrides, takes_fields
from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.memory.compiling import compiling
from mathrl.memory.plan import GIB, MemoryPlan, make_plan, of_one_rank
from mathrl.memory.shapes import known_shape, load_shape
from mathrl.recipes import find_recipe

_ASSUMED = {"max_prompt_tokens": 512, "max_completion_tokens": 1024}  # where a recipe leaves them open
_SHOWN = (
    "model.path",
    "rollout.problems_per_step",
    "rollout.group_size",
    "rollout.max_completion_tokens",
    "update.micro_batch_tokens",
)


@takes_fields(*_SHOWN)
def _plan(
    recipe: Annotated[
        str, Parameter(name="RECIPE", help="name of a recipe, or a TOML file", show_default=False)
    ] = "",
    /,
    *,
    gpu_memory_gib: Annotated[
        float, Parameter(help="default: the memory of the CUDA device here", show_default=False)
    ] = 0.0,
    gpus: Annotated[
        int, Parameter(help="GPUs that share a step; the table is of one", show_default=False)
    ] = 1,
    overrides: Overrides,
) -> int:
    """Print the table; 0 if the recipe fits, 1 if not."""
    if gpus < 1:
        raise UserError(f"--gpus must be at least 1, got {gpus}")
    config, assumed = _with_limits(of_one_rank(find_recipe(recipe, overrides), gpus))
    size = gpu_memory_gib * GIB
    if size < 0:
        raise UserError(f"--gpu-memory-gib must be positive, got {gpu_memory_gib:g}")
    if not size:
        import torch

        if not torch.cuda.is_available():
            raise UserError(
                "there is no CUDA device here: say how much memory yours has, --gpu-memory-gib 24"
            )
        size = torch.cuda.mem_get_info()[1]
    _check_names(config)
    shape = load_shape(config)
    itemsize, chosen = 4 if config.model.dtype == "float32" else 2, compiling(config, shape)
    plan = make_plan(config, shape, int(size), itemsize=itemsize, compiled=chosen.on)
    each = f", each of {gpus} GPUs: {config.rollout.problems_per_step} problems a step" if gpus > 1 else ""
    print(f"{config.recipe}: {shape.num_parameters / 1e6:.1f} M parameters{each}")
    print("\n".join(lines(plan, config)))
    print(f"training: {chosen}")
    if assumed:
        print(f"assumed: {assumed}; the recipe leaves them to the data and the model")
    return 0 if plan.fits else 1


def _check_names(config: Config) -> None:
    """A recipe that training would refuse for a name needs no table; problems and weights are not read.

    Raises:
        UserError: an algorithm, reward function, data set, answer type, extraction rule or model that is not
            there.
    """
    from mathrl.algorithms.table import resolve_algorithm
    from mathrl.data.hub import check_model
    from mathrl.data.rows import dataset_row, parts_of
    from mathrl.rewards.functions import load_functions
    from mathrl.rewards.scorer import check_extract_rule

    resolve_algorithm(config.algorithm, config.rollout, config.update)
    load_functions(config.reward)
    for data in [part for _, part, _ in parts_of(config.data)] or [config.data]:
        if data.source or data.path:
            dataset_row(data)
        elif data.extract:
            check_extract_rule(data.extract, "data.extract")
    if config.model.path and not known_shape(config.model.path):
        check_model(config.model.path)


def _with_limits(config: Config) -> tuple[Config, str]:
    """The recipe with the limits that it leaves open (0), and which these are in words."""
    assumed = {name: tokens for name, tokens in _ASSUMED.items() if getattr(config.rollout, name) == 0}
    rollout = config.rollout.model_copy(update=assumed)
    told = ", ".join(f"rollout.{name} {tokens}" for name, tokens in assumed.items())
    return config.model_copy(update={"rollout": rollout}), told


command = App(
    name="plan",
    help_epilogue="Any field of the recipe can be set, as in training.\n\n"
    "Example:\n  mathrl plan gsm8k --gpu-memory-gib 24 --update.micro_batch_tokens 8192",
    default_command=_plan,
)


def lines(plan: MemoryPlan, config: Config) -> Iterator[str]:
    """The table, then the picks."""
    for name, size in plan.rows.items():
        yield f"{name:<44} {size / GIB:8.2f} GiB"
    yield f"{'predicted peak':<44} {plan.total / GIB:8.2f} GiB of {plan.device_bytes / GIB:.1f} GiB"
    yield ""
    if plan.micro_batch_tokens:
        yield f"largest micro-batch: --update.micro_batch_tokens {plan.micro_batch_tokens}"
    else:
        yield "no micro-batch fits: --update.gradient_checkpointing true, fewer tokens, or a smaller model"
    share = plan.kv_cache_bytes / max(1, plan.kv_cache_wanted)
    yield (
        f"KV cache: {plan.kv_cache_bytes / GIB:.2f} GiB, {share:.0%} of what {plan.num_sequences} "
        "completions at once want" + ("" if share >= 1 else "; the others wait their turn")
    )
    if not plan.fits:
        yield (
            f"update.micro_batch_tokens {config.update.micro_batch_tokens} does not fit: "
            f"take --update.micro_batch_tokens {plan.micro_batch_tokens}"
            if plan.micro_batch_tokens
            else "the recipe does not fit on this device"
        )
