r"""Answers that words announce: "the answer is 42", a heading "Answer"; and the value that a sentence names.

Everything here takes text without thinking and without boxes, and time linear in its length.
"""

from __future__ import annotations

import re

from verifiers.extraction.markup import FORMULA, WORD, first_sentence, tidy, with_unit
from verifiers.extraction.wording import (
    BOUND,
    CANDIDATE_AFTER,
    HAD_IT_BEEN,
    NOT_AT_START,
    NUMBER_IN_TEXT,
    SUM_IN_TEXT,
    denied,
    not_itself,
    retracted,
)

MAX_BARE_CHARS = 4000
MAX_BARE_WORDS = 12

_ANCHOR_LETTERS = (
    "nswer", "ans", "Ans", "NSWER", "correct", "inal", "答案", "选", "espuesta", "éponse", "твет", "ntwort",
)  # fmt: skip
"""One of them is in every announcement: most texts hold none, and are not searched."""

_ANCHOR = re.compile(
    r"""
    (?: \b(?:final\s+|correct\s+)?(?:answer|(?<=correct\ )(?:option|choice)|(?<=final\ )(?:result|solution))
        (?:\s+choice)?[ \t]{0,3}\*{0,3}\s{0,3}
        (?:\b(?:is|are|would\ be|will\ be|must\ be)\b|=|:|：|[-–—](?=\s\d))
      | \bfinal\ answer\b
      | \banswer(?=\s[-$]?\d)
      | \bans(?:\s?[:=]|\.)
      | (?:答案|故选|选)[是为：:]{1,2}\s?
      | 故?选(?=\s?[A-J])
      | \b(?:respuesta|réponse|antwort|ответ)\s?[:：]
      | ^[^\w\n]{0,9}(?:final\ )?answer[^\w\n]{0,9}\n
    )
    (?:\s*(?:equal\ to|therefore|thus|simply|exactly|indeed)\b)?[\s:*}]*
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_TAIL = re.compile(
    r"""
    \s+(?:in\ total|in\ all|altogether|overall)$
    | ,\s*(?:as\ (?:required|desired|claimed|expected|needed|wanted|stated)|and\ we\ are\ done|q\.?e\.?d)$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_NOT_BUT = re.compile(r"not\s[^;,.]{1,40}[;,]\s*(?:but|it\s+is|it's)\s+(.+)", re.IGNORECASE | re.DOTALL)
_NOT_THE_OTHER = re.compile(r"\s*\((?:and\s+)?not\b[^()]*\)$", re.IGNORECASE)
_SAID_AGAIN = re.compile(
    r"(.*\S)(?:\s+\((?:that\ is,?|i\.e\.,?|or|=)\s*([^()]*\d[^()]*)\)|,?\s+i\.e\.,?\s+(.*\d.*))",
    re.IGNORECASE | re.DOTALL,
)
_PER = re.compile(r"\ba (day|week|month|year|hour|minute)$")
_LATER_NOT = re.compile(r"[,;]\s*(?:and\s+)?not\b.*$", re.IGNORECASE | re.DOTALL)
_REASON = re.compile(r"[,;]?\s{1,3}(?:since|because)\b.*$", re.IGNORECASE | re.DOTALL)
_REMARK = re.compile(r"\s{0,3}\([^()$\d\\]{0,60}[A-Za-z]{3}[^()$\d\\]{0,60}\)$")
ABOUT = re.compile(
    r"^(?:approximately|approx\.?|about|around|roughly|exactly|precisely|simply|just|option|choice)\s+"
    r"(?=[-\d.$\\(A-J])",
    re.IGNORECASE,
)
COPULA = re.compile(r"\b(?:is|are|equals|equal to|becomes)\b\s*:?\s*", re.IGNORECASE)
MATHEMATICAL = frozenset(
    {
        "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "pi", "min", "max", "gcd",
        "lcm", "base", "room", "option", "choice", "no", "not",
    }
)  # fmt: skip
"""Words that begin a value of two words: "sin 30" is no sentence about 30."""


def prose(text: str) -> str | None:
    """What follows the last "the answer is", to the end of that sentence; "is not 42" names nothing."""
    if not any(word in text for word in _ANCHOR_LETTERS):
        return None
    anchors = list(_ANCHOR.finditer(text))
    for anchor in reversed(anchors):
        if denied(text, anchor.start()):
            continue
        rest = text[anchor.end() : anchor.end() + MAX_BARE_CHARS]
        sentence = first_sentence(rest)
        if anchor[0].lower().rstrip().endswith("would be") and HAD_IT_BEEN.search(sentence):
            continue
        corrected = _NOT_BUT.match(sentence)
        answer = tidy(_LATER_NOT.sub("", corrected[1] if corrected else sentence))
        if answer and not NOT_AT_START.match(answer):
            if retracted(rest[len(sentence) :], answer):
                return None
            named = with_unit(value_named(without_remarks(answer)))
            # "The answer is 42. Or 43." names two.
            other = CANDIDATE_AFTER.match(rest, len(sentence))
            return named if other is None or other[1] == named else f"{named}, {other[1]}"
    return None


def without_remarks(answer: str) -> str:
    """Without the reason, the remark in brackets and the "about" around what a sentence names."""
    for pattern in (_REASON, _REMARK, _TAIL, ABOUT):
        shorter = tidy(pattern.sub("", answer))
        answer = shorter or answer
    answer = _NOT_THE_OTHER.sub("", answer)
    again = _SAID_AGAIN.fullmatch(answer)
    if again:
        return f"{again[1]} or {again[2] or again[3]}"
    return _PER.sub(r"per \1", answer)


def value_named(sentence: str) -> str:
    """The answer in a sentence of several words: what stands after its last "is", else its only number."""
    words = WORD.findall(FORMULA.sub(" ", sentence))
    if "\\text" in sentence:
        return sentence
    if len(words) < 3:
        # "Tom has $42" names a number, "sin 30" is one.
        counts = len(words) == 2 and sentence[0].isalpha() and words[0].lower() not in MATHEMATICAL
        return (_lone_number(sentence) if counts else None) or sentence
    copulas = [c for c in COPULA.finditer(sentence) if not not_itself(sentence[: c.end()])]
    tail = tidy(sentence[copulas[-1].end() :]) if copulas else ""
    if (
        any(char.isdigit() for char in tail)
        or FORMULA.search(tail)
        or (tail and len(WORD.findall(tail)) <= 2)
    ):
        if len(WORD.findall(FORMULA.sub(" ", tail))) < 3:
            return ABOUT.sub("", tail)
        sentence = tail
    return only_value(sentence) or sentence


def only_value(sentence: str) -> str | None:
    """The only formula, number or written-out sum of a sentence; None where there are several or none."""
    formulas = list(FORMULA.finditer(sentence))
    outside = FORMULA.sub(" ", sentence)
    numbers = NUMBER_IN_TEXT.findall(outside)
    first = NUMBER_IN_TEXT.search(outside)
    if first and not_itself(outside[: first.start()]):
        return None
    if formulas:
        return tidy(formulas[0][0]) if len(formulas) == 1 and not numbers else None
    if len(numbers) == 1:
        return str(numbers[0])
    sums = list(SUM_IN_TEXT.finditer(outside))
    if len(sums) == 1 and not NUMBER_IN_TEXT.search(SUM_IN_TEXT.sub(" ", outside)):
        return sums[0][0]
    return None


def _lone_number(sentence: str) -> str | None:
    numbers = NUMBER_IN_TEXT.findall(sentence)
    if BOUND.search(sentence):
        return None
    return str(numbers[0]) if len(numbers) == 1 and not re.search(r"[-+*/=^<>]\s*[\d$(]", sentence) else None
