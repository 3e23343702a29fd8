"""Answers that no words announce: a conclusion, the last line of a solution, a sentence that stands alone.

Everything here takes text without thinking and without boxes, and time linear in its length.
"""

from __future__ import annotations

import re
from fractions import Fraction

from verifiers.extraction.beside_box import unit_after
from verifiers.extraction.markup import FORMULA, WORD, first_sentence, tidy, with_unit
from verifiers.extraction.prose import (
    ABOUT,
    COPULA,
    MATHEMATICAL,
    MAX_BARE_WORDS,
    only_value,
    value_named,
    without_remarks,
)
from verifiers.extraction.wording import BOUND, HYPOTHETICAL, NEGATION, NUMBER_IN_TEXT, not_itself
from verifiers.grammar.nodes import Num
from verifiers.grammar.units import changes_value, convert, normal_unit

MAX_CONCLUSION_CHARS = 300

_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence|so|consequently)\b[,\s]", re.IGNORECASE)


def conclusion(text: str) -> str | None:
    """What the last sentence that starts with "therefore" (thus, hence, so) names, if it ends the text."""
    starts = list(_CONCLUSION.finditer(text[-MAX_CONCLUSION_CHARS:]))
    if not starts:
        return None
    tail = text[-MAX_CONCLUSION_CHARS:][starts[-1].end() :]
    tail = tail.replace("**", "")
    sentence = first_sentence(tail)
    if NUMBER_IN_TEXT.search(tail[len(sentence) :]):
        return None  # more is worked out after it
    sentence = tidy(without_remarks(tidy(sentence)))
    if NEGATION.search(sentence):
        return None
    formulas = list(FORMULA.finditer(sentence))
    if formulas and not COPULA.search(sentence[: formulas[-1].start()]):
        return None
    named = with_unit(value_named(sentence))
    return None if named == sentence and len(WORD.findall(FORMULA.sub(" ", sentence))) >= 3 else named


def short_sentence(text: str) -> str | None:
    """What a line of few words names ("He has 10 left", "The roots are 2 and 3"); no question, no denial."""
    text = text.strip()
    if "\\$" in text:
        text = text.replace("\\$", "$")
    if (
        len(text) > MAX_CONCLUSION_CHARS
        or "\n" in text
        or NEGATION.search(text)
        or "?" in text
        or "\\" in text
        or FORMULA.search(text)
        or _TWO_SENTENCES.search(text)
        or HYPOTHETICAL.match(text)
    ):
        return None
    text = text.replace("**", "")
    words = WORD.findall(text)
    if len(words) > MAX_BARE_WORDS:
        return None
    labelled = _LABELLED_LINE.fullmatch(text)
    if labelled:
        return value_named(tidy(labelled[1]))
    two = len(words) == 2 and text[0].isalpha() and words[0].lower() not in MATHEMATICAL
    if len(words) >= 3 or (two and not BOUND.search(text)):
        value = only_value(text)
        if value is not None:
            return value
    copulas = list(_SAYS.finditer(text))
    if len(copulas) != 1 or not text[0].isalpha() or NUMBER_IN_TEXT.search(text[: copulas[0].start()]):
        return None
    tail = tidy(text[copulas[0].end() :])
    few = len(WORD.findall(tail)) <= (3 if NUMBER_IN_TEXT.search(tail) else 2)
    return ABOUT.sub("", tail) if tail and few and not not_itself(tail + " ") else None


_TWO_SENTENCES = re.compile(r"[.!]\s+[A-Z]")
_LABELLED_LINE = re.compile(
    r"(?:the\s+)?(?:final\s+)?(?:total|result|solution|sum|output|final|value|number)(?:\s+[a-z]+){0,3}\s*[:=]\s*(.+)",
    re.IGNORECASE,
)
_SAYS = re.compile(
    r"(?:\b(?:is|are|was|were|equals|equal to|becomes|gives|get|will be|would be|must be)\b|'s\b)\s*:?\s*",
    re.IGNORECASE,
)


def named_before(text: str) -> str | None:
    """The value of "47 minutes is the answer" and of {"answer": 47}."""
    found = list(_NAMED_BEFORE.finditer(text)) or list(_JSON_FIELD.finditer(text))
    if not found or NEGATION.search(found[-1][0]):
        return None
    return tidy(next(filter(None, found[-1].groups()), "")) or None


_NAMED_BEFORE = re.compile(
    r"""
    (?:^|(?<=[\s(]))((?:\\?\$)?-?\d[\d,.]{0,20}%?(?:\ [a-z]{1,20}){0,2})
    \s+is\s+(?:the|my|our)\s+(?:final\s+)?answer\b
    """,
    re.MULTILINE | re.VERBOSE,
)
_JSON_FIELD = re.compile(
    r"""["'](?:final_?)?answer["']\s*:\s*(?:"([^"\n]{1,80})"|([^",{}\n]{1,80}?))\s*[,}]""", re.IGNORECASE
)


def choice_named(text: str) -> str | None:
    """The letter in "so option C is correct" at the end of a text."""
    found = _CHOICE_NAMED.search(text[-MAX_CONCLUSION_CHARS:])
    return found[1] if found else None


