"""The real numbers that solve an inequality: linear ones in one variable, chains of them, and |linear|."""

from __future__ import annotations

from fractions import Fraction

from verifiers.equality.exact import free_symbols
from verifiers.equality.intervals import (
    INFINITY,
    MINUS_INFINITY,
    Piece,
    intersect,
    normalise,
    open_infinite,
    order_of,
)
from verifiers.equality.names import is_name
from verifiers.equality.values import values_equal
from verifiers.grammar.nodes import Node, Num, Op, Rel, Sym, substitute

FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!=", "=": "="}


def solutions(rel: Rel) -> list[Piece] | None:
    """The solutions of a chain of inequalities in one variable or name; None where it is not worked out."""
    result: list[Piece] | None = None
    for left, op, right in zip(rel.sides, rel.ops, rel.sides[1:], strict=False):
        if op not in FLIPPED:
            return None
        pieces = _inequality(left, op, right)
        if pieces is None:
            return None
        result = pieces if result is None else intersect(result, pieces)
    return result


def _inequality(left: Node, op: str, right: Node) -> list[Piece] | None:
    if not free_symbols(left) and free_symbols(right):
        left, op, right = right, FLIPPED[op], left
    if is_name(left) and is_name(right):
        return None
    if not free_symbols(left) or free_symbols(right) - free_symbols(left):
        return None
    if isinstance(left, Op) and left.name == "abs" and not free_symbols(right):
        upper = _inequality(left.args[0], op, right)
        lower = _inequality(left.args[0], FLIPPED[op], Op("neg", (right,)))
        if upper is None or lower is None:
            return None
        return intersect(upper, lower) if op in ("<", "<=", "!=") else normalise(upper + lower)
    slope, root = _linear(left, right)
    if root is None:
        return None
    if slope < 0:
        op = FLIPPED[op]
    pieces = {
        "<": [Piece(MINUS_INFINITY, root, False, False)],
        "<=": [Piece(MINUS_INFINITY, root, False, True)],
        ">": [Piece(root, INFINITY, False, False)],
        ">=": [Piece(root, INFINITY, True, False)],
        "=": [Piece(root, root, True, True)],
        "!=": [Piece(MINUS_INFINITY, root, False, False), Piece(root, INFINITY, False, False)],
    }[op]
    return normalise([open_infinite(piece) for piece in pieces])


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
