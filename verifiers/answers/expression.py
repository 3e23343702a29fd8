"""Expressions and equations."""

from __future__ import annotations

from typing import ClassVar

from verifiers.answers.structured import Structured
from verifiers.equality.relations import labelled
from verifiers.grammar.nodes import Big, Cases, Node, Num, Op, Quantity, Ratio, Rel, Sym


class Expression(Structured):
    """One value: a number, a formula in variables, or `name = formula`."""

    name: ClassVar[str] = "expression"
    wanted = "one expression"

    def accepts(self, node: Node) -> bool:
        pair = labelled(node)
        value = node if pair is None else pair[1]
        return isinstance(value, Num | Sym | Op | Quantity | Ratio | Big | Cases)


class Equation(Structured):
    """An equation, equal to another where both sides' difference is a constant multiple of the other's."""

    name: ClassVar[str] = "equation"
    wanted = "an equation"

    def accepts(self, node: Node) -> bool:
        return isinstance(node, Rel) and "=" in node.ops
