"""Unions of intervals of real numbers: in order, merged, cut and complemented."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cmp_to_key
from typing import Any

from verifiers.base import ParseError
from verifiers.equality.exact import free_symbols, rational
from verifiers.equality.numeric import Numeric
from verifiers.equality.scalars import scalars_equal
from verifiers.equality.values import infinity_sign, values_equal
from verifiers.grammar.nodes import Node, Op, Sym

_BITS = 160
INFINITY = Sym("oo")
MINUS_INFINITY = Op("neg", (INFINITY,))


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
    x, y = rational(left), rational(right)
    if x is not None and y is not None:
        return (x > y) - (x < y)
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
    """The common part of two sets, each in order and merged."""
    found = []
    i = j = 0
    while i < len(left) and j < len(right):
        a, b = left[i], right[j]
        low_order, high_order = order_of(a.low, b.low), order_of(a.high, b.high)
        low, low_closed = (a.low, a.low_closed) if low_order > 0 else (b.low, b.low_closed)
        high, high_closed = (a.high, a.high_closed) if high_order < 0 else (b.high, b.high_closed)
        if low_order == 0:
            low_closed = a.low_closed and b.low_closed
        if high_order == 0:
            high_closed = a.high_closed and b.high_closed
        found.append(Piece(low, high, low_closed, high_closed))
        # Equal ends: the next piece may begin in the very point where both end.
        i, j = i + (high_order <= 0), j + (high_order >= 0)
    return normalise(found)


def complement(pieces: list[Piece]) -> list[Piece]:
    """The real numbers that are not in the set."""
    found = []
    low: Node = MINUS_INFINITY
    closed = False
    for piece in pieces:
        found.append(Piece(low, piece.low, closed, not piece.low_closed))
        low, closed = piece.high, not piece.high_closed
    found.append(Piece(low, INFINITY, closed, False))
    return normalise([open_infinite(piece) for piece in found])


def open_infinite(piece: Piece) -> Piece:
    return Piece(
        piece.low,
        piece.high,
        piece.low_closed and not infinity_sign(piece.low),
        piece.high_closed and not infinity_sign(piece.high),
    )


REALS = [Piece(MINUS_INFINITY, INFINITY, False, False)]


def sets_equal(reference: list[Piece], given: list[Piece]) -> bool:
    """The same pieces, ends compared as values (decimal ends of the reference to their own digits)."""
    return len(reference) == len(given) and all(
        a.low_closed == b.low_closed
        and a.high_closed == b.high_closed
        and scalars_equal(a.low, b.low)
        and scalars_equal(a.high, b.high)
        for a, b in zip(reference, given, strict=True)
    )
