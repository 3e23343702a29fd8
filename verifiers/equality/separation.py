"""How far apart different numbers lie: sizes of an expression, and the separation bound that follows.

The rules are those of Burnikel, Funke, Mehlhorn, Schirra and Schmitt, "A separation bound for real algebraic
expressions", Algorithmica 55, 2009; see rule 2 of `exact`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import TypeGuard

from verifiers.equality.exact import rational
from verifiers.grammar.nodes import Node, Num, Op, Quantity, Sym
from verifiers.grammar.units import convert

_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_BOUNDED = frozenset({"sin", "cos", "arcsin", "arccos", "arctan", "arccot", "arg", "sgn"})
_HYPERBOLIC = frozenset({"sinh", "cosh", "tanh", "coth", "sech", "csch"})


@dataclass(slots=True)
class Measure:
    """Sizes for the separation bound: log2 of u and l, the radicals seen, and whether all is algebraic."""

    u: float = 0.0
    l: float = 0.0  # noqa: E741 - the paper's name
    radicals: dict[object, int] = field(default_factory=dict)
    algebraic: bool = True

    def degree(self) -> float:
        """log2 of D, the product of the degrees of all radicals.

        Sines and cosines of k pi / n, for all n that occur, lie in one cyclotomic field together with i and
        the square roots of their primes; its degree counts once.
        """
        order = math.lcm(4, *(2 * key[1] for key in self.radicals if _is_turn(key)))
        if order == 4 or order > _MAX_ORDER:
            return sum(math.log2(index) for index in self.radicals.values())
        outside = (index for key, index in self.radicals.items() if not _in_cyclotomic_field(key, order))
        return math.log2(_totient(order)) + sum(map(math.log2, outside))

    def bound_bits(self) -> float:
        """b with |E| >= 2^-b for a non-zero algebraic E."""
        return max(self.u, 0.0) * (2.0 ** min(self.degree(), 40.0) - 1.0) + max(self.l, 0.0)


_MAX_ORDER = 10**6


def _is_turn(key: object) -> TypeGuard[tuple[str, int]]:
    return isinstance(key, tuple) and key[0] == "turn"


def _in_cyclotomic_field(key: object, order: int) -> bool:
    """Whether a radical lies in the field of the `order`-th roots of unity, 4 a divisor of the order."""
    if key == "i" or _is_turn(key):
        return True
    if not isinstance(key, tuple) or key[1] != 2:
        return False
    inside = rational(key[0])
    if not inside:
        return False
    rest = abs(inside.numerator) * inside.denominator
    twos = (rest & -rest).bit_length() - 1
    rest >>= twos
    if twos % 2 and order % 8:
        return False
    # Of odd primes, those that divide the order have their roots in the field.
    odd = order // (order & -order)
    while (common := math.gcd(rest, odd)) > 1:
        rest //= common
    return math.isqrt(rest) ** 2 == rest


@lru_cache(maxsize=256)
def _totient(order: int) -> int:
    result, rest, prime = order, order, 2
    while prime * prime <= rest:
        if rest % prime == 0:
            result -= result // prime
            while rest % prime == 0:
                rest //= prime
        prime += 1
    return result - result // rest if rest > 1 else result


def _merge(*measures: Measure) -> Measure:
    merged = Measure()
    for measure in measures:
        merged.radicals |= measure.radicals
        merged.algebraic &= measure.algebraic
    return merged


def measure(node: Node) -> Measure:
    """The sizes of an expression without variables, by the rules of the paper cited in `exact`."""
    if isinstance(node, Num):
        return Measure(math.log2(max(abs(node.value.numerator), 1)), math.log2(node.value.denominator))
    if isinstance(node, Sym):
        return Measure(0.0, 0.0, {"i": 2}) if node.name == "i" else Measure(2.0, 0.0, {}, algebraic=False)
    if isinstance(node, Quantity):
        inner = measure(node.value)
        if node.unit == "%":
            inner.l += 8.0
            return inner
        factor, dimension = convert(node.unit)
        inner.u += abs(math.log2(factor)) + sum(abs(power) for _, power in dimension)
        inner.l += 8.0
        inner.algebraic = False
        return inner
    if not isinstance(node, Op):
        return Measure(64.0, 64.0, {}, algebraic=False)
    if node.name in _TRIGONOMETRIC and len(node.args) == 1:
        turns = _turns(node.args[0])
        if turns is not None and turns.denominator <= 720:
            # 2 cos and 2 sin of it are algebraic integers of a cyclotomic field, all conjugates at most 2.
            return Measure(2.0, 2.0, {("turn", turns.denominator): max(4 * turns.denominator, 2)})
    parts = [measure(arg) for arg in node.args]
    merged = _merge(*parts)
    _combine(node, parts, merged)
    return merged


def _combine(node: Op, parts: list[Measure], merged: Measure) -> None:
    if node.name in ("add", "pm", "mp"):
        merged.l = sum(part.l for part in parts)
        merged.u = max(part.u - part.l for part in parts) + merged.l + math.log2(len(parts))
    elif node.name == "mul":
        merged.u, merged.l = sum(part.u for part in parts), sum(part.l for part in parts)
    elif node.name == "div":
        merged.u, merged.l = parts[0].u + parts[1].l, parts[0].l + parts[1].u
    elif node.name in ("neg", "abs"):
        merged.u, merged.l = parts[0].u, parts[0].l
        # |z| of a complex z is another radical; of a real one it is z or -z.
        if node.name == "abs" and "i" in parts[0].radicals:
            merged.radicals[node] = 2
            merged.u, merged.l = 2 * merged.u, 2 * merged.l
    elif node.name == "root":
        index = rational(node.args[1])
        if index is None or index.denominator != 1 or not 1 <= index <= 64:
            merged.algebraic = False
        else:
            _root(node, parts[0], int(index), merged)
    elif node.name == "pow":
        exponent = rational(node.args[1])
        if exponent is None or exponent.denominator > 64 or abs(exponent) > 2**60:
            # |b^x| lies between 2^-s and 2^s for s = |log2 b| |x|.
            merged.algebraic = False
            base = abs(parts[0].u) + abs(parts[0].l) + 2
            merged.u = merged.l = base * 2.0 ** min(max(parts[1].u, 0.0), 40.0) + abs(parts[1].l) + 64
            return
        _root(node, parts[0], exponent.denominator, merged)
        times = abs(exponent.numerator)
        merged.u, merged.l = merged.u * times, merged.l * times
        if exponent < 0:
            merged.u, merged.l = merged.l, merged.u
    else:
        exact = rational(node)
        merged.algebraic = exact is not None
        if exact is not None:
            size = measure(Num(exact))
            merged.u, merged.l = size.u, size.l
        else:
            merged.u = merged.l = sum(abs(part.u) + abs(part.l) for part in parts) + 64
            if node.name in ("ln", "log"):
                merged.u = math.log2(merged.u)
            elif node.name in _BOUNDED:
                merged.u = 2.0
            if node.name in _HYPERBOLIC:
                # tanh x differs from 1 by about 2^(-3x).
                merged.u = merged.l = merged.u + 3 * 2.0 ** min(max(parts[0].u, 0.0), 40.0)


def _root(node: Op, inner: Measure, index: int, merged: Measure) -> None:
    merged.u, merged.l = inner.u, inner.l
    if index == 1:
        return
    merged.radicals[(node.args[0], index)] = index
    if inner.u >= inner.l:
        merged.u = (inner.u + (index - 1) * inner.l) / index
    else:
        merged.l = ((index - 1) * inner.u + inner.l) / index


def _turns(angle: Node) -> Fraction | None:
    """The angle as a multiple of pi, None where it is no rational one."""
    if isinstance(angle, Quantity) and angle.unit == "degree":
        value = rational(angle.value)
        return None if value is None else value / 180
    at_zero, at_one = rational(angle, {"pi": Fraction(0)}), rational(angle, {"pi": Fraction(1)})
    if at_zero != 0 or at_one is None or rational(angle, {"pi": Fraction(3)}) != 3 * at_one:
        return None
    return at_one
