"""Whether torch.compile pays in a run: what it gains over the steps to come against what it costs once.

It lies beside the plan of memory, which has to decide as the trainer does: compiled layers keep less for
their backward. What is gained are passes over memory between the matrix products. So it grows with the values
of a token, the layers' activations and its logits, L (D + F) + V, and not with the parameters: of three times
as many it gained hardly more.
"""

from __future__ import annotations

from dataclasses import dataclass

from mathrl.config import Config
from mathrl.memory.shapes import Shape

# Seconds a token and value. One H200, steps of 139,264 tokens with a reference pass, LoRA on all layers;
# forward and update as they are (scaleout.json, one GPU) and compiled (step_time_1_5b.json, step_time.md):
#   0.5B  2.69 s -> 1.34 s, 290,176 values: 3.3e-11        1.5B  4.52 s -> 3.09 s, 445,824 values: 2.3e-11
# The lower of the two, rounded down.
GAIN_S = 2.2e-11
COST_S = (
    90.0  # measured: 70 to 75 s of 24 layers, 90 of 28, which share their code; with the disk's cache cold
)
CLEARLY = 2.0  # times the cost: so much must be gained
OF_LIMITS = 0.5  # prompts and completions are about half as long as they may be
OF_STEP = 0.2  # of a step's seconds, which sampling shares: 1.4 of 6.7 at 1.5B, 1.35 of 4.1 at 0.5B


@dataclass(frozen=True, slots=True)
class Compiling:
    """What was decided, and why."""

    on: bool
    why: str  # "layers compiled, for …"

    def __str__(self) -> str:
        return f"layers {'compiled' if self.on else 'not compiled'}, for {self.why}"


def compiling(
    config: Config,
    shape: Shape | None,
    *,
    cuda: bool = True,
    steps_done: int = 0,
    seconds: float = 0.0,
) -> Compiling:
    """Whether the trainer compiles its layers and log-probabilities (``update.compile``).

    "auto" does where the steps to come gain clearly more than compiling costs. The gain of a step is
    ``GAIN_S`` · tokens · (L (D + F) + V); with ``train.max_seconds`` the number of steps is not known, and no
    more is gained than a part of the seconds that are left. Where the way is another one than the measured
    one, nothing is compiled.

    Args:
        config: the recipe of one rank, its limits settled.
        shape: of its model; None: not known.
        cuda: whether the trainer's device is one.
        steps_done: of the run so far.
        seconds: that these steps took.
    """
    told = config.update.compile
    if not cuda:
        return Compiling(False, "only CUDA has what compiling gains")
    if told != "auto":
        return Compiling(told, "update.compile says so")
    if shape is None:
        return Compiling(False, "the sizes of the model are not known")
    if hindrance := _hindrance(config, shape):
        return Compiling(False, hindrance)
    steps = max(0, config.train.num_steps - steps_done)
    gain, over = steps * seconds_gained(config, shape), f"{steps} steps"
    if config.train.max_seconds:
        left = max(0.0, config.train.max_seconds - seconds)
        if OF_STEP * left < gain:
            gain, over = OF_STEP * left, f"the {left:.0f} s that train.max_seconds leaves"
    if gain > CLEARLY * COST_S:
        return Compiling(True, f"that gains about {gain:.0f} s over {over} and takes about {COST_S:.0f}")
    short = f"less than {CLEARLY:g} times the {COST_S:.0f} that it takes"
    return Compiling(False, f"that would gain about {gain:.0f} s over {over}, {short}")


def seconds_gained(config: Config, shape: Shape) -> float:
    """Of a step, by compiled code, with prompts and completions of the expected length."""
    tokens = OF_LIMITS * config.rollout.problems_per_step * problem_tokens(config) * config.update.num_epochs
    values = shape.num_layers * (shape.hidden_size + shape.intermediate_size) + shape.vocab_size
    return GAIN_S * tokens * values


def problem_tokens(config: Config) -> int:
    """Tokens of a problem in the packed stream when its prompt and completions are as long as allowed."""
    rollout = config.rollout
    prompts = 1 if config.update.share_prompts else rollout.group_size
    return prompts * rollout.max_prompt_tokens + rollout.group_size * rollout.max_completion_tokens


def _hindrance(config: Config, shape: Shape) -> str:
    """Why the layers are not compiled, whatever it would gain; empty where nothing is in the way."""
    if shape.padded:
        return shape.padded
    if config.algorithm.name == "trpo":  # the table of algorithms would load torch for a plan
        return "a trust-region step differentiates twice, compiled layers only once"
    if config.update.gradient_checkpointing:
        return "what it gains with update.gradient_checkpointing has not been measured"
    if not config.update.fused_lora or config.lora.dropout > 0:
        knob = "lora.dropout" if config.update.fused_lora else "update.fused_lora false"
        return f"{knob} takes peft's own LoRA layers, and what compiling gains there has not been measured"
    return ""
