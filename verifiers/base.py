"""What a verifier is: an answer type, which reads and compares answers, and the verdict that comes of it."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

MAX_COMPLETION_CHARS = 4_000_000
"""Longer completions are refused unread; extraction is linear, so this bounds the time of one verdict."""


class Outcome(StrEnum):
    """How a judgement ended. Only CORRECT and WRONG compare two answers that were both understood."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"
    ERROR = "error"
    BAD_REFERENCE = "bad_reference"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement of one completion.

    outcome: how it ended. extracted: the text taken for the final answer, None if there was none.
    detail: one sentence that says why, empty when the outcome says it all. seconds: wall-clock time spent.
    """

    outcome: Outcome
    extracted: str | None = None
    detail: str = ""
    seconds: float = 0.0

    @property
    def correct(self) -> bool | None:
        """True or False, or None where the completion is not to blame (bad_reference, error)."""
        if self.outcome in (Outcome.BAD_REFERENCE, Outcome.ERROR):
            return None
        return self.outcome is Outcome.CORRECT


class ParseError(ValueError):
    """The given text cannot be read as an answer of this type."""


class AnswerType(ABC):
    """A kind of answer: two pure functions, `parse` and `equal`, under a registered `name`.

    `equal` may take a third argument, `row`: the data set's row, its other columns by name, for answers that
    depend on the question's data. It is empty where the row is not known.
    """

    name: ClassVar[str]
    takes_row: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.takes_row = "row" in inspect.signature(cls.equal).parameters

    @abstractmethod
    def parse(self, text: str) -> Any:
        """Read one answer. Raises `ParseError` when the text is not one; must be bounded in time and size."""

    def parse_reference(self, text: str) -> Any:
        """Read a reference, for types whose references have a form of their own; by default as an answer.

        Raises `ParseError`.
        """
        return self.parse(text)

    def as_answer(self, reference: str) -> str:
        """An answer that meets a reference, for worked examples; by default the reference itself."""
        return reference

    @abstractmethod
    def equal(self, reference: Any, given: Any) -> bool:
        """Whether two parsed answers are the same answer. `equal(x, x)` must hold for every parsed x."""
