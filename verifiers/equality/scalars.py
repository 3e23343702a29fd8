"""Equality of single values: numbers, expressions, percentages, money, measured quantities."""

from __future__ import annotations

from fractions import Fraction
from typing import TypeGuard

from verifiers import policy
from verifiers.equality.exact import TooLarge, Undefined, children, free_symbols, rational
from verifiers.equality.numeric import Numeric, has_unevaluated
from verifiers.equality.values import infinity_sign, values_equal
from verifiers.grammar.nodes import Node, Num, Op, Quantity, Sym
from verifiers.grammar.plain import terminates
from verifiers.grammar.units import changes_value, convert

_UNIT_LETTERS = frozenset("msghLlJNWVAKdCF")
_BARE_UNITS = frozenset("msghLNJWV")
_CONSTANTS_OF_INTEGRATION = (Sym("c"), Sym("K"), Sym("k"), Sym("C_1"), Sym("c_1"))
_ANGLES = frozenset({"degree", "arcminute", "arcsecond"})


def decimal_literal(node: Node) -> Num | None:
    """The number a reference states as a decimal, `decimals` counted to its last digit; else None."""
    if isinstance(node, Num):
        return node if node.decimals is not None else None
    if isinstance(node, Op) and node.name == "neg":
        inner = decimal_literal(node.args[0])
        return None if inner is None else Num(-inner.value, inner.decimals)
    if isinstance(node, Op) and node.name == "mul" and len(node.args) == 2:
        head, power = node.args
        inner = decimal_literal(head)
        if inner is None or inner.decimals is None:
            return None
        if isinstance(power, Op) and power.name == "pow" and power.args[0] == Num(Fraction(10)):
            exponent, value = rational(power.args[1]), rational(node)
            if value is not None and exponent is not None and exponent.denominator == 1:
                places = inner.decimals - int(exponent)
                return Num(value, places) if -1000 < places < 1000 else None
    return None


def scalars_equal(reference: Node, given: Node) -> bool:
    """Whether a given value is the reference; a decimal reference allows rounding to its own digits."""
    if isinstance(reference, Op) and reference.name == "pmod":
        return _congruent(reference, given)
    if _folded(reference) or _folded(given):
        return _quantities_equal(reference, given)
    if not free_symbols(reference) and free_symbols(given) and free_symbols(given) <= _BARE_UNITS:
        # "7 m" and "7 m/s" can only be units where the reference has no variable.
        return _exact_or_rounded(reference, getattr(_with_unit_letters(given), "value", given))
    return _exact_or_rounded(reference, given)


def _exact_or_rounded(reference: Node, given: Node) -> bool:
    given = _same_constant(reference, given)
    if not policy.may_divide_by(free_symbols(reference), _divided_by(given)):
        return False
    if values_equal(reference, given):
        return True
    stated = decimal_literal(reference)
    if stated is None or stated.decimals is None or free_symbols(given) or has_unevaluated(given):
        return False
    if infinity_sign(given):
        return False
    try:
        exact = rational(given)
        if exact is not None:
            return policy.within_own_digits(stated.value, stated.decimals, exact, terminates(exact))
        return _rounds_to(stated, given)
    except (TooLarge, Undefined):
        return False


def _divided_by(node: object) -> frozenset[str]:
    """The letters of the denominators in a tree."""
    found = frozenset().union(*map(_divided_by, children(node)))
    if isinstance(node, Op) and node.name == "div":
        return found | free_symbols(node.args[1])
    if isinstance(node, Op) and node.name == "pow" and _is_negative(node.args[1]):
        return found | free_symbols(node.args[0])
    return found


def _is_negative(exponent: Node) -> bool:
    if isinstance(exponent, Num):
        return exponent.value < 0
    return isinstance(exponent, Op) and exponent.name == "neg"


def _rounds_to(stated: Num, given: Node) -> bool:
    """Whether an irrational constant rounds to the stated decimal."""
    places = stated.decimals or 0
    if not policy.may_round(stated.value, places):
        return False
    numeric = Numeric(128 + 4 * abs(places) + stated.value.numerator.bit_length())
    value = numeric.value(given)
    if not numeric.is_real(value):
        return False
    target = numeric.mp.mpf(stated.value.numerator) / stated.value.denominator
    return bool(abs(value.real - target) * 2 * numeric.mp.mpf(10) ** places <= 1)


def _congruent(reference: Op, given: Node) -> bool:
    """Residues of one modulus; a missing modulus is forgiven where the residue is the same number."""
    if not isinstance(given, Op) or given.name != "pmod":
        return values_equal(reference.args[0], given)
    if not values_equal(reference.args[1], given.args[1]):
        return False
    try:
        ours, modulus = rational(reference.args[0]), rational(reference.args[1])
        theirs = rational(given.args[0])
    except (TooLarge, Undefined):
        return False
    if ours is None or theirs is None or not modulus:
        return values_equal(reference.args[0], given.args[0])
    return (ours - theirs) % modulus == 0


