"""Families of values: general solutions such as pi/3 + k pi for all integers k, compared as sets.

A family whose members are a + b k, for constants a and b and every integer k, is a set of points that
repeats. Several of them together repeat with a common period L if their b are rational multiples of each
other. Two unions are equal exactly if their points in one period are the same modulo L, so every branch is
written as its points a, a + b, ... below L. That points differ by a multiple of L is proven as any equality
of constants is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from verifiers import policy
from verifiers.base import ParseError
from verifiers.equality.exact import children, free_symbols, rational
from verifiers.equality.names import is_name
from verifiers.equality.numeric import Numeric
from verifiers.equality.values import values_equal
from verifiers.grammar.nodes import Builder, Group, Node, Num, Op, Quantity, Rel, Sym, substitute, with_parts
from verifiers.grammar.quantifiers import INTEGER

MAX_POINTS = 60
_MAX_DENOMINATOR = 60
_BITS = 200
_LISTS = frozenset({"", "and", "or", "\\{\\}"})
_INTERVALS = frozenset({"()", "[]", "(]", "[)"})

Kinds = Mapping[str, str]
"""What an answer says of its letters: {"k": "integer"}."""


@dataclass(frozen=True, slots=True)
class Branch:
    """The values start + k step for all integers k, several at once for the ends of an interval."""

    shape: str  # "" for numbers, else the brackets of an interval
    start: tuple[Node, ...]
    step: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """What is a member (the unknown and its sign = or !=; "" where it is not named), and the branches."""

    unknown: str
    sign: str
    branches: tuple[Branch, ...]


def same_families(reference: Node, given: Node, ours: Kinds, theirs: Kinds) -> bool:
    """Whether both are families over the integers and the same set; False says no more than that."""
    declared = INTEGER in (*ours.values(), *theirs.values())
    if not declared and not (is_angular(reference) and is_angular(given)):
        return False
    try:
        a, b = _family(reference, ours), _family(given, theirs)
        if a is None or b is None or a.sign != b.sign:
            return False
        if a.unknown and b.unknown and a.unknown != b.unknown:
            return False
        return _same_sets(a.branches, b.branches)
    except ParseError:
        return False


def is_angular(node: object) -> bool:
    """Whether pi or degrees show that a letter beside them counts turns."""
    if node == Sym("pi") or (isinstance(node, Quantity) and node.unit == "degree"):
        return True
    return any(is_angular(part) for part in children(node))


def _family(node: Node, kinds: Kinds) -> Family | None:
    """The family that a tree means; None where it is none."""
    if isinstance(node, Rel) and node.ops == ("in",) and is_name(node.sides[0]):
        inner = _family(node.sides[1], kinds)
        return inner and Family(_name(node.sides[0]), "=", inner.branches)
    if isinstance(node, Builder):
        return _built(node, kinds)
    items = node.items if isinstance(node, Group) and node.brackets in _LISTS else (node,)
    members = [_member(item) for item in items]
    unknowns = {unknown for unknown, _, _ in members}
    signs = {sign for _, sign, _ in members}
    if len(unknowns - {""}) > 1 or len(signs) > 1:
        return None
    branches: list[Branch] = []
    for _, _, value in members:
        found = _branches(value, kinds)
        if found is None:
            return None
        branches += found
    return Family(max(unknowns), signs.pop(), tuple(branches))


def _built(node: Builder, kinds: Kinds) -> Family | None:
    r"""{k pi : k \in Z} and {x : x = k pi, k \in Z}."""
    values = [c for c in node.conditions if not (isinstance(c, Rel) and c.ops == ("in",))]
    declared = dict(kinds) | {
        _name(c.sides[0]): INTEGER
        for c in node.conditions
        if isinstance(c, Rel) and c.ops == ("in",) and c.sides[1] == Sym("set Z")
    }
    if not values:
        return _family(node.element, declared)
    if len(values) == 1 and isinstance(node.element, Sym):
        return _family(values[0], declared)
    return None


def _member(node: Node) -> tuple[str, str, Node]:
    """(unknown, sign, value) of x = k pi and x != k pi; of a bare value it is the value alone."""
    if (
        isinstance(node, Rel)
        and len(node.sides) == 2
        and node.ops[0] in ("=", "!=")
        and is_name(node.sides[0])
    ):
        return _name(node.sides[0]), node.ops[0], node.sides[1]
    return "", "=", node


def _name(node: Node) -> str:
    return node.name if isinstance(node, Sym) else repr(node)


def _branches(node: Node, kinds: Kinds) -> list[Branch] | None:
    """A value, or an interval, that is linear in one letter of the integers; (-1)^k makes two of it."""
    letters = free_symbols(node)
    integers = {name for name in letters if kinds.get(name) == INTEGER}
    if not integers:
        integers = {name for name in letters if name not in kinds and policy.is_integer_parameter(name)}
    if len(letters) != 1 or letters != integers:
        return None
    (name,) = letters
    shape = ""
    parts: tuple[Node, ...] = (node,)
    if isinstance(node, Group):
        if node.brackets not in _INTERVALS or len(node.items) != 2:
            return None
        shape, parts = node.brackets, node.items
    alternates = any(_alternates(part) for part in parts)
    found = []
    for first in (0, 1) if alternates else (0,):
        width = 2 if alternates else 1
        at = [tuple(_at(part, name, first + width * k) for part in parts) for k in (0, 1, 2, -3)]
        step = tuple(_minus(b, a) for a, b in zip(at[0], at[1], strict=True))
        for k, values in ((2, at[2]), (-3, at[3])):
            if not all(values_equal(v, _plus(a, b, k)) for v, a, b in zip(values, at[0], step, strict=True)):
                return None
        if any(values_equal(b, Num(Fraction(0))) for b in step):
            return None
        found.append(Branch(shape, at[0], step))
    return found


def _alternates(node: object) -> bool:
    """Whether (-1)^k stands in a tree."""
    if isinstance(node, Op) and node.name == "pow" and free_symbols(node.args[1]):
        return True
    return any(_alternates(part) for part in children(node))


def _at(node: Node, name: str, value: int) -> Node:
    return _folded(substitute(node, name, Num(Fraction(value))))


def _folded(node: Node) -> Node:
    """The tree with (-1)^n worked out, so that values of large n stay small."""
    node = with_parts(node, _folded)
    if isinstance(node, Op) and node.name == "pow" and rational(node.args[0]) == -1:
        exponent = rational(node.args[1])
        if exponent is not None and exponent.denominator == 1:
            return Num(Fraction(-1 if exponent.numerator % 2 else 1))
    return node


def _minus(left: Node, right: Node) -> Node:
    return Op("add", (left, Op("neg", (right,))))


def _plus(start: Node, step: Node, times: int) -> Node:
    return Op("add", (start, Op("mul", (Num(Fraction(times)), step))))


@dataclass(frozen=True, slots=True)
class _Point:
    """A member of a family: its ends, and their approximate values."""

    shape: str
    ends: tuple[Node, ...]
    near: tuple[Fraction, ...]


def _same_sets(ours: tuple[Branch, ...], theirs: tuple[Branch, ...]) -> bool:
    steps = [step for branch in (*ours, *theirs) for step in branch.step]
    unit = steps[0]
    ratios = [_ratio(step, unit) for step in steps]
    sizes = {step: abs(ratio) for step, ratio in zip(steps, ratios, strict=True) if ratio}
    if len(sizes) < len(set(steps)):
        return False
    period = Fraction(
        math.lcm(*(size.numerator for size in sizes.values())),
        math.gcd(*(size.denominator for size in sizes.values())),
    )
    a, b = (list(_points(branches, sizes, period)) for branches in (ours, theirs))
    if max(len(a), len(b)) > MAX_POINTS:
        return False
    whole = Op("mul", (Num(period), unit))
    length = _number(whole)
    return all(any(_congruent(x, y, whole, length) for y in b) for x in a) and all(
        any(_congruent(x, y, whole, length) for x in a) for y in b
    )


def _points(
    branches: tuple[Branch, ...], sizes: Mapping[Node, Fraction], period: Fraction
) -> Iterator[_Point]:
    """The points of all branches in one period. An interval's two ends must move together."""
    for branch in branches:
        if len({sizes[step] for step in branch.step}) > 1:
            raise ParseError("an interval whose ends move apart")
        for k in range(min(int(period / sizes[branch.step[0]]), MAX_POINTS + 1)):
            ends = tuple(_plus(a, b, k) for a, b in zip(branch.start, branch.step, strict=True))
            yield _Point(branch.shape, ends, tuple(map(_number, ends)))


