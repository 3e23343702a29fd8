"""Numbers and fractions in English words."""

from __future__ import annotations

import re

_UNITS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15,
    "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80,
    "ninety": 90,
}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip


def spelled_fraction(text: str) -> str | None:
    """ "one half", "two-thirds", "a quarter" as 1/2, 2/3, 1/4; None for any other text."""
    words = text.lower().replace("-", " ").split() if len(text) < 40 else []
    if words == ["half"]:
        return "1/2"
    if len(words) != 2:
        return None
    top = 1 if words[0] in ("a", "an") else _UNITS.get(words[0])
    bottom = _PARTS.get(words[1]) or _PARTS.get(words[1].removesuffix("s"))
    return f"{top}/{bottom}" if top and bottom else None


def spelled_number(text: str) -> int | None:
    """The value of a number in English words ("twenty-one", "one hundred and five"); None for any other text.

    Only a text that is nothing but one such number is read, so "one and two" is no number.
    """
    text = text.strip(" $")
    if len(text) > 100 or not text.strip(" .{}\\").isascii():
        return None
    words = re.sub(r"\\(?:text|mbox|textbf)\b|[{}.]", " ", text).replace("-", " ").lower().split()
    if not words or any(
        w not in _UNITS and w not in _TENS and w not in _SCALES and w != "and" for w in words
    ):
        return None
    total = current = 0
    previous = ""
    for word in words:
        if word == "and":
            if previous not in _SCALES:
                return None
        elif word in _SCALES:
            if previous in ("", "and"):
                return None
            scale = _SCALES[word]
            current *= scale
            if scale > 100:
                total, current = total + current, 0
        else:
            value = _UNITS.get(word, _TENS.get(word, 0))
            if previous in _UNITS or (previous in _TENS and not 1 <= value <= 9):
                return None
            current += value
        previous = word
    return None if previous == "and" else total + current
