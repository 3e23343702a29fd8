"""Pass rates by problem over a run, and which problems may be passed over for what they were.

A group whose rewards are all equal has no advantage: it costs its tokens and teaches nothing. Whether a group
will be such a one can be guessed from the problem's last tries, as arXiv:2506.02177 (GRESO) does. Ours is
simpler: the newest tries of a problem, one window, and two fixed probabilities that stay below 1, so that no
problem vanishes; one that was unlearnt comes back.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mathrl.config import HistoryConfig
from mathrl.types import Group, derive_seed


@dataclass(slots=True)
class _Tries:
    """Of one problem: the newest (right, tried) of its visits, oldest first."""

    visits: list[tuple[int, int]]

    @property
    def tried(self) -> int:
        return sum(tried for _, tried in self.visits)

    @property
    def rate(self) -> float:
        return sum(right for right, _ in self.visits) / self.tried


class History:
    """What a run has seen of its problems; the same tries and seeds pass over the same problems."""

    def __init__(self, config: HistoryConfig) -> None:
        self.config = config
        self._tries: dict[str, _Tries] = {}
        self._skipped: Counter[str] = Counter()  # since the last step, by kind

    def rate(self, problem_id: str) -> float | None:
        """Share of right answers among the problem's newest tries; None before the first."""
        tries = self._tries.get(problem_id)
        return tries.rate if tries else None

    def skips(self, problem_id: str, seed: int, epoch: int) -> bool:
        """Whether this visit of the problem is passed over."""
        tries, cfg = self._tries.get(problem_id), self.config
        if tries is None or tries.tried < min(cfg.min_tries, cfg.window):  # no more are remembered
            return False
        if tries.rate >= cfg.solved_rate:
            kind, probability = "solved", cfg.skip_solved
        elif tries.rate == 0.0:
            kind, probability = "unsolved", cfg.skip_unsolved
        else:
            return False
        drawn = random.Random(derive_seed(seed, "history", epoch, problem_id)).random()
        if drawn >= probability:
            return False
        self._skipped[kind] += 1
        return True

    def observe(self, groups: Sequence[Group]) -> dict[str, float]:
        """Note the verdicts of a step; metrics of what was passed over for it and of all problems seen."""
        for group in groups:
            tries = self._tries.setdefault(group.problem.id, _Tries([]))
            tries.visits.append((sum(s.correct for s in group.scores), len(group.scores)))
            while len(tries.visits) > 1 and tries.tried - tries.visits[0][1] >= self.config.window:
                tries.visits.pop(0)
        rates = [tries.rate for tries in self._tries.values()]
        metrics = {
            "data/skipped_solved": float(self._skipped["solved"]),
            "data/skipped_unsolved": float(self._skipped["unsolved"]),
            "data/seen": float(len(rates)),
        }
        if rates:
            metrics["data/solved_frac"] = sum(r >= self.config.solved_rate for r in rates) / len(rates)
            metrics["data/unsolved_frac"] = sum(r == 0.0 for r in rates) / len(rates)
        self._skipped.clear()
        return metrics

    def state(self) -> dict[str, Any]:
        """For ``restore``: all visits that are remembered."""
        return {key: [list(visit) for visit in tries.visits] for key, tries in self._tries.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state()``."""
        self._tries = {k: _Tries([(right, tried) for right, tried in v]) for k, v in state.items()}
        self._skipped.clear()
