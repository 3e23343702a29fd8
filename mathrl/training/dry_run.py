"""The longest micro-batch that a recipe allows, forward and backward, before the first step.

What will not fit then fails in the first minute, with advice, and not at the first long rollout hours later.
A micro-batch that only halves of fit in is halved here already. And layers that torch cannot compile here are
noticed, for it compiles them when they are first called.
"""

from __future__ import annotations

import torch

from mathrl.algorithms.table import Algorithm
from mathrl.config import Config
from mathrl.errors import UserError, first_line
from mathrl.policy.model import Policy
from mathrl.training.annotate import annotate
from mathrl.training.batch import collate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import Meter
from mathrl.training.update import FirstOrder, Update
from mathrl.types import Batch, Completion, Group, Problem, Score


def longest_batch(config: Config, policy: Policy) -> Batch:
    """Groups as long as allowed: a micro-batch of them, or the whole step where that is less."""
    rollout, update = config.rollout, config.update
    context = getattr(policy.model.config, "max_position_embeddings", None) or 2**31
    length = min(rollout.max_completion_tokens, context - 1)
    prompt = max(1, min(rollout.max_prompt_tokens, context - length))
    size = prompt + rollout.group_size * length
    count = max(1, min(rollout.problems_per_step, -(-update.micro_batch_tokens // size)))
    completion = Completion((policy.eos_id,) * length, "", "length", (0.0,) * length)
    scores = (Score(0.0, "wrong"),) * rollout.group_size
    groups = [
        Group(
            Problem(f"dry run {i}", "", ""),
            (policy.eos_id,) * prompt,
            (completion,) * rollout.group_size,
            scores=scores,
        )
        for i in range(count)
    ]
    return collate(groups, policy.pad_id).to(policy.device)


def dry_step(
    config: Config, algorithm: Algorithm, policy: Policy, update: Update, parts: MicroBatches
) -> str:
    """Do a step's passes over ``longest_batch`` and forget their gradients; weights stay as they are.

    Where compiled passes fail they are made again uncompiled, whatever torch, its compiler or a kernel's
    launcher has raised: if these succeed, compiling was at fault, and the policy stays uncompiled.

    Args:
        parts: those of the steps to come: what does not fit is halved in them.

    Returns:
        That nothing is compiled any more and why, in a sentence; empty where all is as it was.

    Raises:
        UserError: not even one completion fits in memory; or ``update.compile`` is true and torch cannot.
    """
    of = (config, algorithm, policy, update, parts)
    failed = _why_compiled_fails(*of) if policy.compiled else ""
    if failed:
        policy.compile(False)
        _forget(policy)
    if not policy.compiled:
        _passes(*of)
    _forget(policy)
    if failed and config.update.compile is True:
        raise UserError(
            f"update.compile is true, and torch.compile fails here ({failed}): take --update.compile false, "
            "or auto, which goes on uncompiled"
        )
    return f"training: layers not compiled, for torch.compile fails here ({failed})" if failed else ""


def _why_compiled_fails(
    config: Config, algorithm: Algorithm, policy: Policy, update: Update, parts: MicroBatches
) -> str:
    """The passes; empty where they succeed, else the first line of what is at the bottom of the error."""
    try:
        _passes(config, algorithm, policy, update, parts)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - the same passes uncompiled tell whose fault it is
        cause: Exception = error
        while isinstance(inner := getattr(cause, "inner_exception", None), Exception):
            cause = inner
        return first_line(cause)
    return ""


def _forget(policy: Policy) -> None:
    """The gradients, and the memory that the passes took."""
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    if policy.device.type == "cuda":
        torch.cuda.empty_cache()


def _passes(
    config: Config, algorithm: Algorithm, policy: Policy, update: Update, parts: MicroBatches
) -> None:
    batch = longest_batch(config, policy)
    with torch.no_grad():
        batch = annotate(
            policy,
            batch,
            parts,
            old=algorithm.needs_old,
            reference=algorithm.needs_reference,
            values=algorithm.needs_values,
        )
        batch = algorithm.advantages(batch)
    if isinstance(update, FirstOrder):
        update.loss.backward(policy, batch, Meter())