_CHOICE_NAMED = re.compile(
    r"""
    (?:\b[Oo]ption\s+|\b[Cc]hoice\s+|(?<![\w\ ])\ ?|^)\(?\b([A-J])\b\)?
    \s+is\s+(?:the\s+)?(?:correct|right|best)(?:\s+(?:answer|option|choice|one))?\s*[.!]?\s*$
    """,
    re.VERBOSE,
)


def closing_line(text: str) -> str | None:
    """What the last line of a worked solution sets apart: in bold, or after "total =", "cost:"."""
    text = text.strip()
    start = text.rfind("\n") + 1
    line = text[start:].strip()
    if start == 0 or len(line) > MAX_CONCLUSION_CHARS or NEGATION.search(line) or "?" in line or "\\" in line:
        return None
    bold = _BOLD_END.search(line)
    if bold:
        named = tidy(bold[1])
        labelled = _ANY_LABEL.fullmatch(named)
        return value_named(tidy(labelled[1]) if labelled else named) or None
    if line.startswith("#"):
        return value_named(tidy(line)) or None
    if text[:start].rstrip().endswith(":") and _BARE_SUM.fullmatch(line):
        return tidy(line)
    labelled = _ANY_LABEL.fullmatch(line)
    if labelled and "=" not in labelled[1]:
        return value_named(tidy(labelled[1])) or None
    return None


_BOLD_END = re.compile(r"\*\*([^*\n]+)\*\*[^*\n\d]{0,60}$")
_BARE_SUM = re.compile(r"[\d\s+*/×÷.,$()-]{3,200}=\s*\$?-?[\d.,]+")
_ANY_LABEL = re.compile(
    r"[A-Za-z][^=:\n\d]{0,80}(?::|=(?:[^=\n]{0,80}=)?)\s*\$?(-?[\d.,]+(?:\s+[a-z]+){0,2})\.?"
)


_FIRST_LINE = re.compile(
    r"""
    \s*\**((?:\\?\$)?-?\d[^\n*]{0,40}?)\**\.?[ \t]*\n
    \s*\**(?:explanation|reason(?:ing)?|justification|working|---)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def first_line(text: str) -> str | None:
    """The number that an explanation follows."""
    found = _FIRST_LINE.match(text)
    return tidy(found[1]) if found else None


_LEADING = re.compile(
    r"""
    (?:about\ |approximately\ |exactly\ )?
    ((?:-\s?)?(?:\\?\$|[€£¥₹]|Rs\.?\s?)?-?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+|\s\d+/\d+)?\s?(?:\\?%)?
     (?:\s(?:hundred|thousand|million|billion|dozen)\b|\s?(?:[apAP]\.?[mM]\b\.?|o'clock))?
     |\$-?\d[\d,.]*\$)
    (?:\s*[.;:]\s+(?=\S)|(?:\s*,\s*|\s+)(?=[A-Za-z(]))
    """,
    re.VERBOSE,
)
_SEVERAL_OR_MORE = re.compile(
    r"""
    \b(?:or|and|to|plus|minus|through|until|versus|vs)\b[^.;()]{0,12}[\d$]   # 12 or 13, 5 to 7 days, 5 plus 3
    | ^(?:times|over|x|divided\ by|multiplied\ by|mod)\s+\\?\$?\d
    | [=+*/^<>]\s*\\?\$?\d | \\
    | ^(?:days?|hours?|minutes?|feet|foot|yards?|pounds?|dollars?|kilograms?|meters?)\s+  # 2 hours 30 minutes
      \d[\d.]*\s*(?:hours?|minutes?|seconds?|inch(?:es)?|feet|ounces?|cents?|grams?|centimeters?)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def leading_number(line: str) -> str | None:
    """The number that leads an answer line, with its unit, whatever words and numbers follow.

    "$12.00 for lunch after 5 days" names 12 dollars. None where the line does not lead with a number that
    words follow, and where it goes on with another value or an operation ("12 or 13", "5 to 7 days").
    """
    number = _LEADING.match(line)
    if number is None:
        return None
    rest = line[number.end() :]
    other = _OTHER_COUNT.match(rest)
    if other and not _one_dimension(other[1], other[2]):
        return number[1].strip() + unit_after(line[number.end(1) :])
    words = WORD.findall(rest)
    if changes_value(Num(Fraction(0)), " ".join(words[:1]).lower()):
        return line  # "42 tenths of a mile" is not 42
    if _SEVERAL_OR_MORE.search(_IN_BRACKETS.sub("", rest)):
        return None
    if len(words) < 3 and not NUMBER_IN_TEXT.search(rest) and not rest.startswith("of "):
        return None  # "18 dollars" is read as it stands
    return number[1].strip() + unit_after(line[number.end(1) :])


def _one_dimension(first: str, second: str) -> bool:
    """Whether two nouns measure the same: hours and minutes do, dollars and days do not."""
    return convert(normal_unit(first))[1] == convert(normal_unit(second))[1]


_IN_BRACKETS = re.compile(r"\([^()]*\)")
_OTHER_COUNT = re.compile(r"([a-z]{3,20}) and \\?\$?\d[\d,.]* ([a-z]{3,20})[\s.]*$")
