"""The steps of a run so far, as the rules of the doctor ask about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mathrl.config import Config

WINDOW = 5
"""Steps whose mean a rule judges: one bad step is chance."""

AT_ONCE = 16
"""Groups that, all alike without exception, are no chance even in the first step."""


class StepsSoFar:
    """Rows of metrics.jsonl, one a step, in order."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], config: Config) -> None:
        self.rows, self.config = rows, config
        self.step = int(rows[-1]["step"])

    def values(self, metric: str) -> list[float]:
        """The metric's finite values, of the steps that have it."""
        found = (row.get(metric) for row in self.rows)
        return [float(v) for v in found if isinstance(v, int | float) and math.isfinite(v)]

    def recent(self, metric: str, default: float = 0.0) -> float:
        """Mean over the last WINDOW steps that have the metric."""
        values = self.values(metric)[-WINDOW:]
        return fmean(values) if values else default

    def first(self) -> Mapping[str, Any] | None:
        """The row of the run's first step, where it is among these."""
        return self.rows[0] if self.rows[0]["step"] == 1 else None

    @property
    def full(self) -> bool:
        """Whether there are enough steps for a mean."""
        return len(self.rows) >= WINDOW

    def plain(self, share: str) -> bool:
        """Whether a share may be judged: over enough steps, or because it is all of everything so far."""
        groups = len(self.rows) * self.config.rollout.problems_per_step
        return self.full or (groups >= AT_ONCE and all(row.get(share) == 1.0 for row in self.rows))

    @property
    def so_far(self) -> str:
        """What was seen, where that is little."""
        steps = len(self.rows)
        return "" if self.full else f" of the first {f'{steps} steps' if steps > 1 else 'step'}"
