"""Ctrl-C and SIGTERM: a stage stops at once; a training step that changes the policy already ends first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from rich.console import Console

from mathrl.distributed.agreement import is_own_work
from mathrl.distributed.group import joined
from mathrl.errors import Stopped

_SAME_S = 1.0  # signals so near each other are one request: timeout(1) sends its own twice


class StopSignals:
    """A context in which both signals raise ``Stopped``, at once or when it is safe.

    In a thread other than the main one, where Python hears no signals, nothing is changed.

    Of several ranks each notes a signal and raises within its own work (``together``), so that all stop at
    the same point; further signals change nothing then: whoever insists, kills.

    Args:
        console: says that the step under way is ended first.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked: signal.Signals | None = None
        self._asked_at = 0.0
        self._at_once = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        group = joined()
        if group is not None:
            group.raise_if_stopped = self._raise_if_due
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, the first signal is only noted in ``asked``; a later one raises at once."""
        with self._mode(at_once=False):
            yield

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A part of ``deferred`` that may be broken off: what was asked for, or is asked for now, raises."""
        with self._mode(at_once=True):
            if joined() is None:
                self.raise_if_asked()
            yield

    def raise_if_asked(self) -> None:
        if self.asked is not None:
            raise Stopped(self.asked)

    @contextmanager
    def _mode(self, *, at_once: bool) -> Iterator[None]:
        before, self._at_once = self._at_once, at_once
        try:
            yield
        finally:
            self._at_once = before

    def _raise_if_due(self) -> None:
        if self._at_once:
            self.raise_if_asked()

    def _hear(self, signum: int, frame: Any) -> None:
        first, now = self.asked is None, time.monotonic()
        if joined() is not None:
            if first:
                self._hear_on_a_rank(signal.Signals(signum), frame)
            return
        if first:
            self.asked, self._asked_at = signal.Signals(signum), now
        elif now - self._asked_at < _SAME_S:
            return
        if first and not self._at_once:
            self.console.print("stopping after this step; once more to stop at once")
            return
        raise Stopped(signum, forced=not first)

    def _hear_on_a_rank(self, signum: signal.Signals, frame: Any) -> None:
        self.asked = signum
        if not self._at_once:
            self.console.print("stopping after this step")
        elif is_own_work(frame):
            raise Stopped(signum)
