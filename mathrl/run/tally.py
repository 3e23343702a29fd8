"""What a run has counted so far, and what it found best; every checkpoint holds it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Tally:
    """Seconds by phase, tokens sampled, and the best look at the held-out problems."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # by phase: sft, rollout, update, evaluate …
        self.tokens_sampled = 0
        self.best_low, self.best_step = -1.0, 0  # lower bound of the best look's accuracy, and its step
        self.worse = 0  # looks since the best one
        self.told_to_stop_of = 0  # the recipe's steps when the caller's own hook said to stop; 0: it has not
        self.unlogged: dict[str, float] | None = None  # metrics of the last step while its look is under way

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """The time inside is added to a phase, also where it is interrupted."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count a step by its ``time/<phase>_s`` and ``tokens/sampled``."""
        self.tokens_sampled += int(metrics["tokens/sampled"])
        for name, value in metrics.items():
            if name.startswith("time/") and name != "time/step_s":
                self.seconds[name.removeprefix("time/").removesuffix("_s")] += value

    def looked(self, step: int, accuracy_low: float) -> bool:
        """Note a look; whether it is the best so far, by the lower bound of its accuracy."""
        if accuracy_low <= self.best_low:
            self.worse += 1
            return False
        self.best_low, self.best_step, self.worse = accuracy_low, step, 0
        return True

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "best": {"accuracy_low": self.best_low, "step": self.best_step, "worse": self.worse},
            "tokens_sampled": self.tokens_sampled,
            "seconds": dict(self.seconds),
            "told_to_stop_of": self.told_to_stop_of,
            "unlogged": self.unlogged,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state()``; phases that it lacks keep what this process has counted."""
        best = state["best"]
        self.best_low, self.best_step, self.worse = best["accuracy_low"], best["step"], best["worse"]
        self.tokens_sampled = state["tokens_sampled"]
        self.seconds.update(state["seconds"])
        self.told_to_stop_of = state.get("told_to_stop_of", 0)
        self.unlogged = state.get("unlogged")
