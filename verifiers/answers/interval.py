"""Intervals, their unions, and inequalities: sets of real numbers."""

from __future__ import annotations

from typing import ClassVar

from verifiers.answers.structured import Structured
from verifiers.equality.realsets import is_set_like, real_set
from verifiers.grammar.nodes import Node


class Interval(Structured):
    """A set of real numbers: `[0, 1)`, `x > 3`, `(-oo, 2] \\cup {5}`."""

    name: ClassVar[str] = "interval"
    wanted = "an interval, a union of intervals or an inequality"

    def accepts(self, node: Node) -> bool:
        return is_set_like(node) or real_set(node) is not None
