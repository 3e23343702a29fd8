"""The one error that a user can cause, and the words it is told in."""

import difflib
import errno
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """Something the user can put right; its message is one sentence: what is wrong, where, what to do."""


class NonFiniteError(UserError):
    """A loss or gradient is not a finite number; the optimiser step that met it changed nothing.

    ``rows`` are the completions (rows of the batch) whose own loss or gradient is not finite.
    """

    def __init__(self, message: str, rows: Sequence[int] = ()):
        super().__init__(message)
        self.rows = tuple(rows)


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
