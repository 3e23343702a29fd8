"""A data set's reference as it stands: a bare answer, or the sentence or solution that ends in one."""

from __future__ import annotations

from typing import Any

from verifiers.answers.described import describe
from verifiers.answers.structured import Answer
from verifiers.base import AnswerType, ParseError
from verifiers.extraction.rules import auto, boxed, gsm8k

MAX_MISSING_BRACES = 3


def parse_stated(kind: AnswerType, reference: str) -> Any:
    """The answer that a reference states, read by its type. Raises `ParseError` where there is none."""
    stated = boxed(reference) or (gsm8k(reference) if "####" in reference else None) or reference
    try:
        answer = _parse(kind, stated)
    except ParseError:
        found = auto(stated)
        if found is None or found == stated:
            raise
        answer = kind.parse(found)
    return describe(answer, stated, is_reference=True) if isinstance(answer, Answer) else answer


def _parse(kind: AnswerType, stated: str) -> Any:
    try:
        return kind.parse(stated)
    except ParseError:
        # Files cut at a brace lack the last ones: \\frac{11}{2^{20}
        missing = stated.count("{") - stated.count("}")
        if not 0 < missing <= MAX_MISSING_BRACES:
            raise
        return kind.parse(stated.rstrip(" $") + "}" * missing)
