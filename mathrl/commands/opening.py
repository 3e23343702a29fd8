"""The first lines of a run: what was chosen, why, and what a step will cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import PurePath

import psutil
import torch

from mathrl.commands.prepare import PreparedRun
from mathrl.commands.settle import USUAL_COMPLETION
from mathrl.config import Config
from mathrl.distributed.environment import place
from mathrl.errors import UserError
from mathrl.memory.compiling import compiling
from mathrl.memory.plan import GIB, make_plan, of_one_rank
from mathrl.memory.shapes import Shape, load_shape
from mathrl.policy.loading import context_of, resolve_device, resolve_dtype
from mathrl.run.checkpoint import CheckpointStore
from mathrl.training.sft import planned_steps

_TIMED_FROM = 20_000_000  # parameters: of smaller models the products of matrices are not what takes time
_OF_PEAK = 0.3  # of the matrix product's rate: what sampling and training reach on a CPU


def opening(run: PreparedRun) -> Iterator[str]:
    """The lines, without a line break at their ends."""
    cfg = run.config
    yield f"{cfg.recipe}: {run.algorithm.name} on {run.train.name} → {run.folder.path}"
    device = resolve_device(cfg.run)
    try:
        shape: Shape | None = load_shape(cfg)
    except UserError:  # of an architecture that the plan does not know
        shape = None
    yield f"  model: {_model(cfg, shape, device)}"
    yield f"  first: {_supervised(run)}"
    yield f"  limits: {_limits(run)}"
    yield f"  a step: {_step(cfg, shape, device, _steps_done(run))}; {cfg.train.num_steps} steps"
    if place().world > 1:
        where = "the CPU" if device.type == "cpu" else "a GPU each"
        yield f"  ranks: {place().world} on {where}, each with its own engine and its share of the problems"
    if run.demonstrations:
        yield f"  solved: {run.demonstrations.train.describe()}"
    yield f"  asked: {run.train.describe()}"
    for problems in run.held_out.values():
        yield f"  held out: {problems.describe()}"


def _model(cfg: Config, shape: Shape | None, device: torch.device) -> str:
    name = PurePath(cfg.model.path).name if cfg.model.path else "built from nothing"
    if cfg.model.adapter:
        name += f" with {PurePath(cfg.model.adapter).name} merged into it"
    size = f", {shape.num_parameters / 1e6:,.1f} M parameters" if shape else ""
    dtype = str(resolve_dtype(cfg.model, device)).removeprefix("torch.")
    return f"{name}{size}, {dtype} on {device.type}, LoRA of rank {cfg.lora.rank}"


def _supervised(run: PreparedRun) -> str:
    cfg = run.config
    if run.demonstrations is not None:
        what = "an adapter, merged" if cfg.sft.lora else "all weights"
        steps = planned_steps(cfg.sft, run.demonstrations) + cfg.sft.direct_answer_steps
        return (
            f"a supervised stage of at most {steps} steps ({what}), for there are "
            f"{len(run.demonstrations.train)} worked solutions"
        )
    if run.folder.reference.is_dir():
        return "the reference is made already"
    return "no supervised stage: the model is trained as it is"


def _limits(run: PreparedRun) -> str:
    """The limits, and where they come from where the recipe left them open."""
    settled, asked = run.config.rollout, run.asked.rollout
    context = context_of(run.config.model)
    prompt = f"prompts of {settled.max_prompt_tokens} tokens"
    if not asked.max_prompt_tokens:
        prompt += " (the longest of the problems)"
    completion = f"completions of {settled.max_completion_tokens}"
    if not asked.max_completion_tokens:
        usual = settled.max_completion_tokens == USUAL_COMPLETION
        completion += " (the usual)" if usual else " (what the context leaves)"
    return f"{prompt}, {completion}; the model reads {context if context < 2**31 else 'any number'}"


def _steps_done(run: PreparedRun) -> int:
    return max(CheckpointStore(run.folder.checkpoints, run.config.checkpoint.keep_last).steps(), default=0)


def _step(cfg: Config, shape: Shape | None, device: torch.device, steps_done: int) -> str:
    rollout, update = cfg.rollout, cfg.update
    completions = rollout.problems_per_step * rollout.group_size
    updates = update.num_epochs * update.num_minibatches
    text = (
        f"{rollout.problems_per_step} problems × {rollout.group_size} completions = {completions} "
        f"completions, {updates} update{'s' * (updates > 1)} of {completions // update.num_minibatches} each"
    )
    tokens = (
        rollout.problems_per_step * rollout.max_prompt_tokens + completions * rollout.max_completion_tokens
    )
    text += f"; at most {tokens:,} tokens"
    if shape is None:
        return text
    text += f", {_memory(cfg, shape, device, steps_done)}"
    if device.type == "cpu" and shape.num_parameters >= _TIMED_FROM:
        text += f", at most about {_seconds(shape, tokens, reference=bool(cfg.algorithm.kl_coef)):,.0f} s"
    return text


def _memory(cfg: Config, shape: Shape, device: torch.device, steps_done: int) -> str:
    """What the plan says of the device's memory; of a CPU the same but for CUDA's own."""
    cuda = device.type == "cuda"
    size = torch.cuda.mem_get_info()[1] if cuda else psutil.virtual_memory().total
    itemsize = resolve_dtype(cfg.model, device).itemsize
    if not cuda:  # there the engine is the embedded one, with the trainer's own weights
        cfg = cfg.model_copy(update={"rollout": cfg.rollout.model_copy(update={"engine": "transformers"})})
    own = of_one_rank(cfg, place().world)
    compiled = compiling(own, shape, cuda=cuda, steps_done=steps_done).on
    rows = make_plan(own, shape, int(size), itemsize=itemsize, compiled=compiled).rows
    predicted = sum(rows.values()) if cuda else sum(v for name, v in rows.items() if "CUDA" not in name)
    return f"{predicted / GIB:.1f} of {size / GIB:.0f} GiB"


def _seconds(shape: Shape, tokens: int, *, reference: bool) -> float:
    """Seconds of a step on this CPU at most: 2 operations a parameter and token to sample, 4 to train, 2 for
    the reference, at a part of the rate that a matrix product reaches here now."""
    a = torch.randn(768, 768)
    torch.mm(a, a)
    start, turns = time.perf_counter(), 8
    for _ in range(turns):
        torch.mm(a, a)
    rate = turns * 2 * 768**3 / (time.perf_counter() - start)
    return (8 if reference else 6) * shape.num_parameters * tokens / (_OF_PEAK * rate)
