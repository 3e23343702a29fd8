"""Numbers with many digits, and how many are enough: the numeric half of `exact`'s rules."""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeGuard

from verifiers.equality.exact import TooLarge, Undefined, children, rational
from verifiers.grammar.nodes import Big, Node, Num, Op, Quantity, Rel, Sym
from verifiers.grammar.units import convert

GUARD_BITS = 160
MAX_PRECISION = 12_000
"""Bits; a comparison that needs more is not decided, and so not equal."""

_local = threading.local()
_TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
_BOUNDED = frozenset({"sin", "cos", "arcsin", "arccos", "arctan", "arccot", "arg", "sgn"})
_HYPERBOLIC = frozenset({"sinh", "cosh", "tanh", "coth", "sech", "csch"})
_FUNCTIONS = {
    "sinh": "sinh", "cosh": "cosh", "tanh": "tanh", "coth": "coth", "sech": "sech", "csch": "csch",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh", "ln": "ln",
    "sin": "sin", "cos": "cos", "tan": "tan", "cot": "cot", "sec": "sec", "csc": "csc", "Re": "re",
    "Im": "im", "conj": "conj", "arg": "arg", "floor": "floor", "ceil": "ceil", "sgn": "sign",
}  # fmt: skip


_EXACT_FIRST = frozenset({"fact", "fact2", "binom", "gcd", "lcm", "mod", "floor", "ceil"})
MAX_GAMMA_PRECISION = 1200
MAX_GAMMA_BITS = 16
"""Factorials and binomials of larger numbers are evaluated exactly or not at all."""

_MAY_LEAVE_REALS = frozenset({"root", "pow", "log", "ln", "arcsin", "arccos", "arcsec", "arccsc", "arccosh"})


def _context() -> Any:
    """One mpmath context a thread: its precision is state, which the library's global one would share."""
    if not hasattr(_local, "mp"):
        from mpmath.ctx_mp import MPContext

        _local.mp = MPContext()
    return _local.mp


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


