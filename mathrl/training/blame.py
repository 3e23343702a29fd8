"""Whose fault a number that is not finite is: the weights', or some completions'."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from mathrl.errors import NonFiniteError
from mathrl.training.update_rule import Update
from mathrl.types import Group

if TYPE_CHECKING:
    from mathrl.policy.model import Policy

_MOST_NAMED = 8


def explain(
    error: NonFiniteError, policy: Policy, update: Update, groups: Sequence[Group], step: int
) -> NonFiniteError:
    """The error of a step's update in words: what is broken, and what to do.

    Args:
        groups: of the whole step, all ranks; their completions, in order, are what the error counts.
        step: counted from 1.
    """
    broken = broken_weights(policy, update)
    if broken is not None:
        whose, name = broken
        if whose == "model":
            what = "the model was broken before this run trained it: look at its file, or train it anew"
        else:
            what = "an earlier update made them so: go back to a checkpoint, with a lower learning rate"
        return NonFiniteError(
            f"step {step}: {error}, because weights of the {whose} are not finite ({name}), so the optimiser "
            f"step was not made; no completion is to blame: {what}"
        )
    ids = [f"{g.problem.id}#{i}" for g in groups for i in range(1, len(g.completions) + 1)]
    named = ", ".join(ids[row] for row in error.rows[:_MOST_NAMED])
    return NonFiniteError(
        f"step {step}: {error} (completions {named}), so that optimiser step was not made: look at these "
        "completions, or train anew with a lower update.learning_rate",
        error.rows,
    )


def broken_weights(policy: Policy, update: Update) -> tuple[str, str] | None:
    """("model", "adapter" or "value model", name) of the first weights that are not finite; None: all are."""
    for whose, name, tensor in _weights(policy, update):
        if not bool(tensor.isfinite().all()):
            return whose, name
    return None


def _weights(policy: Policy, update: Update) -> Iterator[tuple[str, str, Tensor]]:
    """The model's own first: what is broken there breaks all that is trained on it."""
    named = list(policy.model.named_parameters())
    adapter = {id(p) for p in policy.trainable_parameters()}
    critic = {id(p) for p in update.critic.model.parameters} if update.critic else set()
    yield from (("model", name, p) for name, p in named if id(p) not in adapter | critic)
    yield from (("adapter", name, p) for name, p in named if id(p) in adapter)
    yield from (("value model", name, p) for name, p in named if id(p) in critic)
    if update.critic:
        yield from (("value model", "head", p) for p in (update.critic.model.head, update.critic.model.bias))
