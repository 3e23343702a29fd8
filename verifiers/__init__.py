"""Verifiers for mathematical answers: extract the final answer, read it exactly, compare it by its type."""

from typing import Any

from verifiers.base import AnswerType, Outcome, ParseError, Verdict
from verifiers.verify import parse_reference, verify

__all__ = ["AnswerType", "Outcome", "ParseError", "Verdict", "parse_reference", "read", "verify"]


def read(text: str) -> Any:
    """The exact sympy object of an answer; `verifiers.sympy_objects.objects` says which answer becomes what.

    Imports sympy when it is first called. Raises `ParseError`, one sentence, for text that cannot be read and
    for answers without a counterpart in sympy.
    """
    from verifiers.sympy_objects.objects import read as read_symbolic

    return read_symbolic(text)
