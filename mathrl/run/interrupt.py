"""Ctrl-C and SIGTERM: the step under way is finished first."""

from __future__ import annotations

import signal
from typing import Any, Self

from rich.console import Console


class Interrupts:
    """A context: inside, the first Ctrl-C or SIGTERM is noted in ``asked``, a second one raises at once.

    Args:
        console: says what happens.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _stop(self, signum: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.console.print("stopping after this step; once more to stop at once")
