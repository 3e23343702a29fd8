r"""Numerals as they are written: 1,234.5, 10{,}000, 3.5e-4, 0.\overline{36}, 0.333..., 2A_{16}."""

from __future__ import annotations

import re

from verifiers.base import ParseError
from verifiers.grammar.nodes import MAX_DIGITS

_GROUPED = r"(?:(?: ?\{\s*,\s*\}|,(?:\\! ?)+|\\,|\\!|\\ |\\;|\\:|~|,\\,| (?=\d{3}(?!\d)))\d{3}(?!\d))"
_NUMBER = re.compile(
    rf"(?P<grouped>\d{{1,3}}{_GROUPED}+)(?P<gdec>\.\d+)?"
    r"|(?P<whole>\d+)?(?P<dec>\.\d+)(?P<exp>[eE][-+]?\d+)?|(?P<int>\d+)(?P<iexp>[eE][-+]?\d+)?(?:\.(?!\d))?",
    re.ASCII,
)
_COMMA_GROUPED = re.compile(r"(?!0)\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?(?!,\d)", re.ASCII)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{(\d+)\}|(\d))", re.ASCII)
_DOTS = re.compile(
    r"(\d{0,20})\.(\d{0,6}?)(\d{1,6}?)\3{2,20}(?:\\[lc]?dots(?:[cb]|(?![A-Za-z]))|\.\.\.)", re.ASCII
)
_LETTER_NUMERAL = re.compile(r"(\d*[A-Z][A-Z\d]{0,30})_(?:\{(\d\d)\}|(\d\d))(?!\d)", re.ASCII)


def starts_with_point(text: str, start: int) -> bool:
    r"""Whether the point at ``start`` begins a numeral: .5 or .\overline{3}."""
    return text[start + 1 : start + 2].isdigit() or _REPEATING.match(text, start) is not None


def numeral(text: str, start: int, *, commas: bool) -> tuple[str, int]:
    """The numeral at ``start`` and the index after it.

    A repeating decimal is whole|decimals|repeating digits; others are as Python writes them. ``commas``: a
    comma may group thousands. Raises `ParseError` for more digits than are read.
    """
    match: re.Match[str] | None
    if match := _REPEATING.match(text, start):
        value = "|".join((match[1] or "0", match[2], match[3] or match[4]))
    elif match := _DOTS.match(text, start):
        value = "|".join((match[1] or "0", match[2], match[3]))
    elif commas and (match := _COMMA_GROUPED.match(text, start)):
        value = match[0].replace(",", "")
    elif match := _NUMBER.match(text, start):
        value = match[0].rstrip(".")
        if match["grouped"]:
            value = re.sub(r"[^\d]", "", match["grouped"]) + (match["gdec"] or "")
    else:
        raise ParseError(f"unreadable number at {text[start : start + 20]!r}")
    if len(match[0]) > MAX_DIGITS:
        raise ParseError(f"a number of {len(match[0])} digits, at most {MAX_DIGITS} are read")
    return value, match.end()


def letter_numeral(text: str, start: int) -> tuple[str, int] | None:
    """The value of a numeral with letters for digits, as 2A_{16}, and the index after its base."""
    match = _LETTER_NUMERAL.match(text, start)
    if match is None or not 11 <= (base := int(match[2] or match[3])) <= 36:
        return None
    digits = match[1]
    # A_{12} and AB_{12} are names.
    if len(digits) < 2 or (digits.isalpha() and base != 16) or int(max(digits), 36) >= base:
        return None
    return str(int(digits, base)), match.end()
