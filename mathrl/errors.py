"""The one error that a user can cause, and the words it is told in."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right; its message is one sentence: what is wrong, where, what to do."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A tail for an error message: near names of ``name`` among ``known``, else all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "known: " + ", ".join(known)
