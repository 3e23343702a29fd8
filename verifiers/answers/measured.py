"""Measured quantities (lengths, money, percentages, angles ...) and times of day."""

from __future__ import annotations

from typing import ClassVar

from verifiers.answers.structured import Structured
from verifiers.equality.exact import free_symbols
from verifiers.equality.scalars import quantity_of
from verifiers.grammar.nodes import Group, Node, Num, Op, Quantity, Ratio, Rel


class Units(Structured):
    """A constant with a unit; the same dimension is converted, a missing unit is forgiven on either side."""

    name: ClassVar[str] = "units"
    wanted = "a number with a unit"

    def accepts(self, node: Node) -> bool:
        if isinstance(node, Rel | Group | Ratio):
            return False
        node = quantity_of(node)
        return isinstance(node, Num | Op | Quantity) and not free_symbols(node)


class Time(Structured):
    """A time of day or a ratio: `6:30`, `08:34 PM`, `3 : 2`."""

    name: ClassVar[str] = "time"
    wanted = "a time such as 6:30"

    def accepts(self, node: Node) -> bool:
        return isinstance(node, Ratio)
