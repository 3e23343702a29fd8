"""Tokens of an answer, and the list of them that the lexer grows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from verifiers.base import ParseError
from verifiers.grammar.nodes import MAX_DEPTH, MAX_TOKENS


@dataclass(frozen=True, slots=True)
class Token:
    """kind: num, sym, fn, cmd, op, text, word or end. spaced: whether a blank stands before it."""

    kind: str
    value: str
    spaced: bool = False


END: Final = Token("end", "")

ENDS_HERE = re.compile(r"\s*(?:$|[,;.)\]^/}])")
"""What follows a unit, and never the argument of a function."""


def brace_content(text: str, start: int) -> tuple[str, int]:
    """The content of the brace that opens at `start` and the index after its closing one."""
    depth = 0
    index = start
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 2
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : index], index + 1
        index += 1
    raise ParseError("a brace is never closed")


class TokenList:
    """A text, the place that has been read up to, and the tokens so far."""

    def __init__(self, text: str, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise ParseError(f"more than {MAX_DEPTH} nested braces")
        self.text = text
        self.depth = depth
        self.index = 0
        self.spaced = False
        self.brackets = 0
        self.tokens: list[Token] = []

    def add(self, kind: str, value: str) -> None:
        if len(self.tokens) >= MAX_TOKENS:
            raise ParseError(f"more than {MAX_TOKENS} symbols in the answer")
        if value in ("(", "[", "\\{", "langle"):
            self.brackets += 1
        elif value in (")", "]", "\\}", "rangle"):
            self.brackets -= 1
        self.tokens.append(Token(kind, value, self.spaced))
        self.spaced = False

    def follows_number(self) -> bool:
        return bool(self.tokens) and (self.tokens[-1].kind == "num" or self.tokens[-1].value == ")")

    def follows_value(self) -> bool:
        return bool(self.tokens) and (
            self.tokens[-1].kind in ("num", "text") or self.tokens[-1].value in ")}/"
        )

    def unit_here(self) -> bool:
        """Whether 25 min or 25 sec ends here, so that it is no function."""
        return self.follows_value() and bool(ENDS_HERE.match(self.text, self.index))
