"""A time limit on a call in this very process, for code that is trusted but may take too long.

Hostile text is judged in processes that can be killed (verifiers/pool); a user's own function runs here,
where his data and models are. A watch waits beside it; when time is up it signals the main thread, which
raises between two lines of Python, and wakes it from sleeping and waiting. What never comes back to Python
cannot be raised in: then the process ends with the sentence, for a run that hangs in silence is worse.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_USER_ERROR = 2
_SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR2)  # not SIGALRM: graders set that themselves
GRACE_S = 5.0


class OutOfTime(BaseException):
    """Time is up; a BaseException, so that the code under the limit does not take it for its own error."""


class _Limit:
    """One block under a limit; its watch runs on a thread of its own."""

    def __init__(self, seconds: float, sentence: str) -> None:
        self.seconds, self.sentence = seconds, sentence
        self.over = self.raised = False
        self.ended = threading.Event()
        self.inside = threading.current_thread() is threading.main_thread()

    def handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.over and not self.raised:
            self.raised = True
            raise OutOfTime

    def watch(self) -> None:
        if self.ended.wait(self.seconds):
            return
        if self.inside and not self.over:
            signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            if self.ended.wait(GRACE_S):
                return
        if not self.over:
            print(f"mathrl: {self.sentence}", file=sys.stderr, flush=True)
            os._exit(EXIT_USER_ERROR)


@contextmanager
def time_limit(seconds: float, sentence: str) -> Iterator[None]:
    """Raise ``OutOfTime`` in the block when it takes more than ``seconds``.

    On another thread than the main one, which no signal reaches, the block cannot be raised in and the
    process ends with ``sentence`` at once; as it does where the block ignores the signal for 5 s.
    """
    limit = _Limit(seconds, sentence)
    if limit.inside:
        signal.signal(_SIGNAL, limit.handle)  # stays: a signal that comes late must find a handler
    threading.Thread(target=limit.watch, name="time limit", daemon=True).start()
    try:
        try:
            yield
        finally:
            limit.over = True
    finally:  # once more: time can be up on the way to the line above
        limit.over = True
        limit.ended.set()
