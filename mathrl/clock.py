"""Seconds by phase of a step."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


class Clock:
    """``with clock("rollout"): …`` adds to a phase of ``phases``.

    On a GPU each phase ends with a synchronisation, so that its seconds are its own.

    Args:
        away: seconds so far that were not this process's work; by what they grow a phase is shortened.
    """

    def __init__(self, synchronize: bool = False, away: Callable[[], float] = lambda: 0.0) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._synchronize, self._away = synchronize, away

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start, away = time.perf_counter(), self._away()
        try:
            yield
        finally:
            if self._synchronize:
                torch.cuda.synchronize()
            self._seconds[phase] += time.perf_counter() - start - (self._away() - away)

    @property
    def phases(self) -> Mapping[str, float]:
        """Seconds by phase, in the order of their first use."""
        return self._seconds
