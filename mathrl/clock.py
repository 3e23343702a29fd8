"""Seconds by phase of a step."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """``with clock("rollout"): …`` adds to a phase; ``seconds()`` gives ``time/<phase>_s`` metrics.

    On a GPU each phase ends with a synchronisation, so that its seconds are its own.
    """

    def __init__(self, synchronize: bool = False) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._synchronize = synchronize

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            if self._synchronize:
                torch.cuda.synchronize()
            self._seconds[phase] += time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        return {f"time/{phase}_s": value for phase, value in self._seconds.items()}
