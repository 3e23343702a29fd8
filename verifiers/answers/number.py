"""One real number: what GSM8K, SVAMP and MAWPS ask for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from verifiers.base import AnswerType, ParseError
from verifiers.grammar.plain import PlainNumber, read_plain, same_plain

if TYPE_CHECKING:
    from verifiers.answers.structured import Answer
    from verifiers.grammar.nodes import Node

_LEADING_NUMBER = re.compile(r"\s*[-+]?[\\$€£¥]*\s*[\d.,]+%?", re.ASCII)
_COUNTED_NOUN = re.compile(r"\s*[A-Za-z][A-Za-z .'/-]{0,60}")
_PERCENT = re.compile(r"\s*(?:per ?cent|pct)\b", re.IGNORECASE)


class Number(AnswerType):
    """A number, alone or with what it counts ("18 apples"). Decimals agree to the reference's own digits."""

    name: ClassVar[str] = "number"

    def parse(self, text: str) -> PlainNumber | Answer:
        """The exact value. Raises `ParseError` for anything that is not one number."""
        plain = read_plain(text)
        if plain is None:
            match = _LEADING_NUMBER.match(text[:300])
            if match and _COUNTED_NOUN.fullmatch(text[match.end() :]):
                plain = read_plain(match[0].rstrip(".,") + "%" * bool(_PERCENT.match(text, match.end())))
        if plain is not None:
            return plain
        from verifiers.answers.auto import Auto

        answer = Auto().parse(text)
        if answer.node is None or not _is_constant(answer.node):
            raise ParseError(f"expected one number, got {text[:60]!r}")
        return answer

    def equal(self, reference: PlainNumber | Answer, given: PlainNumber | Answer) -> bool:
        if isinstance(reference, PlainNumber) and isinstance(given, PlainNumber):
            return same_plain(reference, given)
        from verifiers.answers.structured import answers_equal

        return answers_equal(_as_answer(reference), _as_answer(given))


def _is_constant(node: Node) -> bool:
    """A value without variables, alone, with its unit, or named as in x = 3."""
    from verifiers.equality.exact import free_symbols
    from verifiers.equality.relations import labelled
    from verifiers.grammar.nodes import Num, Op, Quantity

    pair = labelled(node)
    value = node if pair is None else pair[1]
    return isinstance(value, Num | Op | Quantity) and not free_symbols(value)


def _as_answer(number: PlainNumber | Answer) -> Answer:
    if not isinstance(number, PlainNumber):
        return number
    from verifiers.answers.structured import Answer
    from verifiers.grammar.nodes import Num, Quantity

    value = Num(number.value, number.decimals)
    node = Quantity(value, number.mark) if number.mark else value
    return Answer(f"{number.value}|{number.decimals}|{number.mark}", "", node)
