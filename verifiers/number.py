"""One real number: what GSM8K, SVAMP and MAWPS ask for."""

from __future__ import annotations

import re
from typing import ClassVar

from verifiers.base import AnswerType, ParseError
from verifiers.plain import PlainNumber, read_plain, same_plain

_COUNTED_NOUN = re.compile(r"\s*[A-Za-z][A-Za-z .'/-]{0,60}")


class Number(AnswerType):
    """A number, alone or with what it counts ("18 apples"). Decimals agree to the reference's own digits."""

    name: ClassVar[str] = "number"

    def parse(self, text: str) -> PlainNumber:
        """The exact value. Raises `ParseError` for anything that is not one number."""
        plain = read_plain(text)
        if plain is None:
            match = re.match(r"\s*[-+]?[\\$€£¥]*\s*[\d.,]+%?", text[:300])
            if match and _COUNTED_NOUN.fullmatch(text[match.end() :]):
                plain = read_plain(match[0].rstrip(".,"))
        if plain is None:
            raise ParseError(f"expected one number, got {text[:60]!r}")
        return plain

    def equal(self, reference: PlainNumber, given: PlainNumber) -> bool:
        return same_plain(reference, given)
