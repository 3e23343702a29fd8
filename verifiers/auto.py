"""The type is inferred from the reference."""

from __future__ import annotations

from typing import Any, ClassVar

from verifiers.base import AnswerType
from verifiers.plain import PlainNumber, read_plain, same_plain
from verifiers.text import Text


class Auto(AnswerType):
    """Numbers by value, everything else by its words."""

    name: ClassVar[str] = "auto"

    def parse(self, text: str) -> Any:
        return read_plain(text) or Text().parse(text)

    def equal(self, reference: Any, given: Any) -> bool:
        if isinstance(reference, PlainNumber) and isinstance(given, PlainNumber):
            return same_plain(reference, given)
        return bool(reference == given)
