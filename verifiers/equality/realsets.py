"""Sets of real numbers as unions of intervals and points, from brackets, inequalities and set operations."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key
from typing import Any, TypeGuard

from verifiers.base import ParseError
from verifiers.equality.exact import free_symbols
from verifiers.equality.numeric import Numeric
from verifiers.equality.scalars import scalars_equal
from verifiers.equality.values import infinity_sign, values_equal
from verifiers.grammar.nodes import Builder, Group, Node, Num, Op, Ratio, Rel, SetOp, Sym

_BITS = 160
_INTERVALS = {"()": (False, False), "[)": (True, False), "(]": (False, True), "[]": (True, True)}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!=", "=": "="}
_FUNCTION_NAMES = frozenset("fghpqFGHPQWEVTSAN")
_INFINITY = Sym("oo")
_MINUS_INFINITY = Op("neg", (_INFINITY,))


@dataclass(frozen=True, slots=True)
class Piece:
    """One interval; a point has equal closed ends. An end is its tree and its approximate value."""

    low: Node
    high: Node
    low_closed: bool
    high_closed: bool


class NotReal(ParseError):
    """An end of an interval is not a real number."""


def _approximate(node: Node) -> Any:
    sign = infinity_sign(node)
    numeric = Numeric(_BITS)
    if sign:
        return numeric.mp.mpf("inf") * sign
    if free_symbols(node):
        raise NotReal("an end of an interval has variables")
    value = numeric.value(node)
    if not numeric.is_real(value):
        raise NotReal("an end of an interval is not real")
    return value.real


def order_of(left: Node, right: Node) -> int:
    """-1, 0 or 1 as left is below, equal to or above right. Raises `NotReal`."""
    a, b = _approximate(left), _approximate(right)
    if a == b or (abs(a - b) <= max(abs(a), abs(b), 1) * 2.0 ** (-_BITS // 2) and values_equal(left, right)):
        return 0
    return -1 if a < b else 1


def normalise(pieces: list[Piece]) -> list[Piece]:
    """Sorted, without empty pieces, overlapping and touching ones merged."""
    kept = []
    for piece in pieces:
        order = order_of(piece.low, piece.high)
        if order < 0 or (order == 0 and piece.low_closed and piece.high_closed):
            kept.append(piece)

    def by_low_end(a: Piece, b: Piece) -> int:
        return order_of(a.low, b.low) or int(b.low_closed) - int(a.low_closed)

    merged: list[Piece] = []
    for piece in sorted(kept, key=cmp_to_key(by_low_end)):
        if merged:
            last = merged[-1]
            gap = order_of(last.high, piece.low)
            if gap > 0 or (gap == 0 and (last.high_closed or piece.low_closed)):
                reach = order_of(last.high, piece.high)
                high, closed = (last.high, last.high_closed) if reach > 0 else (piece.high, piece.high_closed)
                if reach == 0:
                    closed = last.high_closed or piece.high_closed
                merged[-1] = Piece(last.low, high, last.low_closed, closed)
                continue
        merged.append(piece)
    return merged


def intersect(left: list[Piece], right: list[Piece]) -> list[Piece]:
    """The common part of two sets."""
    found = []
    for a in left:
        for b in right:
            low_order, high_order = order_of(a.low, b.low), order_of(a.high, b.high)
            low, low_closed = (a.low, a.low_closed) if low_order > 0 else (b.low, b.low_closed)
            high, high_closed = (a.high, a.high_closed) if high_order < 0 else (b.high, b.high_closed)
            if low_order == 0:
                low_closed = a.low_closed and b.low_closed
            if high_order == 0:
                high_closed = a.high_closed and b.high_closed
            found.append(Piece(low, high, low_closed, high_closed))
    return normalise(found)


def complement(pieces: list[Piece]) -> list[Piece]:
    """The real numbers that are not in the set."""
    found = []
    low: Node = _MINUS_INFINITY
    closed = False
    for piece in pieces:
        found.append(Piece(low, piece.low, closed, not piece.low_closed))
        low, closed = piece.high, not piece.high_closed
    found.append(Piece(low, _INFINITY, closed, False))
    return normalise([_open_infinite(piece) for piece in found])


def _open_infinite(piece: Piece) -> Piece:
    return Piece(
        piece.low,
        piece.high,
        piece.low_closed and not infinity_sign(piece.low),
        piece.high_closed and not infinity_sign(piece.high),
    )


REALS = [Piece(_MINUS_INFINITY, _INFINITY, False, False)]


def is_set_like(node: Node) -> bool:
    """Whether a node can only mean a set: half-open brackets, unions, inequalities, set-builder notation."""
    if isinstance(node, SetOp | Builder):
        return True
    if isinstance(node, Group):
        if node.brackets in ("[)", "(]"):
            return True
        if node.brackets in _INTERVALS and len(node.items) == 2:
            return any(infinity_sign(item) for item in node.items)
        return (
            node.brackets in ("", "or", "and")
            and all(_is_point(i) or (isinstance(i, Rel) and _is_inequality(i)) for i in node.items)
            and not all(map(_is_point, node.items))
        )
    return isinstance(node, Rel) and _is_inequality(node)


def _is_inequality(rel: Rel) -> bool:
    return any(op in ("<", "<=", ">", ">=", "!=") for op in rel.ops) or rel.ops == ("in",)


def _is_point(node: Node) -> TypeGuard[Rel]:
    """The x = 5 of "x < 3 or x = 5"."""
    return (
        isinstance(node, Rel)
        and node.ops == ("=",)
        and is_name(node.sides[0])
        and not free_symbols(node.sides[1])
    )


def real_set(node: Node) -> list[Piece] | None:
    """The set a node means, None where it means none that we can work out."""
    try:
        return _real_set(node)
    except ParseError:
        return None


def _real_set(node: Node) -> list[Piece] | None:
    if isinstance(node, Sym):
        return {"emptyset": [], "set R": REALS}.get(node.name)
    if isinstance(node, SetOp):
        return _operation(node)
    if isinstance(node, Builder):
        if isinstance(node.element, Rel) and node.element.sides[-1] != Sym("set R"):
            return None  # integers between two numbers are no interval
        sets = [_real_set(condition) for condition in node.conditions]
        return _all(sets, intersect)
    if isinstance(node, Rel):
        return _relation(node)
    if not isinstance(node, Group):
        return None
    if node.brackets in _INTERVALS and len(node.items) == 2:
        low, high = node.items
        low_closed, high_closed = _INTERVALS[node.brackets]
        if order_of(low, high) > 0:
            return None
        return normalise([_open_infinite(Piece(low, high, low_closed, high_closed))])
    if node.brackets == "\\{\\}":
        return normalise([Piece(item, item, True, True) for item in node.items])
    if node.brackets in ("", "or", "and") and all(
        is_set_like(item) or _is_point(item) for item in node.items
    ):
        if len({free_symbols(item) for item in node.items if isinstance(item, Rel)}) > 1:
            return None  # x < -2 or y > 2
        sets = [
            [Piece(item.sides[1], item.sides[1], True, True)] if _is_point(item) else _real_set(item)
            for item in node.items
        ]
        common = None if node.brackets == "or" else _all(sets, intersect)
        # "x < 1, x > 3" can only mean either: together they would exclude everything.
        return common or _all(sets, lambda a, b: normalise(a + b))
    return None


def _all(sets: list[list[Piece] | None], combine: Any) -> list[Piece] | None:
    result: list[Piece] | None = None
    for number, pieces in enumerate(sets):
        if pieces is None:
            return None
        result = pieces if number == 0 else combine(result, pieces)
    return result


def _operation(node: SetOp) -> list[Piece] | None:
    sets = [_real_set(arg) for arg in node.args]
    if node.name == "union":
        return _all(sets, lambda a, b: normalise(a + b))
    if node.name == "intersection":
        return _all(sets, intersect)
    return _all(sets, lambda a, b: intersect(a, complement(b)))


def _relation(rel: Rel) -> list[Piece] | None:
    """The solutions of a chain of linear inequalities (or of |linear| against a constant) in one variable."""
    if rel.ops == ("in",):
        return _real_set(rel.sides[1]) if free_symbols(rel.sides[0]) else None
    result: list[Piece] | None = None
    for left, op, right in zip(rel.sides, rel.ops, rel.sides[1:], strict=False):
        if op not in _FLIPPED:
            return None
        pieces = _inequality(left, op, right)
        if pieces is None:
            return None
        result = pieces if result is None else intersect(result, pieces)
    return result


def _inequality(left: Node, op: str, right: Node) -> list[Piece] | None:
    if not free_symbols(left) and free_symbols(right):
        left, op, right = right, _FLIPPED[op], left
    if is_name(left) and is_name(right):
        return None
    if not free_symbols(left) or free_symbols(right) - free_symbols(left):
        return None
    if isinstance(left, Op) and left.name == "abs" and not free_symbols(right):
        upper = _inequality(left.args[0], op, right)
        lower = _inequality(left.args[0], _FLIPPED[op], Op("neg", (right,)))
        if upper is None or lower is None:
            return None
        return intersect(upper, lower) if op in ("<", "<=", "!=") else normalise(upper + lower)
    slope, root = _linear(left, right)
    if root is None:
        return None
    if slope < 0:
        op = _FLIPPED[op]
    pieces = {
        "<": [Piece(_MINUS_INFINITY, root, False, False)],
        "<=": [Piece(_MINUS_INFINITY, root, False, True)],
        ">": [Piece(root, _INFINITY, False, False)],
        ">=": [Piece(root, _INFINITY, True, False)],
        "=": [Piece(root, root, True, True)],
        "!=": [Piece(_MINUS_INFINITY, root, False, False), Piece(root, _INFINITY, False, False)],
    }[op]
    return normalise([_open_infinite(piece) for piece in pieces])


def _linear(left: Node, right: Node) -> tuple[int, Node | None]:
    """The sign of the slope and the root of left - right, linear in one variable or in one name f(x)."""
    names = free_symbols(left) | free_symbols(right)
    if is_name(left) and not free_symbols(right):
        return 1, right
    if len(names) != 1:
        return 0, None
    (name,) = names

    def at(value: int) -> Node:
        number = Num(Fraction(value))
        return Op("add", (substitute(left, name, number), Op("neg", (substitute(right, name, number),))))

    constant = at(0)
    slope = Op("add", (at(1), Op("neg", (constant,))))
    for probe in (3, -7):
        expected = Op("add", (constant, Op("mul", (Num(Fraction(probe)), slope))))
        if not values_equal(at(probe), expected):
            return 0, None
    if not (_is_linear(left, name) and _is_linear(right, name)):
        # x + x(x - 1)(x - 3)(x + 7) passes the probes as well.
        difference = Op("add", (left, Op("neg", (right,))))
        if not values_equal(difference, Op("add", (constant, Op("mul", (Sym(name), slope))))):
            return 0, None
    sign = order_of(slope, Num(Fraction(0)))
    if sign == 0:
        return 0, None
    return sign, Op("neg", (Op("div", (constant, slope)),))


def _is_linear(node: Node, name: str) -> bool:
    """Whether a tree is linear in a variable by its form alone."""
    if name not in free_symbols(node) or isinstance(node, Sym):
        return True
    if not isinstance(node, Op) or node.name not in ("add", "neg", "mul", "div"):
        return False
    if node.name == "mul" and sum(name in free_symbols(arg) for arg in node.args) > 1:
        return False
    if node.name == "div" and name in free_symbols(node.args[1]):
        return False
    return all(_is_linear(arg, name) for arg in node.args)


def substitute(node: Node, name: str, value: Node) -> Node:
    """The tree with a variable replaced."""
    if isinstance(node, Sym):
        return value if node.name == name else node
    if isinstance(node, Op):
        return Op(node.name, tuple(substitute(arg, name, value) for arg in node.args))
    return node


def is_name(node: Node) -> bool:
    """Whether a left side only names what is asked for: x, x_1, f(x), AB, |AB|, AB/CD, a : b, (x, y)."""
    if isinstance(node, Sym):
        return node.name not in ("pi", "e", "i", "oo") and (
            not node.name.startswith("set ") or node.name == "set P"
        )
    if isinstance(node, Op):
        head = node.args[0]
        if isinstance(head, Op) and head.name == "pow" and head.args[1] == Num(Fraction(-1)):
            head = head.args[0]  # f^{-1}(x)
        if node.name == "mul" and isinstance(head, Sym):
            applied = head.name.rstrip("'") in _FUNCTION_NAMES
            return is_name(head) and all(
                is_name(arg)
                or (
                    applied
                    and (isinstance(arg, Num | Group) or (isinstance(arg, Op) and not free_symbols(arg)))
                )
                for arg in node.args[1:]
            )
        if node.name in ("div", "abs"):
            return all(is_name(arg) for arg in node.args)
        return (
            node.name not in ("add", "neg", "pow", "root", "pm", "mp", "mul", "fact", "ln", "log")
            and len(node.args) > 0
        )
    parts: tuple[Node, ...] = ()
    if isinstance(node, Ratio):
        parts = node.parts
    elif isinstance(node, Group):
        parts = node.items
    return bool(parts) and all(is_name(part) for part in parts)


def sets_equal(reference: list[Piece], given: list[Piece]) -> bool:
    """The same pieces, ends compared as values (decimal ends of the reference to their own digits)."""
    return len(reference) == len(given) and all(
        a.low_closed == b.low_closed
        and a.high_closed == b.high_closed
        and scalars_equal(a.low, b.low)
        and scalars_equal(a.high, b.high)
        for a, b in zip(reference, given, strict=True)
    )
