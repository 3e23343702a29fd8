"""The type is inferred from the reference: a choice, words, or any mathematics the grammar reads."""

from __future__ import annotations

import re
from typing import ClassVar

from verifiers.answers import Answer, answers_equal, read
from verifiers.base import AnswerType, ParseError
from verifiers.choice import Choice
from verifiers.grammar.clean import clean
from verifiers.number import spelled_number
from verifiers.plain import read_plain
from verifiers.text import normal_words

_CHOICE_REFERENCE = re.compile(r"\\text(?:bf|rm)?\{\s*\(?[A-J]\)?\s*\}|\(?[A-J]\)?", re.ASCII)

_CHOICE_WITH_TEXT = re.compile(r"(?:\\text(?:bf|rm)?\{)?\s*(?:\(\s*[A-J]\s*\)|[A-J][).:])")


class Auto(AnswerType):
    """Any answer; a reference that is one letter A to J is a multiple choice."""

    name: ClassVar[str] = "auto"

    def parse(self, text: str) -> Answer:
        """Read any answer. Raises `ParseError` where it is neither bounded mathematics nor words."""
        spelled = spelled_number(clean(text) if len(text) < 200 else text)
        try:
            return read(text if spelled is None else str(spelled))
        except ParseError:
            # "(B) 42" is no mathematics, but it names a letter.
            cleaned = clean(text)
            if not _CHOICE_WITH_TEXT.match(cleaned):
                raise
            return Answer(cleaned, normal_words(cleaned), None, cleaned=cleaned)

    def equal(self, reference: Answer, given: Answer) -> bool:
        if answers_equal(reference, given):
            return True
        if _CHOICE_REFERENCE.fullmatch(reference.cleaned):
            try:
                return Choice().parse(reference.cleaned) == Choice().parse(given.cleaned)
            except ParseError:
                return False
        return False


__all__ = ["Auto", "normal_words", "read_plain"]
