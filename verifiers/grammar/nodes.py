"""The tree that the grammar makes of an answer, and the bounds on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

MAX_CHARS = 6000
MAX_TOKENS = 2500
MAX_DEPTH = 40
MAX_TREE_DEPTH = 120
"""Deeper trees, as of 1/2/2/2... and of 5!!!..., are refused: what walks over them calls itself."""
MAX_DIGITS = 2000
MAX_ITEMS = 400


@dataclass(frozen=True, slots=True)
class Num:
    """A literal number. decimals: digits written after the point; None for an integer or a computed value."""

    value: Fraction
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable, a constant (pi, e, i, oo) or an unknown command, by its normal name."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """A function or operator: add, mul, div, pow, neg, root, fact, abs, floor, pm, mp, sin, log, ..."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Rel:
    """sides[0] ops[0] sides[1] ops[1] ...; ops out of = != < <= > >= approx in."""

    sides: tuple[Node, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A bracketed list: (a, b), [a, b), {a, b}, <a, b>; brackets "" for a bare list."""

    brackets: str
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class SetOp:
    """union, intersection or difference of sets."""

    name: str
    args: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Builder:
    """{element | condition, ...}."""

    element: Node
    conditions: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of equal length."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its unit in normal form ("cm^2", "%", "degree", "dollar")."""

    value: Node
    unit: str


@dataclass(frozen=True, slots=True)
class Ratio:
    """a : b : c, or a time of day; `suffix` is "am", "pm" or "", digits are what was written."""

    parts: tuple[Node, ...]
    digits: tuple[str, ...] = ()
    suffix: str = ""


@dataclass(frozen=True, slots=True)
class Cases:
    """A piecewise definition: (value, condition) in order."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Big:
    """An unevaluated sum, product, integral or limit; never equal to its value."""

    name: str
    parts: tuple[Node, ...]


Node = Num | Sym | Op | Rel | Group | SetOp | Builder | Matrix | Quantity | Ratio | Cases | Big


def with_parts(node: Node, change: Callable[[Node], Node]) -> Node:
    """The node with every direct part changed; a number, symbol or other leaf as it is."""
    match node:
        case Op() | SetOp():
            return replace(node, args=tuple(map(change, node.args)))
        case Rel():
            return replace(node, sides=tuple(map(change, node.sides)))
        case Group():
            return replace(node, items=tuple(map(change, node.items)))
        case Big() | Ratio():
            return replace(node, parts=tuple(map(change, node.parts)))
        case Matrix() | Cases():
            return replace(node, rows=tuple(tuple(map(change, row)) for row in node.rows))
        case Quantity():
            return replace(node, value=change(node.value))
        case Builder():
            return Builder(change(node.element), tuple(map(change, node.conditions)))
    return node


def parts_of(node: Node) -> tuple[Node, ...]:
    """The direct parts of a node."""
    found: list[Node] = []
    with_parts(node, lambda part: found.append(part) or part)  # type: ignore[func-returns-value]
    return tuple(found)


def is_deeper(node: Node, limit: int) -> bool:
    """Whether a tree has more than so many levels."""
    level: list[Node] = [node]
    for _ in range(limit):
        level = [part for one in level for part in parts_of(one)]
        if not level:
            return False
    return True


def substitute(node: Node, name: str, value: Node) -> Node:
    """The tree with a variable replaced everywhere."""
    if isinstance(node, Sym):
        return value if node.name == name else node
    return with_parts(node, lambda part: substitute(part, name, value))
