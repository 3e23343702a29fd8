"""Exact equality of rational functions: both sides as quotients of sparse polynomials, by sympy's rings.

Generators are the variables, pi and e (as indeterminates), i, and the square roots of the primes that stand
under roots. The latter satisfy s^2 = -1 or s^2 = p, and their square-free products are linearly independent
over the rationals (Besicovitch, "On the linear independence of fractional powers of integers", J. London
Math. Soc. 15, 1940). So two quotients are the same function exactly if the cross products of numerators and
denominators differ by a polynomial that is 0 once these relations are applied. That pi and e
are algebraically independent is not proven, but no relation between them is known either.

Everything is bounded before it is expanded: `MAX_GENERATORS`, `MAX_DEGREE`, `MAX_COEFFICIENT_BITS`, and
`MAX_PRODUCTS` products of two terms in all, one with coefficients of k words counting k times. Beyond the
bounds, and for other functions, the answer is None. Only trees go in: sympy never sees a text.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

from sympy import ZZ
from sympy.polys.rings import PolyRing

from verifiers.base import ParseError
from verifiers.equality.exact import children, free_symbols, rational
from verifiers.grammar.nodes import Node, Num, Op, Sym

MAX_GENERATORS = 16
MAX_DEGREE = 100_000
MAX_COEFFICIENT_BITS = 8_000
MAX_PRODUCTS = 20_000
MAX_PRIME = 1000
"""Primes under roots are found by trial division up to here; a cofactor up to its square is prime."""

_WORD_BITS = 64
_TWO, _HALF = Fraction(2), Fraction(1, 2)


class Unfit(Exception):
    """No rational function of the generators, an undefined one, or one beyond the bounds."""


def equal_quotients(left: Node, right: Node) -> bool | None:
    """Whether both sides are the same rational function; None where that is not decided here."""
    try:
        field = Quotients(left, right)
        ours, theirs = field.cross_products(left, right)
        return bool(field.reduced(ours - theirs) == 0)
    except (Unfit, ParseError, RecursionError):
        return None


def proportional_quotients(left: Node, right: Node) -> int | None:
    """The sign of the rational c with left = c * right, 0 where there is none; None if not decided here."""
    try:
        field = Quotients(left, right)
        if field.num_constants:
            return None  # the factor may be irrational
        ours, theirs = field.cross_products(left, right)
    except (Unfit, ParseError, RecursionError):
        return None
    if not ours or not theirs or ours.keys() != theirs.keys():
        return 0
    a, b = ours.LC, theirs.LC
    if any(coefficient * b != theirs[monomial] * a for monomial, coefficient in ours.items()):
        return 0
    return 1 if (a > 0) == (b > 0) else -1


@lru_cache(maxsize=MAX_GENERATORS + 1)
def _ring(num_generators: int) -> Any:
    return PolyRing([f"x{number}" for number in range(num_generators)], ZZ)


class Quotients:
    """Numerators and denominators of trees over one ring, with the work done so far."""

    def __init__(self, *nodes: Node) -> None:
        constants: set[str | int] = set()
        for node in nodes:
            _collect(node, constants)
        names = sorted(frozenset().union(*map(free_symbols, nodes)))
        generators: list[str | int] = [*names, *sorted(constants, key=str)]
        if not 0 < len(generators) <= MAX_GENERATORS:
            raise Unfit
        self.num_constants = len(constants)
        self.ring = _ring(len(generators))
        self.generator = dict(zip(generators, self.ring.gens, strict=True))
        # s^2 = square, for i and the square roots of primes.
        self.squares: dict[int, int] = {
            number: name if isinstance(name, int) else -1
            for number, name in enumerate(generators)
            if isinstance(name, int) or name == "i"
        }
        self.products = 0

    def cross_products(self, left: Node, right: Node) -> tuple[Any, Any]:
        """Two polynomials that are proportional (equal) exactly if the two quotients are."""
        a, b = self.quotient(left)
        c, d = self.quotient(right)
        if self.reduced(b) == 0 or self.reduced(d) == 0:
            raise Unfit
        return (a, c) if b == d else (self.times(a, d), self.times(c, b))

    def quotient(self, node: Node) -> tuple[Any, Any]:
        """Numerator and denominator, not in lowest terms. Raises `Unfit`."""
        one = self.ring.one
        if isinstance(node, Num):
            return self.number(node.value.numerator), self.number(node.value.denominator)
        if isinstance(node, Sym):
            if node.name not in self.generator:
                raise Unfit
            return self.generator[node.name], one
        if not isinstance(node, Op):
            raise Unfit
        if node.name in ("add", "mul", "div", "neg"):
            parts = [self.quotient(arg) for arg in node.args]
            if node.name == "neg":
                return -parts[0][0], parts[0][1]
            if node.name == "div":
                (a, b), (c, d) = parts
                if not c:
                    raise Unfit
                return self.times(a, d), self.times(b, c)
            total = parts[0]
            for part in parts[1:]:
                if node.name == "mul":
                    total = self.times(total[0], part[0]), self.times(total[1], part[1])
                else:
                    total = self.plus(total, part)
            return total
        value = None if _has_constant(node) else rational(node)
        if value is not None:
            return self.number(value.numerator), self.number(value.denominator)
        half = _square_root(node)
        if half is not None:
            outside, inside, primes = half
            root = self.number(outside.numerator)
            for prime in primes:
                root = self.times(root, self.generator[prime])
            if inside < 0:
                root = self.times(root, self.generator["i"])
            return root, self.number(outside.denominator)
        if node.name != "pow" or free_symbols(node.args[1]):
            raise Unfit
        exponent = rational(node.args[1])
        if exponent is None or exponent.denominator != 1:
            raise Unfit
        top, bottom = self.quotient(node.args[0])
        if exponent <= 0:
            if not top:
                raise Unfit
            top, bottom = bottom, top
        return self.power(top, abs(int(exponent))), self.power(bottom, abs(int(exponent)))

    def number(self, value: int) -> Any:
        if value.bit_length() > MAX_COEFFICIENT_BITS:
            raise Unfit
        return self.ring(value)

    def plus(self, left: tuple[Any, Any], right: tuple[Any, Any]) -> tuple[Any, Any]:
        (a, b), (c, d) = left, right
        self.charge(len(a) + len(c), 0)
        if b == d:
            return a + c, b
        return self.times(a, d) + self.times(c, b), self.times(b, d)

    def times(self, left: Any, right: Any) -> Any:
        """The product, its sizes checked first."""
        if left == 1 or right == 1:
            return right if left == 1 else left
        bits = _bits(left) + _bits(right) + min(len(left), len(right)).bit_length()
        self.charge(len(left) * len(right), bits)
        if _degree(left) + _degree(right) > MAX_DEGREE:
            raise Unfit
        return left * right

    def charge(self, products: int, bits: int) -> None:
        self.products += products * (1 + bits // _WORD_BITS)
        if bits > MAX_COEFFICIENT_BITS or self.products > MAX_PRODUCTS:
            raise Unfit

    def power(self, base: Any, exponent: int) -> Any:
        if len(base) <= 1:
            if exponent > MAX_DEGREE or _degree(base) * exponent > MAX_DEGREE:
                raise Unfit
            self.charge(1, 0 if _bits(base) <= 1 else _bits(base) * exponent)
            return base**exponent
        if exponent > MAX_PRODUCTS:
            raise Unfit
        result = self.ring.one
        for bit in f"{exponent:b}":
            result = self.times(result, result)
            if bit == "1":
                result = self.times(result, base)
        return result

    def reduced(self, polynomial: Any) -> Any:
        """The polynomial with every s^2 replaced by its value."""
        if not self.squares:
            return polynomial
        result = self.ring.zero
        for monomial, coefficient in polynomial.items():
            exponents = list(monomial)
            for number, square in self.squares.items():
                half, exponents[number] = divmod(exponents[number], 2)
                bits = int(coefficient).bit_length() + half * (abs(square).bit_length() if square > 1 else 0)
                self.charge(1, bits)
                coefficient *= square ** (half if square > 1 else half % 2)
            key = tuple(exponents)
            result[key] = result.get(key, 0) + coefficient
        result.strip_zero()
        return result


def _bits(polynomial: Any) -> int:
    return max((int(value).bit_length() for value in polynomial.values()), default=0)


def _degree(polynomial: Any) -> int:
    return max((sum(monomial) for monomial in polynomial), default=0)


def _has_constant(node: object) -> bool:
    """Whether a variable, pi, e or i stands in the tree."""
    return isinstance(node, Sym) or any(_has_constant(part) for part in children(node))


def _collect(node: object, constants: set[str | int]) -> None:
    """Add the constants that need a generator: pi, e, i, and the primes under square roots."""
    if isinstance(node, Sym):
        if node.name in ("pi", "e", "i"):
            constants.add(node.name)
        return
    if isinstance(node, Op):
        half = _square_root(node)
        if half is not None:
            constants.update(half[2])
            if half[1] < 0:
                constants.add("i")
            return
    for part in children(node):
        _collect(part, constants)


def _square_root(node: Op) -> tuple[Fraction, Fraction, tuple[int, ...]] | None:
    """(a, b, primes) where the node is sqrt(b) = a sqrt(sign(b)) sqrt(primes) of a rational b, else None."""
    if node.name == "root":
        if node.args[1] != Num(_TWO):
            return None
    elif node.name != "pow" or not isinstance(node.args[1], Op | Num) or rational(node.args[1]) != _HALF:
        return None
    if _has_constant(node.args[0]):
        return None
    inside = rational(node.args[0])
    if inside is None:
        return None
    size = abs(inside.numerator) * inside.denominator
    square, primes = _square_free(size)
    return Fraction(square, inside.denominator), inside, primes


@lru_cache(maxsize=256)
def _square_free(value: int) -> tuple[int, tuple[int, ...]]:
    """(s, primes) with value = s^2 * product of the distinct primes. Raises `Unfit` beyond `MAX_PRIME`."""
    if not 0 < value < 1 << _WORD_BITS:
        raise Unfit
    square, primes = 1, []
    divisor = 2
    while divisor <= MAX_PRIME and divisor * divisor <= value:
        while value % (divisor * divisor) == 0:
            value //= divisor * divisor
            square *= divisor
        if value % divisor == 0:
            value //= divisor
            primes.append(divisor)
        divisor += 1
    root = math.isqrt(value)
    if root * root == value:
        return square * root, tuple(primes)
    if value > MAX_PRIME * MAX_PRIME:
        raise Unfit
    return square, (*primes, value)
