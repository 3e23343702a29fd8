"""Numbers and formulas as exact sympy expressions: the scalar half of `symbolic`.

Rational parts are folded by `exact.rational`, whose bounds come first. The rest is built bottom up. A part
is *tame* while its evaluation by sympy is known to be cheap: sums, products and integer powers of tame parts
whose numbers, all multiplied out, stay below `MAX_TAME_BITS`; roots of small rational numbers and of
variables; elementary functions of those. Tame parts are evaluated as sympy does by itself (x + x becomes
2 x). Everything else, and whatever contains it, is built with evaluate=False: sympy would otherwise have to
multiply out, factor, or find signs numerically, which no bound holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy

from verifiers.base import ParseError
from verifiers.equality.exact import TooLarge, Undefined, free_symbols, rational
from verifiers.equality.numeric import Numeric
from verifiers.equality.scalars import infinity_sign
from verifiers.grammar.nodes import Big, Cases, Group, Node, Num, Op, Quantity, Ratio, Rel, Sym
from verifiers.grammar.vocabulary import words

MAX_TAME_BITS = 20_000
MAX_ROOT_BITS = 512
"""Sympy looks for factors and perfect powers of the numbers under roots."""
MAX_ARGUMENT_BITS = 128
"""Of sin, ln and the like: cos(pi / 2^k) becomes k nested roots."""

_SIGN_BITS = 192
BOUND = "bound "
"""Marks an index of summation, for one called i is no imaginary unit."""
_CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "oo": sympy.oo}
_ELEMENTARY = {
    name: getattr(sympy, name.replace("arc", "a"))
    for name in words(
        "sin cos tan cot sec csc sinh cosh tanh coth sech csch arcsin arccos arctan arccot arcsec arccsc "
        "arcsinh arccosh arctanh"
    )
} | {"ln": sympy.log}  # fmt: skip
_UNEVALUATED = {
    "abs": sympy.Abs, "floor": sympy.floor, "ceil": sympy.ceiling, "sgn": sympy.sign, "Re": sympy.re,
    "Im": sympy.im, "arg": sympy.arg, "fact": sympy.factorial, "fact2": sympy.factorial2,
}  # fmt: skip
_UNEVALUATED_OF_TWO = {"mod": sympy.Mod, "binom": sympy.binomial}
_UNEVALUATED_OF_ANY = {"max": sympy.Max, "min": sympy.Min}


@dataclass(frozen=True, slots=True)
class Term:
    """A sympy expression; `bits` bounds its numbers multiplied out, None where it is not tame."""

    value: Any
    bits: float | None
    plain: bool = True  # whether it contains no function


def no_counterpart(what: str) -> ParseError:
    """The error for what has no exact sympy object."""
    return ParseError(f"{what} has no exact sympy object")


def number(value: Fraction) -> Any:
    return sympy.Rational(value.numerator, value.denominator)


def scalar(node: Node, unevaluated: Callable[[Big], Any]) -> Term:
    """The term of a number or formula; `unevaluated` makes the object of a sum, integral or limit.

    Raises `ParseError` for what has no counterpart, and for numbers beyond the bounds.
    """
    if isinstance(node, Num):
        return _number(node.value)
    if isinstance(node, Sym):
        return _symbol(node.name)
    if isinstance(node, Quantity):
        return _quantity(node, unevaluated)
    if isinstance(node, Ratio):
        if len(node.parts) != 2 or node.suffix or node.digits[-1].startswith("0"):
            raise no_counterpart("a time of day or a ratio of more than two parts")
        return scalar(Op("div", node.parts), unevaluated)
    if isinstance(node, Big):
        return Term(unevaluated(node), None)
    if not isinstance(node, Op):
        kind = {Rel: "a statement", Group: "a list", Cases: "a piecewise definition"}.get(type(node), "a set")
        raise no_counterpart(f"{kind} inside a formula")
    if infinity_sign(node):
        return Term(sympy.oo * infinity_sign(node), None)
    exact = rational(node)
    if exact is not None:
        return _number(exact)
    if node.name in ("pow", "root"):
        return _power(node, unevaluated)
    terms = [scalar(arg, unevaluated) for arg in node.args]
    if node.name in ("add", "mul", "neg", "div"):
        return _arithmetic(node.name, terms)
    return _function(node.name, terms)


def _number(value: Fraction) -> Term:
    return Term(number(value), value.numerator.bit_length() + value.denominator.bit_length() - 1)


def _symbol(name: str) -> Term:
    if name == "oo":
        return Term(sympy.oo, None)
    if name.startswith('"') or name == "ldots":
        raise no_counterpart(f"the text {name}")
    if name.startswith("set ") or name == "emptyset":
        raise no_counterpart("a set inside a formula")
    return Term(_CONSTANTS.get(name) or sympy.Symbol(name.removeprefix(BOUND)), 0)


def _quantity(node: Quantity, unevaluated: Callable[[Big], Any]) -> Term:
    value = scalar(node.value, unevaluated)
    if node.unit == "%":
        return _arithmetic("div", [value, _number(Fraction(100))])
    if node.unit == "degree":
        return _arithmetic("mul", [value, Term(sympy.pi, 0), _number(Fraction(1, 180))])
    raise no_counterpart(f"a value in units ({node.unit})")


def _tame_bits(terms: list[Term]) -> float | None:
    total = 0.0
    for term in terms:
        if term.bits is None:
            return None
        total += term.bits
    return total if total <= MAX_TAME_BITS else None


def _arithmetic(name: str, terms: list[Term]) -> Term:
    bits = _tame_bits(terms)
    values = [term.value for term in terms]
    options = {} if bits is not None else {"evaluate": False}
    if name == "neg":
        values.insert(0, sympy.S.NegativeOne)
    elif name == "div":
        values[1] = sympy.Pow(values[1], -1, **options)
    result = (sympy.Add if name == "add" else sympy.Mul)(*values, **options)
    return Term(result, bits, all(term.plain for term in terms))


def _power(node: Op, unevaluated: Callable[[Big], Any]) -> Term:
    base_node, exponent_node = node.args
    exact = rational(exponent_node)
    if node.name == "root":
        if exact == 0:
            raise Undefined("a root of index 0")
        exponent_node = Op("div", (Num(Fraction(1)), exponent_node)) if exact is None else Num(1 / exact)
        exact = None if exact is None else 1 / exact
    base = scalar(base_node, unevaluated)
    exponent = scalar(exponent_node, unevaluated)
    plain = base.plain and exponent.plain
    if exact is not None and exact.denominator % 2 and exact.denominator > 1 and _is_negative(base_node):
        # The real root of a negative number, as everywhere in this package; sympy's own is complex.
        positive = scalar(Op("neg", (base_node,)), unevaluated)
        power = Term(*_raise(positive, exponent, exact), plain)
        return _arithmetic("neg", [power]) if exact.numerator % 2 else power
    return Term(*_raise(base, exponent, exact), plain)


def _raise(base: Term, exponent: Term, exact: Fraction | None) -> tuple[Any, float | None]:
    """The power and its bits, evaluated where it is tame."""
    bits: float | None = None
    if base.bits is not None and exponent.bits is not None:
        simple = base.value.is_Symbol or base.value is sympy.E or base.value is sympy.pi
        if exact is not None and exact.denominator == 1:
            bits = base.bits * abs(exact.numerator)
        elif exact is not None and (simple or (base.value.is_Rational and base.bits <= MAX_ROOT_BITS)):
            bits = base.bits * (abs(exact) + 1)
        elif exact is None and (simple or base.value.is_Rational):
            # Sympy may find a number in the exponent (x / x, cos 0), and exp(n log b) is b^n.
            bits = max(base.bits, exponent.bits) * 2.0 ** min(exponent.bits, 64.0)
    if bits is not None and bits <= MAX_TAME_BITS:
        return sympy.Pow(base.value, exponent.value), bits
    return sympy.Pow(base.value, exponent.value, evaluate=False), None


def _is_negative(node: Node) -> bool:
    """Whether a constant is a negative real number."""
    if free_symbols(node):
        return False
    try:
        numeric = Numeric(_SIGN_BITS)
        value = numeric.value(node)
        return numeric.is_real(value) and bool(value.real < 0)
    except (TooLarge, Undefined):
        return False


def _function(name: str, terms: list[Term]) -> Term:
    values = [term.value for term in terms]
    bits = _tame_bits(terms)
    if name == "log" or (name == "ln" and len(terms) == 2):
        logarithms = [_function("ln", [term]) for term in terms]
        return logarithms[0] if len(terms) == 1 else _arithmetic("div", logarithms)
    if name in _ELEMENTARY and len(terms) == 1:
        if bits is not None and bits <= MAX_ARGUMENT_BITS and terms[0].plain:
            return Term(_ELEMENTARY[name](values[0]), bits, plain=False)
        return Term(_ELEMENTARY[name](values[0], evaluate=False), None, plain=False)
    unevaluated = _UNEVALUATED_OF_ANY | {1: _UNEVALUATED, 2: _UNEVALUATED_OF_TWO}.get(len(terms), {})
    if name not in unevaluated:
        raise no_counterpart(f"{name} of what are not numbers")
    return Term(unevaluated[name](*values, evaluate=False), None, plain=False)
