"""Numbers with many digits, and how many are enough: the numeric half of `exact`'s rules."""

from __future__ import annotations

import hashlib
import math
import threading
from fractions import Fraction
from typing import Any

from verifiers.equality.exact import TooLarge, Undefined, children, rational
from verifiers.equality.separation import measure
from verifiers.grammar.nodes import Big, Node, Num, Op, Quantity, Rel, Sym
from verifiers.grammar.units import convert

GUARD_BITS = 160
MAX_PRECISION = 12_000
"""Bits; a comparison that needs more is not decided, and so not equal."""

_local = threading.local()
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
        if exact is not None and base == 0 and exact <= 0:
            raise Undefined("zero to a power that is not positive")
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
