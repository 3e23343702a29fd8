"""Finite sets, ordered tuples and unordered lists."""

from __future__ import annotations

from typing import ClassVar

from verifiers.answers.structured import Structured
from verifiers.equality.relations import labelled
from verifiers.grammar.nodes import Group, Matrix, Node, Sym


def _value(node: Node) -> Node:
    pair = labelled(node)
    return node if pair is None else pair[1]


class FiniteSet(Structured):
    """`{1, 2, 3}`: no order, repetitions do not count; a list without braces is read as a set too."""

    name: ClassVar[str] = "set"
    wanted = "a finite set"

    def accepts(self, node: Node) -> bool:
        value = _value(node)
        return value == Sym("emptyset") or (
            isinstance(value, Group) and value.brackets in ("\\{\\}", "", "and", "or")
        )


class Tuple(Structured):
    """`(1, 2)` or `<1, 2>`: the order counts; a column is a tuple too."""

    name: ClassVar[str] = "tuple"
    wanted = "a tuple"

    def accepts(self, node: Node) -> bool:
        return isinstance(_value(node), Group | Matrix)


class List(Structured):
    """`1, 2 and 3`: each item once, in any order; one item alone is a list of one."""

    name: ClassVar[str] = "list"
    wanted = "a list"

    def accepts(self, node: Node) -> bool:
        return True
