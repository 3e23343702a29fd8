"""What a step's seconds went into on every rank: its own work, calls to other ranks, waiting for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mathrl.distributed.collectives import gather
from mathrl.distributed.group import current

CALLS = ("reduce", "gather", "agree", "wait")
"""Sums of tensors, exchange of objects, short questions to all, and waiting there for the last to come."""


@dataclass(frozen=True, slots=True)
class _Calls:
    """A rank's seconds in calls to others."""

    reduce: float
    gather: float
    agreements: tuple[float, ...]  # in order: the same ones on every rank


def seconds_away() -> float:
    """Seconds that this process has spent in calls to other ranks so far."""
    group = current()
    return sum(group.seconds.values()) if group else 0.0


def forget_calls() -> None:
    """Begin to count anew."""
    group = current()
    if group is not None:
        group.seconds.clear()
        group.agreements.clear()


def seconds_by_rank(own: Mapping[str, float]) -> list[dict[str, float]]:
    """Every rank's seconds: its own work by phase, and the four kinds of ``CALLS``.

    Who comes last to an agreement waits for nobody: its seconds are what the agreement costs, and what the
    others spent beyond them they waited.

    Args:
        own: this rank's work by phase, without its calls to others.
    """
    group = current()
    if group is None:
        return [dict(own)]
    calls = _Calls(group.seconds["reduce"], group.seconds["gather"], tuple(group.agreements))
    found = gather((dict(own), calls))
    costs = [min(times) for times in zip(*(c.agreements for _, c in found), strict=True)]
    return [
        {
            **work,
            "reduce": c.reduce,
            "gather": c.gather,
            "agree": sum(costs),
            "wait": sum(c.agreements) - sum(costs),
        }
        for work, c in found
    ]


def step_metrics(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """``time/<phase>_s``, means over ranks that add up to ``time/step_s``; ``ranks/efficiency`` of several.

    Efficiency is the share of the ranks' time that went into work of their own.
    """
    phases = dict.fromkeys(phase for seconds in ranks for phase in seconds)
    means = {phase: fmean(seconds.get(phase, 0.0) for seconds in ranks) for phase in phases}
    total = sum(means.values())
    metrics = {f"time/{phase}_s": value for phase, value in means.items()} | {"time/step_s": total}
    if len(ranks) > 1:
        away = sum(means.get(call, 0.0) for call in CALLS)
        metrics["ranks/efficiency"] = 1.0 - away / max(total, 1e-9)
    return metrics
