"""The one error that a user can cause, and the words it is told in."""

from __future__ import annotations

import difflib
import errno
import os
import signal
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user can put right; its message is one sentence: what is wrong, where, what to do."""

    exit_status = 2  # of the command that it ends


class NonFiniteError(UserError):
    """A loss or gradient is not a finite number; the optimiser step that met it changed nothing.

    ``rows`` are the completions (rows of the batch) whose own loss or gradient is not finite.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()):
        super().__init__(message)
        self.rows = tuple(rows)


class LostPartError(UserError):
    """A process that a run rests on has ended from outside: the same command with --resume goes on."""

    exit_status = 1


class Stopped(KeyboardInterrupt):
    """The user or the system has asked this process to end, by Ctrl-C or SIGTERM.

    ``forced``: asked again, for what was under way took too long; nothing more is saved.
    """

    def __init__(self, signum: int, *, forced: bool = False):
        super().__init__(signum)
        self.signum, self.forced = signal.Signals(signum), forced
        self.exit_status = 128 + signum  # as a shell tells it: 130 and 143

    @classmethod
    def of(cls, interrupt: KeyboardInterrupt) -> Stopped:
        """The same, of an interrupt that Python raised by itself."""
        return interrupt if isinstance(interrupt, cls) else cls(signal.SIGINT)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A tail for an error message: near names of ``name`` among ``known``, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(known)


def cannot_write(error: OSError) -> str:
    """Why something could not be written, in words: "the disk is full" or what the system says."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return "the disk is full" if full else error.strerror or str(error)


def says_full(error: BaseException) -> bool:
    """Whether an error is a full disk's; libraries that are no Python say so in its words alone."""
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def first_line(error: Exception) -> str:
    """What an error says in its first line, and in the next where that ends in a colon."""
    first, _, rest = str(error).strip().partition("\n")
    if first.endswith(":"):
        first = f"{first} {rest.strip().partition(chr(10))[0]}"
    return first or type(error).__name__