class Numeric:
    """Evaluation to `bits` of precision, at given values of the variables."""

    def __init__(self, bits: int, env: dict[str, Fraction] | None = None) -> None:
        self.mp = _context()
        self.mp.prec = bits
        self.env = env or {}
        self.left_reals = False  # whether a root, power or logarithm of real numbers was not real

    def value(self, node: Node) -> Any:
        """An mpmath number. Raises `Undefined` and `TooLarge`."""
        mp = self.mp
        if isinstance(node, Num):
            return mp.mpf(node.value.numerator) / node.value.denominator
        if isinstance(node, Sym):
            return self.symbol(node.name)
        if isinstance(node, Quantity):
            return self.value(node.value) * self.unit(node.unit)
        if isinstance(node, Op):
            try:
                result = self.operation(node)
                if node.name in _MAY_LEAVE_REALS and not self.left_reals and not self.is_real(result):
                    self.left_reals = all(self.is_real(self.value(arg)) for arg in node.args)
            except (ZeroDivisionError, ValueError, OverflowError):
                raise Undefined("a value that is not defined") from None
            if not mp.isfinite(result):
                raise Undefined("a value that is not finite")
            if mp.mag(result) > 200_000:
                raise TooLarge("a value too large to compare")
            return result
        return self.opaque(type(node).__name__ + getattr(node, "name", ""), children(node))

    def symbol(self, name: str) -> Any:
        mp = self.mp
        if name == "pi":
            return +mp.pi
        if name == "e":
            return +mp.e
        if name == "i":
            return mp.mpc(0, 1)
        if name in self.env:
            return mp.mpf(self.env[name].numerator) / self.env[name].denominator
        raise Undefined(f"{name} has no value")

    def unit(self, name: str) -> Any:
        """A unit as its factor times a value that stands for each of its base units; an angle's is pi/180."""
        mp = self.mp
        if name == "%":
            return mp.mpf(1) / 100
        factor, dimension = convert(name)
        value = mp.mpf(factor.numerator) / factor.denominator
        for base, power in dimension:
            value *= self.base_unit(base) ** power
        return value

    def base_unit(self, name: str) -> Any:
        """An indeterminate, except that angles are numbers: 12 s is neither 12 min nor 12."""
        if name == "radian":
            return self.mp.mpf(1)
        return self.mp.pi / 180 if name == "degree" else self.pseudo_random("unit " + name)

    def operation(self, node: Op) -> Any:
        mp = self.mp
        name = node.name
        if name in _EXACT_FIRST:
            try:
                exact = rational(node, self.env)
            except Undefined:
                exact = None  # the factorial of 1/2 is a value of the gamma function
            if exact is not None:
                return mp.mpf(exact.numerator) / exact.denominator
        if name in ("_", "^"):
            return self.opaque(name, node.args)  # the bounds of a sum or integral
        args = [self.value(arg) for arg in node.args]
        if name == "add":
            return mp.fsum(args)
        if name == "mul":
            return mp.fprod(args)
        if name == "neg":
            return -args[0]
        if name == "div":
            return args[0] / args[1]
        if name == "abs":
            return abs(args[0])
        if name == "root":
            return self.root(args[0], node.args[1])
        if name == "pow":
            return self.power(node, args[0], args[1])
        if name == "log":
            return mp.log(args[0]) / (mp.log(args[1]) if len(args) > 1 else 1)
        if name in ("max", "min"):
            return max(args) if name == "max" else min(args)
        if name in ("fact", "binom") and (
            mp.prec > MAX_GAMMA_PRECISION or max(mp.mag(arg) for arg in args) > MAX_GAMMA_BITS
        ):
            raise TooLarge("a factorial too large to compare")
        if name == "fact":
            return mp.gamma(args[0] + 1)
        if name == "binom":
            return mp.binomial(args[0], args[1])
        if name in _FUNCTIONS and len(args) == 1:
            return getattr(mp, _FUNCTIONS[name])(args[0])
        return self.opaque(name, node.args)

    def root(self, value: Any, index: Node) -> Any:
        exact = rational(index)
        if exact is None or exact == 0:
            return value ** (1 / self.value(index))
        if exact.denominator == 1 and exact.numerator % 2 and self.is_real(value) and value.real < 0:
            return -((-value.real) ** (1 / self.value(index)))
        return self.mp.sqrt(value) if exact == 2 else value ** (self.mp.mpf(1) / self.value(index))

    def power(self, node: Op, base: Any, exponent: Any) -> Any:
        exact = rational(node.args[1])
        if exact is not None and exact.denominator == 1:
            return base ** int(exact)
        if exact is not None and exact.denominator % 2 and self.is_real(base) and base.real < 0:
            root = -((-base.real) ** (self.mp.mpf(1) / exact.denominator))
            return root**exact.numerator
        if self.mp.mag(exponent) > 64:
            raise TooLarge("an exponent too large to compare")
        return base**exponent

    def is_real(self, value: Any) -> bool:
        return abs(value.imag) <= abs(value) * self.mp.mpf(2) ** (-self.mp.prec // 2)

    def opaque(self, name: str, parts: tuple[object, ...]) -> Any:
        """A function we do not evaluate: a fixed pseudo-random number of its name and arguments."""
        text = name
        for part in parts:
            if isinstance(part, Rel):
                text += " ".join(part.ops)
                inner = [self.bounded(side) for side in part.sides]
            else:
                inner = [self.bounded(part)]  # type: ignore[arg-type]
            text += "".join(self.mp.nstr(value, 20) for value in inner)
        return self.pseudo_random(text)

    def bounded(self, part: Node) -> Any:
        """A part of what is not evaluated, which may be the infinite end of a sum or integral."""
        if part == Sym("oo") or part == Op("neg", (Sym("oo"),)):
            return self.pseudo_random("oo" if isinstance(part, Sym) else "-oo")
        return self.value(part)

    def pseudo_random(self, text: str) -> Any:
        """A number from 1 to 2 that is the same for the same text."""
        digest = hashlib.sha256(text.encode()).digest()
        return self.mp.mpf(int.from_bytes(digest[:8])) / 2**64 + 1


def constants_equal(left: Node, right: Node) -> bool:
    """Whether two expressions without variables have the same value; rules 2 and 3 of `exact`."""
    difference = Op("add", (left, Op("neg", (right,))))
    size = measure(difference)
    if size.algebraic:
        needed = size.bound_bits()
        first = 128
    else:
        needed = abs(size.u) + abs(size.l) + GUARD_BITS
        first = GUARD_BITS
    # Most different numbers differ early: a cheap look first, the full precision only if that finds nothing.
    for last, bits in enumerate((first, needed)):
        if bits > MAX_PRECISION:
            return False
        slack = 64 + max(size.u, 0.0) + max(size.l, 0.0)
        if bits + slack > 4 * MAX_PRECISION:
            return False
        numeric = Numeric(int(bits + slack) + 1)
        a, b = numeric.value(left), numeric.value(right)
        gap = abs(a - b)
        scale = 1 if last and size.algebraic else max(abs(a), abs(b), 1)
        # One bit more than the bound: its sizes are floating-point sums.
        if gap > scale * numeric.mp.mpf(2) ** -(math.ceil(bits) + 1):
            return False
        if not last and bits >= needed and not size.algebraic:
            return True
    return True


def has_unevaluated(node: object) -> bool:
    """Whether a sum, integral, product or limit stands anywhere in the tree."""
    return isinstance(node, Big) or any(has_unevaluated(part) for part in children(node))
