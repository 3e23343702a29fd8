"""A cursor over tokens, and what the layers of the parser ask of each other."""

from __future__ import annotations

from verifiers.base import ParseError
from verifiers.grammar.nodes import MAX_DEPTH, Node
from verifiers.grammar.tokens import END, Token


class Cursor:
    """A position in a token list; the layers above read commands, atoms and operators."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.abs_depth = 0
        self.set_depth = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.position]

    def advance(self) -> Token:
        token = self.tokens[self.position]
        if token is not END:
            self.position += 1
        return token

    def accept(self, value: str) -> bool:
        if self.token.value == value and self.token.kind in ("op", "cmd"):
            self.position += 1
            return True
        return False

    def expect(self, value: str) -> None:
        if not self.accept(value):
            found = "the end" if self.token is END else repr(self.token.value)
            raise ParseError(f"expected {value!r} before {found}")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ParseError(f"more than {MAX_DEPTH} nested brackets")

    # Implemented by AtomParser.
    def power(self) -> Node:
        raise NotImplementedError

    def atom(self) -> Node:
        raise NotImplementedError

    def script(self, raised: bool = True) -> Node:
        raise NotImplementedError

    def argument(self) -> Node:
        raise NotImplementedError

    def braces(self) -> Node:
        raise NotImplementedError

    def brackets(self, opening: str, closers: tuple[tuple[str, str], ...] = ()) -> Node:
        raise NotImplementedError

    def starts_factor(self, previous: Node) -> bool:
        raise NotImplementedError

    # Implemented by Parser.
    def listing(self, brackets: str = "") -> Node:
        raise NotImplementedError

    def statement(self) -> Node:
        raise NotImplementedError

    def additive(self) -> Node:
        raise NotImplementedError

    def term(self) -> Node:
        raise NotImplementedError

    def set_expression(self) -> Node:
        raise NotImplementedError
