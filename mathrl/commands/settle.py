"""What a recipe leaves open is settled by the data and the model, before anything is written.

Open are limits that are 0, and whether there is a supervised stage for a model that is there already. The
run's folder holds what was settled; a run that goes on takes it from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psutil
import torch

from mathrl.commands.going_on import changed, may_skip, without_share
from mathrl.config import Config
from mathrl.data.problem_set import ProblemSet
from mathrl.data.problems import NoSolutions
from mathrl.data.prompts import PromptTemplate
from mathrl.distributed.environment import place
from mathrl.errors import UserError
from mathrl.memory.compiling import compiling
from mathrl.memory.plan import make_plan, of_one_rank
from mathrl.memory.shapes import load_shape
from mathrl.policy.loading import resolve_device, resolve_dtype
from mathrl.training.sft import Demonstrations, load_examples
from mathrl.types import Problem

USUAL_COMPLETION = 1024  # tokens: most worked solutions of school and competition problems end before
_LEAST_COMPLETION = 16
_CPU_MICRO_BATCH = 4096  # tokens; more gain nothing there
_LEAST_MICRO_BATCH = 1024  # tokens
_CPU_SHARE = 0.5  # of the machine's memory: others work on it, too


def settle_demonstrations(
    config: Config, shown: Sequence[Problem] = ()
) -> tuple[Config, Demonstrations | None]:
    """The worked solutions of the supervised stage; none, and no stage, where a model has no use for them.

    Raises:
        UserError: a model built from nothing, or ``sft.path``, without any worked solution.
    """
    try:
        return config, load_examples(config, shown)
    except NoSolutions:
        if not may_skip(config):
            raise
    return without_share(changed(config, sft={"skip": True})), None


def settle_limits(
    config: Config, template: PromptTemplate, sets: Iterable[ProblemSet], context: int
) -> Config:
    """Limits that are 0: the longest prompt, up to half of the context; 1,024 tokens, or what is left.

    Args:
        context: positions of the model, tokens.

    Raises:
        UserError: the context leaves no room for a completion.
    """
    rollout = config.rollout
    prompt, completion = rollout.max_prompt_tokens, rollout.max_completion_tokens
    if not prompt:
        longest = max(len(ids) for found in sets for ids in template.encode_all(found.problems))
        prompt = max(8, min(longest, context // 2))
    if not completion:
        completion = min(USUAL_COMPLETION, context - prompt)
        if completion < _LEAST_COMPLETION:
            raise UserError(
                f"the model's context of {context} tokens leaves {max(0, completion)} for a completion "
                f"beside rollout.max_prompt_tokens {prompt}: lower that, or take a model that reads more"
            )
    return changed(config, rollout={"max_prompt_tokens": prompt, "max_completion_tokens": completion})


def settle_micro_batch(config: Config) -> Config:
    """``update.micro_batch_tokens`` that is 0: the most that the plan sees room for, with settled limits.

    An architecture that the plan does not know gets the least that a device is worth; a step that runs out of
    memory halves it in any case.
    """
    if config.update.micro_batch_tokens:
        return config
    device = resolve_device(config.run)
    cuda = device.type == "cuda"
    size = torch.cuda.mem_get_info()[1] if cuda else _CPU_SHARE * psutil.virtual_memory().total
    try:
        shape = load_shape(config)
    except UserError:
        tokens = 0
    else:
        itemsize = resolve_dtype(config.model, device).itemsize
        own = of_one_rank(config, place().world)
        compiled = compiling(own, shape, cuda=cuda).on
        tokens = make_plan(own, shape, int(size), itemsize=itemsize, compiled=compiled).micro_batch_tokens
    tokens = max(_LEAST_MICRO_BATCH, tokens if cuda else min(tokens, _CPU_MICRO_BATCH))
    return changed(config, update={"micro_batch_tokens": tokens})
