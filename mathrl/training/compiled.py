"""Compiled layers from a run's first step on, where that pays over the steps that it has still to make."""

from __future__ import annotations

from mathrl.config import Config
from mathrl.distributed.environment import place
from mathrl.memory.compiling import compiling
from mathrl.memory.plan import of_one_rank
from mathrl.memory.shapes import Shape
from mathrl.policy.model import Policy


def compile_where_it_pays(config: Config, policy: Policy, steps_done: int, seconds: float) -> str:
    """What was chosen and why, in a sentence; empty where the recipe itself says true or false.

    Args:
        steps_done: of the run so far.
        seconds: that these took.
    """
    try:
        shape: Shape | None = Shape.of(policy.model.get_base_model().config)
    except AttributeError:
        shape = None
    cuda = policy.device.type == "cuda"
    own = of_one_rank(config, place().world)
    chosen = compiling(own, shape, cuda=cuda, steps_done=steps_done, seconds=seconds)
    if chosen.on != policy.compiled:
        policy.compile(chosen.on)
    return f"training: {chosen}" if config.update.compile == "auto" else ""