def _same_constant(reference: Node, given: Node) -> Node:
    """The given antiderivative with its constant of integration named as the reference's is."""
    if not isinstance(reference, Op) or reference.name != "add" or Sym("C") not in reference.args:
        return given
    if not isinstance(given, Op) or given.name != "add" or "C" in free_symbols(given):
        return given
    others = [arg for arg in given.args if arg in _CONSTANTS_OF_INTEGRATION]
    if len(others) != 1 or others[0].name in free_symbols(reference):
        return given
    return Op("add", tuple(Sym("C") if arg in others else arg for arg in given.args))


def _with_unit_letters(node: Node) -> Quantity | None:
    """10 m, 5 m/s and 9.8 m/s^2 written without \\text: a number times unit letters."""
    if not isinstance(node, Op) or node.name not in ("mul", "div"):
        return None
    value: list[Node] = []
    unit: list[str] = []
    top, bottom = node.args if node.name == "div" else (node, None)
    factors = top.args if _is_product(top) else (top,)
    if bottom is None and isinstance(last := factors[-1], Op) and last.name == "div" and len(factors) > 1:
        factors, bottom = (*factors[:-1], last.args[0]), last.args[1]  # 15 (m/s)
    for part in factors:
        letter = _unit_letter(part)
        if letter and value:
            unit.append(letter)
        elif unit or free_symbols(part):
            return None
        else:
            value.append(part)
    if bottom is not None:
        letters = [_unit_letter(p) for p in (bottom.args if _is_product(bottom) else (bottom,))]
        if not all(letters):
            return None
        unit += ["/", *letters]
    if not unit or not value:
        return None
    return Quantity(
        value[0] if len(value) == 1 else Op("mul", tuple(value)), " ".join(unit).replace(" / ", "/")
    )


def _is_product(node: Node) -> TypeGuard[Op]:
    return isinstance(node, Op) and node.name == "mul"


def _unit_letter(node: Node) -> str:
    """m or m^2 where the letter can be a unit; "" for anything else."""
    base, exponent = node.args if isinstance(node, Op) and node.name == "pow" else (node, None)
    if not isinstance(base, Sym) or base.name not in _UNIT_LETTERS:
        return ""
    if exponent is None:
        return base.name
    return f"{base.name}^{exponent.value}" if isinstance(exponent, Num) else ""


def quantity_of(node: Node) -> Node:
    """10 m, 5 m/s and 2 m + 3 m as quantities; any other node as it is."""
    if not isinstance(node, Op):
        return node
    return _folded(node) or _with_unit_letters(node) or node


def _folded(node: Node) -> Quantity | None:
    """A sum of quantities of one dimension, or a multiple of one, as one quantity; else None."""
    if isinstance(node, Quantity):
        return node
    if not isinstance(node, Op) or node.name not in ("add", "neg", "mul", "div"):
        return None
    parts = [_folded(arg) for arg in node.args]
    found = [part for part in parts if part is not None]
    if not found:
        return None
    unit = found[0].unit
    if node.name == "add":
        factors = [policy.unit_factor(convert(unit), convert(part.unit)) for part in found]
        terms = tuple(_scaled(part.value, f) for part, f in zip(found, factors, strict=True) if f)
        return Quantity(Op("add", terms), unit) if len(terms) == len(parts) else None
    if len(found) > 1 or (node.name == "div" and parts[0] is None):
        return None
    values = (arg if part is None else part.value for arg, part in zip(node.args, parts, strict=True))
    return Quantity(Op(node.name, tuple(values)), unit)


def _quantities_equal(reference: Node, given: Node) -> bool:
    """Values with units, by `policy`'s rules; an angle in degrees also equals its measure in radians."""
    reference, given = quantity_of(reference), quantity_of(given)
    ours, our_unit = _split(reference)
    theirs, their_unit = _split(given)
    if "%" in (our_unit, their_unit):
        if our_unit not in ("", "%") or their_unit not in ("", "%"):
            return False
        return _percentages_equal(ours, our_unit == "%", theirs, their_unit == "%")
    if not our_unit and changes_value(theirs, their_unit):
        return False
    if our_unit == their_unit:
        return scalars_equal(ours, theirs)
    if _ANGLES & {our_unit, their_unit} and values_equal(reference, given):
        return True
    if our_unit and their_unit and policy.may_mean_both(our_unit, their_unit):
        return scalars_equal(ours, theirs)
    if not (our_unit and their_unit) and not policy.may_be_left_out(our_unit or their_unit):
        return False
    factor = policy.unit_factor(
        convert(our_unit) if our_unit else None, convert(their_unit) if their_unit else None
    )
    return factor is not None and scalars_equal(ours, _scaled(theirs, factor))


def _split(node: Node) -> tuple[Node, str]:
    return (node.value, node.unit) if isinstance(node, Quantity) else (node, "")


def _percentages_equal(ours: Node, our_percent: bool, theirs: Node, their_percent: bool) -> bool:
    try:
        is_share = policy.is_share(rational(ours))
    except (TooLarge, Undefined):
        is_share = False
    for our_factor, their_factor, rounds in policy.percent_readings(our_percent, their_percent, is_share):
        a, b = _scaled(ours, our_factor), _scaled(theirs, their_factor)
        if scalars_equal(a, b) if rounds else values_equal(a, b):
            return True
    return False


def _scaled(value: Node, factor: Fraction) -> Node:
    return value if factor == 1 else Op("mul", (value, Num(factor)))
