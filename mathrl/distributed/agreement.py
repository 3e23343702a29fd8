"""All ranks go on, or none does: what goes wrong on one of them is raised on every one.

A rank that raises while others wait for it in a collective call would leave them waiting. So a rank's own
work (sampling, judging, a backward, writing a file) is done inside ``together``, which ends with a short
question to all: has anything gone wrong? Between two such questions all ranks make the same calls.
"""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, TypeVar

from mathrl.distributed.collectives import all_reduce, gather, rank
from mathrl.distributed.group import Ranks, current, joined
from mathrl.errors import Stopped, UserError

T = TypeVar("T")

_FINE, _FAILED, _STOPPED = 0, 1, 2  # stopped: and the signal's number on top


class RankError(RuntimeError):
    """Another rank raised an error that is nobody's input; its traceback stands on that rank's stderr."""


def together(work: str) -> AbstractContextManager[None]:
    """Around work of this rank alone, after which all ranks go on, or all raise.

    Args:
        work: what it is, in a word or two. Nothing inside may ask other ranks.

    Raises:
        Stopped: a rank was told to stop, whatever went wrong on others meanwhile.
        Exception: the error of the lowest rank that has one, on all ranks; its sentence names that rank,
            unless all say the same.
    """
    group = current()
    return nullcontext() if group is None else _Together(group, work)


class _Together:
    """No generator, in whose ends a signal handler could raise before this rank has told how it went."""

    def __init__(self, group: Ranks, work: str) -> None:
        self.group, self.work = group, work

    def __enter__(self) -> None:
        group = self.group
        assert not group.local_work, f"{self.work} inside {group.local_work}"
        try:
            group.raise_if_stopped()
        except KeyboardInterrupt as stopped:
            _agree(group, stopped)
            raise
        group.local_work = self.work

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.group.local_work = ""
        if error is None or isinstance(error, (Exception, KeyboardInterrupt)):
            _agree(self.group, error)


def is_own_work(frame: FrameType | None) -> bool:
    """Whether a signal handler that interrupts this frame may raise: inside ``together``, not at its ends."""
    group = joined()
    return bool(group and group.local_work) and (frame is None or frame.f_code.co_filename != __file__)


def on_rank_0(work: str, do: Callable[[], T]) -> T | None:
    """What rank 0 alone does, such as writing a file; the others get None, once it is done.

    Raises:
        Exception: on all ranks, as ``together``.
    """
    result: T | None = None
    with together(work):
        if rank() == 0:
            result = do()
    return result


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    group = current()
    return _worst(group, int(flag)) > 0 if group else flag


def agreed_rank(error: BaseException) -> int | None:
    """The rank whose error all ranks have raised; None: this error is this rank's own affair."""
    seen: BaseException | None = error
    while seen is not None:
        found: int | None = getattr(seen, "agreed_rank", None)
        if found is not None:
            return found
        seen = seen.__cause__
    return None


def _agree(group: Ranks, error: BaseException | None) -> None:
    status = _FINE if error is None else _FAILED
    if isinstance(error, KeyboardInterrupt):
        status = _STOPPED + getattr(error, "signum", signal.SIGINT)
    worst = _worst(group, status)
    if worst == _FINE:
        return
    if worst >= _STOPPED:
        if not isinstance(error, Stopped):
            raise Stopped(worst - _STOPPED) from error
        return
    told = gather(None if error is None else _portable(error))
    failed = [rank for rank, found in enumerate(told) if found is not None]
    first, sentence = failed[0], str(told[failed[0]])
    raised: BaseException | None = told[first]
    if group.place.rank == first:
        raised = error  # with its traceback
    assert raised is not None
    everywhere = len(failed) == group.place.world and all(str(found) == sentence for found in told)
    if not everywhere and isinstance(raised, (UserError, RankError)):
        raised.args = (f"rank {first}: {sentence}", *raised.args[1:])
    raised.agreed_rank = first  # type: ignore[attr-defined]
    if raised is not error:
        raise raised from error
    # else it is on its way already


def _worst(group: Ranks, status: int) -> int:
    """The largest status of all ranks. Its seconds are mostly waiting for the last of them."""
    import torch

    flag, before = torch.tensor([status], dtype=torch.int32), group.seconds["agree"]
    all_reduce(group, flag, "MAX", "agree")
    group.agreements.append(group.seconds["agree"] - before)
    return int(flag)


def _portable(error: BaseException) -> BaseException:
    """A user's error as it is, where it can be sent; of any other what it says."""
    if not isinstance(error, UserError):
        return RankError(f"{type(error).__name__}: {error}")
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an error may hold anything
        return UserError(str(error))
