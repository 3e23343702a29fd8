"""Words as answers: plain text and booleans."""

from __future__ import annotations

from typing import ClassVar

from verifiers.base import AnswerType, ParseError
from verifiers.grammar.clean import clean
from verifiers.grammar.normal_words import normal_words

MAX_TEXT_CHARS = 500

_YES = frozenset({"yes", "true", "correct", "y", "t"})
_NO = frozenset({"no", "false", "incorrect", "n", "f"})


class Text(AnswerType):
    """Plain words: equal when the same letters and digits come in the same order, whatever the case."""

    name: ClassVar[str] = "text"

    def parse(self, text: str) -> str:
        """Normalised words. Raises `ParseError` for text without letters or digits, or over the bound."""
        if len(text) > MAX_TEXT_CHARS:
            raise ParseError(f"text of {len(text)} characters, at most {MAX_TEXT_CHARS} are read")
        words = normal_words(text)
        if not words:
            raise ParseError("no words in the answer")
        return words

    def equal(self, reference: str, given: str) -> bool:
        return reference == given or reference.replace(" ", "") == given.replace(" ", "")


class Boolean(AnswerType):
    """Yes or no: yes/true/correct against no/false/incorrect; anything else is not an answer."""

    name: ClassVar[str] = "boolean"

    def parse(self, text: str) -> bool:
        """True or False. Raises `ParseError` for any other word."""
        if len(text) > MAX_TEXT_CHARS:
            raise ParseError(f"text of {len(text)} characters, at most {MAX_TEXT_CHARS} are read")
        word = normal_words(clean(text))
        if word in _YES:
            return True
        if word in _NO:
            return False
        raise ParseError(f"expected yes or no (true or false), got {text[:40]!r}")

    def equal(self, reference: bool, given: bool) -> bool:
        return reference is given
