"""Words in normal form, the way two phrases are compared."""

from __future__ import annotations

import re
import unicodedata

_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox|operatorname)(?![A-Za-z])"
)
# A point inside a number and a minus sign before one are part of the word: 3.5 is not 35, -5 is not 5.
_NOT_LETTERS = re.compile(r"(?:(?!(?<=\d)\.(?=\d)|(?<![^\s(])-(?=\d))[\W_])+")


def normal_words(text: str) -> str:
    r"""Letters and digits in lower case, words one blank apart, without `\text{...}` and punctuation."""
    plain = _TEXT_COMMAND.sub(" ", text)
    plain = re.sub(r"\\[,;:! ]|\\quad|~", " ", plain)
    return _NOT_LETTERS.sub(" ", unicodedata.normalize("NFKC", plain)).strip().casefold()
