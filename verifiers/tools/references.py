"""How a data set's references are read: as mathematics, as words alone, or not at all."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from verifiers import ParseError, parse_reference, registry
from verifiers.answers.auto import names_a_choice
from verifiers.answers.described import Described
from verifiers.answers.several import Several
from verifiers.answers.structured import Answer, is_word
from verifiers.answers.yes_or_no import asks_yes_or_no

_NO_VALUE = frozenset({"does not exist", "dne", "undefined", "not defined", "is undefined"})
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?<![\w\\])\d[\d,.]*|\\[A-Za-z]+")


class Reading(StrEnum):
    """What can be judged of answers to a reference.

    DESCRIPTION: words around mathematics; an answer is right whose words are the same and whose mathematics
    is equal. WORDS: it is read only as text, so that an answer is right where it repeats the text; another
    way to say or write the same is refused. Choice letters, yes and no, and "does not exist" are more.
    """

    MATHEMATICS = "mathematics"
    DESCRIPTION = "description"
    WORDS = "words"
    UNREAD = "unread"


@dataclass(frozen=True, slots=True)
class ReadReference:
    """A reference as it was read. kind: for WORDS and UNREAD, the group that it belongs to in a count."""

    reading: Reading
    kind: str = ""


def read_reference(answer: str, answer_type: str = "auto") -> ReadReference:
    """How a reference is read. Raises `ValueError` for an unknown answer type."""
    registry.get(answer_type)
    try:
        parsed = parse_reference(answer, answer_type)
    except ParseError as error:
        return ReadReference(Reading.UNREAD, _QUOTED.sub("…", str(error)))
    except Exception as error:  # noqa: BLE001  a type of the user's own may raise anything
        return ReadReference(Reading.UNREAD, f"its verifier raises {type(error).__name__}")
    if isinstance(parsed, str) and answer_type == "text":
        return ReadReference(Reading.WORDS, "words")
    if isinstance(parsed, Several):  # words where all of its items are
        read = [_of_answer(item) for item in parsed.items]
        return next((r for r in read if r.reading is not Reading.WORDS), read[0])
    return _of_answer(parsed)


def _of_answer(parsed: Any) -> ReadReference:
    if not isinstance(parsed, Answer):
        return ReadReference(Reading.MATHEMATICS)
    if isinstance(parsed, Described):
        return ReadReference(Reading.DESCRIPTION if parsed.value is None else Reading.MATHEMATICS)
    if parsed.contradicts:
        return ReadReference(Reading.WORDS, "statements that contradict each other")
    if parsed.node is not None and not is_word(parsed.node):
        return ReadReference(Reading.MATHEMATICS)
    if parsed.words in _NO_VALUE or asks_yes_or_no(parsed.cleaned) or names_a_choice(parsed.cleaned):
        return ReadReference(Reading.MATHEMATICS)
    with_formulas = re.search(r"[\d=<>^\\$]", parsed.cleaned.replace("\\text", "")) is not None
    return ReadReference(Reading.WORDS, "words with formulas or numbers" if with_formulas else "words")
