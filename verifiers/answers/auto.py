"""The type is inferred from the reference: a choice, words, or any mathematics the grammar reads."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import ClassVar

from verifiers.answers.chinese import in_english
from verifiers.answers.choice import Choice, option_parts, several_letters
from verifiers.answers.described import OTHER_SCRIPTS, Described, describe, same_description
from verifiers.answers.spelled import spelled_fraction, spelled_number
from verifiers.answers.structured import Answer, answers_equal, is_word, read_answer
from verifiers.answers.yes_or_no import asks_yes_or_no, says_yes
from verifiers.base import AnswerType, ParseError
from verifiers.extraction.lines import short_sentence
from verifiers.extraction.prose import prose
from verifiers.extraction.wording import NEGATION
from verifiers.grammar.clean import clean
from verifiers.grammar.nodes import Quantity
from verifiers.grammar.normal_words import normal_words
from verifiers.grammar.plain import read_plain

_CHOICE_REFERENCE = re.compile(
    r"\\text(?:bf|rm)?\{\s*(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?[A-J]\)?\s*\}"
    r"|(?:(?:[Oo]ption|[Cc]hoice)\s+)?\(?[A-J]\)?",
    re.ASCII,
)

_CHOICE_WITH_TEXT = re.compile(r"(?:\\text(?:bf|rm)?\{)?\s*(?:\(\s*[A-J]\s*\)|[A-J][).:])")


_SIGN_IN_WORDS = re.compile(r"^\s*(?:negative|minus)\s+(?=\d)", re.IGNORECASE)


# "a parabola" is no quantity a of parabolas.
_PHRASE = re.compile(r"(?:an?|the|[A-Za-z]{2,})(?:[ ,]+[A-Za-z][A-Za-z'-]*)+", re.IGNORECASE)
_OTHER_WORDS = re.compile(rf"[{OTHER_SCRIPTS}\s,.:;()-]+")


def _is_phrase(cleaned: str) -> bool:
    """Whether a text is words alone, an article or a word of two letters first."""
    return _PHRASE.fullmatch(cleaned) is not None and max(map(len, cleaned.split())) >= 4


class Auto(AnswerType):
    """Any answer; a reference that is one letter A to J is a multiple choice."""

    name: ClassVar[str] = "auto"

    def parse(self, text: str) -> Answer:
        """Read any answer. Raises `ParseError` where it is neither bounded mathematics nor words."""
        if not text.isascii():
            text = in_english(text)
        spelled = spelled_number(clean(text) if len(text) < 200 else text)
        text = _SIGN_IN_WORDS.sub("-", text)
        fraction = spelled_fraction(text.strip(" .$*"))
        try:
            answer = read_answer(fraction or (text if spelled is None else str(spelled)))
            if isinstance(answer.node, Quantity) and _is_phrase(answer.cleaned):
                answer = replace(answer, node=None)
            return describe(answer, text)
        except ParseError:
            # "(B) 42" is no mathematics, but it names a letter.
            cleaned = clean(text)
            answer = Answer(cleaned, normal_words(cleaned), None, cleaned=cleaned)
            if _CHOICE_WITH_TEXT.match(cleaned) or _OTHER_WORDS.fullmatch(cleaned):
                return answer
            described = describe(answer, text)
            if described is answer:
                raise
            return described

    def equal(self, reference: Answer, given: Answer) -> bool:
        if asks_yes_or_no(reference.cleaned):
            return says_yes(given.cleaned) is says_yes(reference.cleaned)
        if answers_equal(reference, given):
            return True
        if (reference.node is not None and given.node is None) or is_word(given.node):
            value = _value_in_words(given.cleaned)
            if value and not is_word(reference.node) and _same_text(reference.cleaned, value):
                return True
        if isinstance(reference, Described):
            if same_description(reference, given):
                return True
            if reference.value is not None and self.equal(reference.value, given):
                return True
        if _same_options(reference.cleaned, given.cleaned):
            return True
        if _CHOICE_REFERENCE.fullmatch(reference.cleaned):
            try:
                return Choice().parse(reference.cleaned) == Choice().parse(given.cleaned)
            except ParseError:
                return False
        return False


def names_a_choice(cleaned: str) -> bool:
    """Whether a reference is read as letters of options: "B", "(B) 3", "A, B and D"."""
    return bool(
        _CHOICE_REFERENCE.fullmatch(cleaned) or option_parts(cleaned) or len(several_letters(cleaned)) > 1
    )


_TEXT = re.compile(r"\\(?:text|mbox|textrm|textbf|mathrm)\s*\{([^{}]*)\}")
_FILLER = re.compile(
    r"^(?:exactly|a total of|(?:the )?(?:final )?(?:answer|result)(?: is)?:?)\s+", re.IGNORECASE
)


def _value_in_words(cleaned: str) -> str:
    r"""The value in `\text{8 apples}`, `\text{The answer is 8}` or `\text{exactly }42`; else ""."""
    plain = _TEXT.sub(r"\1", cleaned)
    if plain == cleaned or "\\" in plain or NEGATION.search(plain):
        return ""
    short = _FILLER.sub("", plain)
    if short != plain or short[:1].isdigit() or re.fullmatch(r"[A-Za-z]\s*=\s*-?[\d./]+", short):
        return short
    return prose(plain) or short_sentence(plain) or ""


def _same_options(reference: str, given: str) -> bool:
    """A letter with its value meets either ("(B) 3" is B and is 3), and several letters the same ones."""
    ours, theirs = option_parts(reference), option_parts(given)
    if ours and theirs:
        return ours[0] == theirs[0] and _same_text(ours[1], theirs[1])
    if ours:
        return given.strip("() ") == ours[0] or _same_text(ours[1], given)
    if theirs and f"({theirs[0]})" in given.replace(" ", "") and not _CHOICE_REFERENCE.fullmatch(reference):
        return _same_text(reference, theirs[1])
    letters = several_letters(reference)
    return len(letters) > 1 and letters == several_letters(given)


def _same_text(reference: str, given: str) -> bool:
    try:
        return answers_equal(read_answer(reference), read_answer(given))
    except ParseError:
        return False


__all__ = ["Auto", "normal_words", "read_plain"]
