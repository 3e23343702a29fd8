"""Sets of real numbers as unions of intervals and points, from brackets, inequalities and set operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

from verifiers import policy
from verifiers.base import ParseError
from verifiers.equality.exact import children, free_symbols
from verifiers.equality.inequalities import solutions
from verifiers.equality.intervals import (
    REALS,
    Piece,
    complement,
    intersect,
    normalise,
    open_infinite,
    order_of,
)
from verifiers.equality.names import is_name
from verifiers.equality.values import infinity_sign
from verifiers.grammar.nodes import Builder, Group, Node, Rel, SetOp, Sym

_INTERVALS = {"()": (False, False), "[)": (True, False), "(]": (False, True), "[]": (True, True)}


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
            node.brackets in policy.BARE
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


def unknowns(node: Node) -> frozenset[str]:
    """The names whose values the inequalities of a set bound: x in 0 < x < 1, none in (0, 1)."""
    if isinstance(node, Rel):
        return free_symbols(node) if _is_inequality(node) else frozenset()
    if isinstance(node, SetOp | Builder) or (isinstance(node, Group) and node.brackets in policy.BARE):
        return frozenset().union(*(unknowns(part) for part in children(node)))  # type: ignore[arg-type]
    return frozenset()


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
        return _all(node.conditions, _intersection)
    if isinstance(node, Rel):
        if node.ops == ("in",):
            return _real_set(node.sides[1]) if free_symbols(node.sides[0]) else None
        return solutions(node)
    if not isinstance(node, Group):
        return None
    if node.brackets in _INTERVALS and len(node.items) == 2:
        low, high = node.items
        low_closed, high_closed = _INTERVALS[node.brackets]
        if order_of(low, high) > 0:
            return None
        return normalise([open_infinite(Piece(low, high, low_closed, high_closed))])
    if node.brackets == "\\{\\}":
        return normalise([Piece(item, item, True, True) for item in node.items])
    if node.brackets in policy.BARE and all(_is_set(item) or _is_point(item) for item in node.items):
        return _listed(node)
    return None


def _is_set(node: Node) -> bool:
    """Whether an item of a list is a set: one that is set-like, or an interval with finite ends."""
    return is_set_like(node) or (
        isinstance(node, Group) and node.brackets in _INTERVALS and len(node.items) == 2
    )


def _listed(node: Group) -> list[Piece] | None:
    """Conditions joined by commas, "and" or "or"; intervals in a list are their union if they lie apart.

    A list of two rays of which one lies in the other is two answers, and no set.
    """
    if len({free_symbols(item) for item in node.items if isinstance(item, Rel)}) > 1:
        return None  # x < -2 or y > 2
    sets = [
        [Piece(item.sides[1], item.sides[1], True, True)] if _is_point(item) else _real_set(item)
        for item in node.items
    ]
    known = [pieces for pieces in sets if pieces is not None]
    if len(known) < len(sets):
        return None
    union = _union(known)
    apart = len(union) == sum(map(len, known))
    if not all(isinstance(item, Rel) for item in node.items):
        return union if apart else None
    if node.brackets == "or":
        return union
    common = _intersection(known)
    # "x < 1, x > 3" can only mean either: together they would exclude everything.
    if not common:
        return union
    return common if node.brackets == "and" or common not in known else None


def _union(sets: Sequence[list[Piece]]) -> list[Piece]:
    return normalise([piece for pieces in sets for piece in pieces])


def _intersection(sets: Sequence[list[Piece]]) -> list[Piece]:
    result = sets[0]
    for pieces in sets[1:]:
        result = intersect(result, pieces)
    return result


def _difference(sets: Sequence[list[Piece]]) -> list[Piece]:
    return _intersection([sets[0], *map(complement, sets[1:])])


_OPERATIONS = {"union": _union, "intersection": _intersection, "difference": _difference}


def _operation(node: SetOp) -> list[Piece] | None:
    if len({names for arg in node.args if (names := unknowns(arg))}) > 1:
        return None  # 0 < x < 1 and 2 < y < 3 are no set of numbers
    return _all(node.args, _OPERATIONS[node.name])


def _all(
    nodes: Sequence[Node], combine: Callable[[Sequence[list[Piece]]], list[Piece]]
) -> list[Piece] | None:
    sets = [_real_set(node) for node in nodes]
    known = [pieces for pieces in sets if pieces is not None]
    return combine(known) if known and len(known) == len(sets) else None
