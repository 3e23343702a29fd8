"""A reward that holds while verified accuracy falls: the policy finds what is paid and not what is right.

Reward models, and any other stand-in for the verifier, are right only near what they were made from; pushed
on, the reward goes on rising, or stays where it is, while what it stands for turns (arXiv:2210.10760).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

SPAN = 10  # steps whose means are compared
_SURE = 4.0  # standard errors of the difference of two such means; the best of many windows is lucky
_LEAST = 0.02  # a smaller fall of the accuracy is told by nobody


@dataclass(frozen=True, slots=True)
class Drift:
    """Means around the step with the best verified accuracy, and around the last step."""

    step: int  # the last of the best span
    accuracy: tuple[float, float]  # then, now
    reward: tuple[float, float]
    part: str  # of the reward, the one that rose most: "model", "format", the name of a function …
    part_values: tuple[float, float]


def find_drift(rows: Sequence[Mapping[str, Any]]) -> Drift | None:
    """Whether verified accuracy has fallen beyond noise since its best and the reward has not fallen with it.

    The noise of a step is taken from the differences of neighbours, so that a trend does not count as noise.
    The reward need not have risen since: most of its rise may lie before the best accuracy. A reward that
    stands for accuracy falls with it by as many of its own standard errors.

    Args:
        rows: metrics by step; those without reward and accuracy are passed over.
    """
    names = ("reward/mean", "reward/correct_frac")
    kept = [row for row in rows if all(_finite(row.get(name)) for name in names)]
    if len(kept) < 2 * SPAN:
        return None
    accuracy = [float(row["reward/correct_frac"]) for row in kept]
    reward = [float(row["reward/mean"]) for row in kept]
    starts = range(len(kept) - 2 * SPAN + 1)  # spans that do not reach into the last one
    best = max(starts, key=lambda at: fmean(accuracy[at : at + SPAN]))
    then, now = slice(best, best + SPAN), slice(len(kept) - SPAN, None)
    fall = fmean(accuracy[then]) - fmean(accuracy[now])
    rise = fmean(reward[now]) - fmean(reward[then])
    if fall < max(_LEAST, _SURE * _error(accuracy)) or rise < 0:
        return None
    parts = {
        name
        for name in kept[-1]
        if name.startswith("reward/") and name not in (*names, "reward/std", "reward/equal_frac")
    }
    means = {
        name.removeprefix("reward/"): (_mean(kept[then], name), _mean(kept[now], name))
        for name in parts - {"reward/answer"}
    }
    part = max(means, key=lambda name: means[name][1] - means[name][0], default="")
    return Drift(
        int(kept[best + SPAN - 1]["step"]),
        (fmean(accuracy[then]), fmean(accuracy[now])),
        (fmean(reward[then]), fmean(reward[now])),
        part,
        means.get(part, (math.nan, math.nan)),
    )


def _error(values: Sequence[float]) -> float:
    """Standard error of the difference of two means of SPAN steps."""
    changes = [b - a for a, b in itertools.pairwise(values)]
    variance = fmean(change * change for change in changes) / 2
    return math.sqrt(variance * 2 / SPAN)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [float(row[name]) for row in rows if _finite(row.get(name))]
    return fmean(values) if values else math.nan


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
