"""A data set's reference as it stands: a bare answer, or the sentence or solution that ends in one."""

from __future__ import annotations

from typing import Any

from verifiers.base import AnswerType, ParseError
from verifiers.extraction.rules import auto, boxed, gsm8k


def parse_stated(kind: AnswerType, reference: str) -> Any:
    """The answer that a reference states, read by its type. Raises `ParseError` where there is none."""
    stated = boxed(reference) or (gsm8k(reference) if "####" in reference else None) or reference
    try:
        return kind.parse(stated)
    except ParseError:
        found = auto(stated)
        if found is None or found == stated:
            raise
        return kind.parse(found)