def _number(node: Node) -> Fraction:
    numeric = Numeric(_BITS)
    value = numeric.value(node)
    if not numeric.is_real(value):
        raise ParseError("a family of numbers that are not real")
    return Fraction(int(numeric.mp.floor(value.real * 2**100)), 2**100)


def _ratio(step: Node, unit: Node) -> Fraction | None:
    """step / unit where it is rational with a small denominator, proven; else None."""
    guess = (_number(step) / _number(unit)).limit_denominator(_MAX_DENOMINATOR)
    return guess if guess and values_equal(step, Op("mul", (Num(guess), unit))) else None


def _congruent(x: _Point, y: _Point, whole: Node, length: Fraction) -> bool:
    """Whether two points (two intervals) differ by a multiple of the period, the same for both ends."""
    if x.shape != y.shape or len(x.ends) != len(y.ends):
        return False
    turns = [(a - b) / length for a, b in zip(x.near, y.near, strict=True)]
    nearest = {round(turn) for turn in turns}
    if len(nearest) != 1 or any(abs(turn - round(turn)) > Fraction(1, 2**60) for turn in turns):
        return False
    shift = Op("mul", (Num(Fraction(nearest.pop())), whole))
    return all(values_equal(_minus(a, b), shift) for a, b in zip(x.ends, y.ends, strict=True))
