"""Values of trees: exact rationals where that is possible, else numbers with a separation bound.

Two numbers are compared in this order; each step is final where it applies.

1. Both rational: by exact integers.
2. Both algebraic (radicals, i, sines and cosines of rational multiples of pi): their difference E is
   computed with more digits than its separation bound needs. If E is not 0 then |E| >= 1 / (u(E)^(D-1)
   l(E)), where u and l bound the conjugates of a numerator and a denominator of E and D is the product of
   the degrees of its radicals (Burnikel, Funke, Mehlhorn, Schirra, Schmitt, "A separation bound for real
   algebraic expressions", Algorithmica 55, 2009; the rules are in `separation.measure`), all sines and
   cosines counted as one cyclotomic field. So a result below the bound is exactly 0.
3. With pi, e, logarithms or general powers: agreement to at least `GUARD_BITS` bits more than the literals
   of both numbers have together. No pair of different closed forms of this size is known to agree that far;
   this step is a test, not a proof, with an error probability of about 2^-GUARD_BITS for generic values.
4. With variables: first at random points. Rational functions are evaluated exactly at random integers below
   2^61, other functions by step 3 at real points. What differs at a point is different. What agrees and is
   made of the variables, rational numbers, square roots of rational numbers, i, pi and e by sums, products,
   quotients and integer powers is then decided exactly by sympy's sparse polynomials (`polynomials`), as far
   as its bounds reach. Beyond them two integer points count: rational functions of degree d that differ agree
   at both with probability at most (d / 2^61)^2 (Schwartz 1980, Zippel 1979). Other functions count as equal
   if they agree at all points where both are real: a test as in step 3. Functions that change their form
   somewhere, as |x|, max(a, b) or floors, are tried on all sides of every break (`breaks` says how well). The
   points are the same in every run, but they depend on both expressions, so that none can be written to
   vanish at them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from verifiers.base import ParseError
from verifiers.grammar.nodes import Node, Num, Op, Quantity, Sym

MAX_BITS = 120_000
"""Exact numbers stop growing here: 36,000 digits."""
MAX_FACTORIAL = 5000
MAX_WORK_BITS = 4_000_000

_NUM_ARGS = {"log": (1, 2), "mod": (2, 2)} | {
    name: (number, number)
    for number, names in (
        (1, ("neg", "fact", "fact2", "abs", "floor", "ceil", "sgn", "ln")),
        (2, ("div", "pow", "root", "binom")),
    )
    for name in names
}

Env = Mapping[str, Fraction]


class TooLarge(ParseError):
    """The value has more digits than the bounds allow."""


class Undefined(ParseError):
    """The expression has no value: a division by zero, or a function outside its domain."""


class Rational:
    """Exact evaluation over the rationals, None where the value leaves them; sizes are checked beforehand."""

    def __init__(self, env: Env | None = None) -> None:
        self.env = env or {}
        self.work = 0

    def value(self, node: Node) -> Fraction | None:
        """The exact value or None. Raises `TooLarge` and `Undefined`."""
        if isinstance(node, Num):
            return self.charge(node.value)
        if isinstance(node, Sym):
            return self.env.get(node.name)
        if isinstance(node, Quantity):
            inner = self.value(node.value) if node.unit == "%" else None
            return None if inner is None else inner / 100
        if not isinstance(node, Op):
            return None
        handler = getattr(self, f"op_{node.name}", None)
        if handler is None:
            return None
        values: list[Fraction] = []
        for arg in node.args:
            value = self.value(arg)
            if value is None:
                return None
            values.append(value)
        fewest, most = _NUM_ARGS.get(node.name, (1, len(values)))
        if not fewest <= len(values) <= most:
            return None
        result: Fraction | None = handler(*values)
        return None if result is None else self.charge(result)

    def charge(self, value: Fraction) -> Fraction:
        bits = value.numerator.bit_length() + value.denominator.bit_length()
        self.work += bits
        if bits > MAX_BITS or self.work > MAX_WORK_BITS:
            raise TooLarge("a number too large to compare exactly")
        return value

    def op_add(self, *values: Fraction) -> Fraction:
        total = values[0]
        for value in values[1:]:
            total = self.charge(total + value)
        return total

    def op_mul(self, *values: Fraction) -> Fraction:
        total = values[0]
        for value in values[1:]:
            total = self.charge(total * value)
        return total

    def op_neg(self, value: Fraction) -> Fraction:
        return -value

    def op_div(self, top: Fraction, bottom: Fraction) -> Fraction:
        if bottom == 0:
            raise Undefined("a division by zero")
        return top / bottom

    def op_pow(self, base: Fraction, exponent: Fraction) -> Fraction | None:
        if base == 0 and exponent <= 0:
            raise Undefined("zero to a power that is not positive")
        if exponent.denominator != 1:
            if exponent.denominator > 64:
                return None
            root = self.op_root(base, Fraction(exponent.denominator))
            return None if root is None else self.op_pow(root, Fraction(exponent.numerator))
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(base) not in (0, 1) and size * abs(exponent.numerator) > MAX_BITS:
            raise TooLarge("a power too large to compare exactly")
        if abs(base) == 1:
            return base if exponent.numerator % 2 else Fraction(1)
        return base**exponent.numerator

    def op_root(self, value: Fraction, index: Fraction) -> Fraction | None:
        """The exact root of a perfect power; the real root of a negative number where the index is odd."""
        if index.denominator != 1 or not 1 <= index <= 64:
            return None
        power = int(index)
        if value < 0 and power % 2 == 0:
            return None
        top, bottom = integer_root(abs(value.numerator), power), integer_root(value.denominator, power)
        if top is None or bottom is None:
            return None
        return Fraction(-top if value < 0 else top, bottom)

    def op_fact(self, value: Fraction) -> Fraction:
        if value.denominator != 1 or value < 0:
            raise Undefined("a factorial of something that is not a natural number")
        if value > MAX_FACTORIAL:
            raise TooLarge("a factorial too large to compare exactly")
        self.work += int(value) * int(value).bit_length()
        return Fraction(math.factorial(int(value)))

    def op_fact2(self, value: Fraction) -> Fraction:
        if value.denominator != 1 or value < 0 or value > MAX_FACTORIAL:
            raise TooLarge("a double factorial outside its bounds")
        return Fraction(math.prod(range(int(value), 0, -2)))

    def op_binom(self, n: Fraction, k: Fraction) -> Fraction:
        if n.denominator != 1 or k.denominator != 1 or n < 0:
            raise Undefined("a binomial coefficient of something that is not a natural number")
        if n > 10 * MAX_FACTORIAL or min(k, n - k) > MAX_FACTORIAL:
            raise TooLarge("a binomial coefficient too large to compare exactly")
        self.work += int(n)
        return Fraction(math.comb(int(n), int(k)) if 0 <= k <= n else 0)

    def op_abs(self, value: Fraction) -> Fraction:
        return abs(value)

    def op_floor(self, value: Fraction) -> Fraction:
        return Fraction(math.floor(value))

    def op_ceil(self, value: Fraction) -> Fraction:
        return Fraction(math.ceil(value))

    def op_sgn(self, value: Fraction) -> Fraction:
        return Fraction((value > 0) - (value < 0))

    def op_max(self, *values: Fraction) -> Fraction:
        return max(values)

    def op_min(self, *values: Fraction) -> Fraction:
        return min(values)

    def op_gcd(self, *values: Fraction) -> Fraction | None:
        if any(value.denominator != 1 for value in values):
            return None
        return Fraction(math.gcd(*(int(value) for value in values)))

    def op_lcm(self, *values: Fraction) -> Fraction | None:
        if any(value.denominator != 1 for value in values):
            return None
        return Fraction(math.lcm(*(int(value) for value in values)))

    def op_mod(self, value: Fraction, modulus: Fraction) -> Fraction:
        if modulus == 0:
            raise Undefined("a remainder modulo zero")
        return value % modulus

    def op_log(self, value: Fraction, base: Fraction | None = None) -> Fraction | None:
        """The logarithm where it is rational, proven by the powers themselves."""
        if value == 1:
            return Fraction(0)
        if base is None or base <= 0 or base == 1 or value <= 0:
            return None
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > 10_000:
            return None
        guess = Fraction(_log(value) / _log(base)).limit_denominator(12)
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if abs(guess.numerator) * size > MAX_BITS or base**guess.numerator != value**guess.denominator:
            return None
        return guess

    def op_ln(self, value: Fraction) -> Fraction | None:
        return Fraction(0) if value == 1 else None


def _log(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)


def integer_root(value: int, power: int) -> int | None:
    """The integer whose power is `value` exactly, None where there is none."""
    if value < 2:
        return value
    if power == 2:
        root = math.isqrt(value)
    else:
        root = 1 << -(-value.bit_length() // power)
        while True:
            step = ((power - 1) * root + value // root ** (power - 1)) // power
            if step >= root:
                break
            root = step
    return root if root**power == value else None


def rational(node: Node, env: Env | None = None) -> Fraction | None:
    """The exact rational value, None where there is none. Raises `TooLarge` and `Undefined`."""
    return Rational(env).value(node)


_CONSTANTS = frozenset({"pi", "e", "i", "oo"})


def free_symbols(node: object) -> frozenset[str]:
    """The names of the variables of a tree."""
    if isinstance(node, Num):
        return frozenset()
    if isinstance(node, Sym):
        return frozenset() if node.name in _CONSTANTS else frozenset({node.name})
    found: frozenset[str] = frozenset()
    for part in children(node):
        found |= free_symbols(part)
    return found


def children(node: object) -> tuple[object, ...]:
    """The direct parts of a node."""
    for name in ("args", "sides", "items", "parts"):
        parts = getattr(node, name, None)
        if parts is not None:
            return tuple(parts)
    if isinstance(node, Quantity):
        return (node.value,)
    rows = getattr(node, "rows", None)
    if rows is not None:
        return tuple(cell for row in rows for cell in row)
    element = getattr(node, "element", None)
    return () if element is None else (element, *getattr(node, "conditions", ()))
