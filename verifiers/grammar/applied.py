"""Letters before brackets: functions with an argument, or factors."""

from __future__ import annotations

import re
from functools import cached_property

from verifiers import policy
from verifiers.grammar.commands import CommandParser
from verifiers.grammar.nodes import Group, Node, Op, Sym
from verifiers.grammar.tokens import Token

_NEVER_APPLIED = frozenset({"pi", "e", "i", "oo", "ldots", "emptyset"})
_BRACKETED_NUMBER = re.compile(r"[-+ ]*(?:n(?: / n)?|oo|[dt]?frac (?:\{ n \} \{ n \}|n n|n)) \)(?: |$)")


def _letter(name: str) -> str:
    """The letter of f', f_1 and dot y."""
    return name.rstrip("'").partition("_")[0]


def _bare_letters(tokens: list[Token]) -> frozenset[str]:
    """The letters that stand somewhere without a bracket after them: factors, and no functions."""
    bare = set()
    for position, token in enumerate(tokens):
        if token.kind != "sym":
            continue
        after = position + 1
        while tokens[after].value == "'":
            after += 1
        if tokens[after].value == "_":  # another letter
            continue
        if tokens[after].value == "^":
            after = _after_script(tokens, after + 1)
        if tokens[after].value != "(":
            bare.add(token.value)
    return frozenset(bare)


def _after_script(tokens: list[Token], start: int) -> int:
    """The position after an exponent: a brace group, or one token."""
    depth = 0
    for position in range(start, len(tokens)):
        depth += {"{": 1, "}": -1}.get(tokens[position].value, 0)
        if depth == 0 and tokens[position].value not in ("-", "+"):
            return min(position + 1, len(tokens) - 1)
    return len(tokens) - 1


class AppliedParser(CommandParser):
    """Tells f(x) from x(x + 1) by the rule in `policy`."""

    @cached_property
    def bare_letters(self) -> frozenset[str]:
        """The letters that this answer also has without brackets."""
        return _bare_letters(self.tokens)

    def applied(self, node: Node) -> Node:
        """f(x) where the letter before the bracket is a function by `policy`'s rule; else the node itself."""
        head = node.args[0] if isinstance(node, Op) and node.name == "pow" else node
        if self.token.value != "(" or self.token.kind != "op" or not isinstance(head, Sym):
            return node
        if head.name in _NEVER_APPLIED or head.name.startswith(('"', "set ")):
            return node
        number = self.bracketed_number() and head is node
        if not policy.is_function_value(head.name, number, _letter(head.name) in self.bare_letters):
            return node
        argument = self.brackets(self.advance().value)
        if not isinstance(argument, Group) or argument.brackets != "()":
            return Op("call", (node, argument))
        # F(1, 2) is a point.
        return Op("mul", (node, argument)) if head.name.isupper() else Op("call", (node, *argument.items))

    def bracketed_number(self) -> bool:
        """Whether the bracket that opens here holds one number, signed or a fraction, and nothing else."""
        values = [token.value for token in self.tokens[self.position + 1 : self.position + 10]]
        kinds = [token.kind for token in self.tokens[self.position + 1 : self.position + 10]]
        shape = " ".join("n" if kind == "num" else value for kind, value in zip(kinds, values, strict=True))
        return _BRACKETED_NUMBER.match(shape) is not None
