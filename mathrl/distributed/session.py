"""Around all that a command does on its ranks: they begin together, and end together however it goes."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mathrl.distributed import group
from mathrl.distributed.agreement import agreed_rank, together
from mathrl.distributed.collectives import LostRankError
from mathrl.distributed.environment import Place
from mathrl.distributed.lookout import EXIT_LOST, Ending, Lookout, connect
from mathrl.errors import Stopped, UserError

EXIT_INTERRUPTED = 130


_session: Session | None = None  # of this process, while it has ranks


def keep_last_words(words: Callable[[], None] | None) -> None:
    """``words`` is called at a bad end by the lowest rank that is left, in any of its threads; None: no more.

    It saves what can be saved. With one process nobody calls it.
    """
    if _session is not None:
        _session.lookout.last_words = words


@contextmanager
def ranks() -> Iterator[Alone]:
    """The ranks of this run. With one process: nothing but the place of the only one.

    With several this process ends with the block: well where it does so on all ranks, and with one sentence,
    told by one of them, where anything is raised on any.
    """
    global _session
    own = group.start()
    if own.world == 1:
        yield Alone()
        return
    _session = session = Session(own, Lookout(own, connect(own)))
    _hear_signals(_stop)
    try:
        yield session
        with together("the end"):
            pass
    except BaseException as error:  # noqa: BLE001 - the process ends here
        session.end_after(error)
    session.leave()


class Alone:
    """The only process of a run."""

    def end_with(self, status: int) -> None:
        """It ends with its command."""


class Session(Alone):
    """A run's ranks while it lasts."""

    def __init__(self, place: Place, lookout: Lookout) -> None:
        self.place, self.lookout = place, lookout

    def end_with(self, status: int) -> None:
        """End all ranks with this status, without a word; does not return."""
        _hear_signals(signal.SIG_IGN)
        self.lookout.end(self.lookout.settle("", status))

    def leave(self) -> None:
        """All ranks have come to their end."""
        self.lookout.stop()
        group.stop()

    def end_after(self, error: BaseException) -> None:
        """End this process, and so the run, with one sentence; does not return."""
        _hear_signals(signal.SIG_IGN)  # torchrun sends SIGTERM to all ranks as soon as one has gone
        lookout = self.lookout
        lost = _lost_connection(error)
        if lost is not None:
            lookout.end(lookout.wait_for_ending(lost))
        if isinstance(error, KeyboardInterrupt):
            lookout.end(lookout.settle("", getattr(error, "exit_status", EXIT_INTERRUPTED)))
        if isinstance(error, SystemExit):
            lookout.end(lookout.settle("", error.code if isinstance(error.code, int) else 1))
        status = error.exit_status if isinstance(error, UserError) else EXIT_LOST
        agreed = agreed_rank(error)
        if not isinstance(error, UserError) and agreed in (None, self.place.rank):
            traceback.print_exception(error, file=sys.stderr)
        lookout.end(self._ending(lookout, error, agreed, status))

    def _ending(self, lookout: Lookout, error: BaseException, agreed: int | None, status: int) -> Ending:
        own = self.place.rank
        if isinstance(error, UserError):
            sentence, speaker = str(error), 0  # rank 0 has the console
        else:
            sentence = (
                str(error) if agreed not in (None, own) else f"rank {own}: {type(error).__name__}: {error}"
            )
            sentence, speaker = f"{sentence} (its traceback stands above)", agreed or 0
        if agreed is None or own == speaker:
            return lookout.settle(sentence, status)
        return lookout.wait_for_ending(error)


def _stop(signum: int, frame: Any) -> None:
    """What a rank does where nothing else listens (run/stop.py), and once."""
    _hear_signals(signal.SIG_IGN)
    raise Stopped(signum)


def _hear_signals(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, handler)


def _lost_connection(error: BaseException | None) -> BaseException | None:
    """The broken connection that an error comes from."""
    while error is not None and not isinstance(error, LostRankError):
        error = error.__cause__ or error.__context__
    return error
