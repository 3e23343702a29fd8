"""Equality of single values: numbers, expressions, percentages, money, measured quantities."""

from __future__ import annotations

import hashlib
import random
from fractions import Fraction

from verifiers.equality.exact import TooLarge, Undefined, children, free_symbols, rational
from verifiers.equality.numeric import GUARD_BITS, Numeric, constants_equal, has_unevaluated, measure
from verifiers.grammar.nodes import Matrix, Node, Num, Op, Quantity, Sym
from verifiers.grammar.plain import PlainNumber, same_plain, terminates, within_own_digits
from verifiers.grammar.units import changes_value, convert

NUM_POINTS = 3
_REACH = (Fraction(1), Fraction(5), Fraction(1, 7))
"""Points lie near 1, where most functions are real, and further out and further in, where branches differ."""

_UNIT_LETTERS = frozenset("msghLlNJWVAKdCF")
_BARE_UNITS = frozenset("msghLNJWV")
_INTEGER_POINT_BITS = 61
_CONSTANTS_OF_INTEGRATION = (Sym("c"), Sym("K"), Sym("k"), Sym("C_1"), Sym("c_1"))


def infinity_sign(node: Node) -> int:
    """+1 or -1 for an infinite value, 0 for a finite one."""
    if isinstance(node, Sym) and node.name == "oo":
        return 1
    if isinstance(node, Op) and node.name == "neg":
        return -infinity_sign(node.args[0])
    return 0


def values_equal(left: Node, right: Node) -> bool:
    """Whether two expressions are the same number or function; the rules are in `exact`."""
    if left == right:
        return True
    if _bare_logs(left) != _bare_logs(right) and _same_values(_base_ten(left), _base_ten(right)):
        return True
    return _same_values(left, right)


def _bare_logs(node: object) -> bool:
    """Whether log stands without a base: the natural one, or, where only one side has it, base 10."""
    if isinstance(node, Op) and node.name == "log" and len(node.args) == 1:
        return True
    return any(_bare_logs(part) for part in children(node))


def _base_ten(node: Node) -> Node:
    if not isinstance(node, Op):
        return node
    args = tuple(_base_ten(arg) for arg in node.args)
    return (
        Op("log", (args[0], Num(Fraction(10))))
        if node.name == "log" and len(args) == 1
        else Op(node.name, args)
    )


def _same_values(left: Node, right: Node) -> bool:
    if infinity_sign(left) or infinity_sign(right):
        return infinity_sign(left) == infinity_sign(right)
    if has_unevaluated(left) != has_unevaluated(right):
        return False
    try:
        names = sorted(free_symbols(left) | free_symbols(right))
        if any(name.startswith(('"', "set ")) or name in ("emptyset", "ldots") for name in names):
            return False
        if not names and not has_unevaluated(left):
            return _constants(left, right)
        return _functions(left, right, names)
    except (TooLarge, Undefined):
        return False


def _constants(left: Node, right: Node) -> bool:
    a, b = rational(left), rational(right)
    if a is not None and b is not None:
        return a == b
    return constants_equal(left, right)


class Points:
    """Random points that are the same in every run but depend on both expressions.

    So no expression can be written that vanishes at the points it will be tried at.
    """

    def __init__(self, left: Node, right: Node) -> None:
        self.seed = hashlib.sha256("|".join(sorted((repr(left), repr(right)))).encode()).digest()

    def generator(self, trial: int) -> random.Random:
        digest = hashlib.sha256(self.seed + trial.to_bytes(4)).digest()
        return random.Random(int.from_bytes(digest[:8]))


def _functions(left: Node, right: Node, names: list[str]) -> bool:
    """At random points first; what they do not tell apart is decided by polynomials where possible."""
    points = Points(left, right)
    too_large = False
    try:
        equal = _at_integers(left, right, names, points)
        if equal is None:
            equal = _at_real_points(left, right, names, points)
        if not equal:
            return False
    except TooLarge:
        too_large = True
    from verifiers.equality.polynomials import equal_quotients  # sympy's import takes 0.3 s

    exact = equal_quotients(left, right)
    if exact is None:
        return not too_large and _at_integers(left, right, names, points, first=1) is not False
    return exact


def _at_real_points(left: Node, right: Node, names: list[str], points: Points) -> bool:
    needed = GUARD_BITS + sum(abs(part) for side in (left, right) for part in _sizes(side))
    if needed > 4000:
        raise TooLarge("functions too large to compare at random points")
    compared = 0
    for trial in range(2 * NUM_POINTS):
        rng = points.generator(trial)
        positive = trial < NUM_POINTS
        env = {
            name: Fraction(rng.randrange(2**20, 2**22), 2**21)
            * _REACH[trial % NUM_POINTS]
            * (1 if positive or rng.random() < 0.3 else -1)
            for name in names
        }
        numeric = Numeric(int(needed) + 64, env)
        try:
            a, b = numeric.value(left), numeric.value(right)
        except Undefined:
            continue
        if abs(a - b) <= max(abs(a), abs(b), 1) * numeric.mp.mpf(2) ** (-int(needed) + 32):
            compared += 1
        elif not numeric.left_reals:
            # Only points count at which every part of both sides is real.
            return False
    return compared > 0


def _sizes(node: Node) -> tuple[float, float]:
    size = measure(node)
    return size.u, size.l


def _at_integers(left: Node, right: Node, names: list[str], points: Points, first: int = 0) -> bool | None:
    """Exact comparison at a random integer point; None where a side is no rational function."""
    if not (_is_rational_function(left) and _is_rational_function(right)):
        return None
    for trial in range(first, first + 3):
        rng = points.generator(1000 + trial)
        env = {name: Fraction(rng.randrange(2, 2**_INTEGER_POINT_BITS)) for name in names}
        env |= {name: Fraction(rng.randrange(2, 2**_INTEGER_POINT_BITS)) for name in ("pi", "e")}
        try:
            a, b = rational(left, env), rational(right, env)
        except Undefined:
            continue
        except TooLarge:
            return None
        # pi and e stand for indeterminates here: a difference in them is one in value if they are free.
        return None if a is None or b is None else a == b
    return None


def _is_rational_function(node: Node) -> bool:
    """Whether only sums, products, quotients and integer powers act on the variables."""
    if isinstance(node, Num | Sym):
        return True
    if not isinstance(node, Op):
        return False
    if node.name in ("add", "mul", "div", "neg"):
        return all(_is_rational_function(arg) for arg in node.args)
    if node.name == "pow":
        exponent = None if free_symbols(node.args[1]) else rational(node.args[1])
        return exponent is not None and exponent.denominator == 1 and _is_rational_function(node.args[0])
    return not free_symbols(node) and rational(node) is not None


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
    if isinstance(reference, Quantity) or isinstance(given, Quantity):
        return _quantities_equal(reference, given)
    if not free_symbols(reference) and free_symbols(given) and free_symbols(given) <= _BARE_UNITS:
        # "7 m" and "7 m/s" can only be units where the reference has no variable.
        return _exact_or_rounded(reference, getattr(_with_unit_letters(given), "value", given))
    return _exact_or_rounded(reference, given)


def _exact_or_rounded(reference: Node, given: Node) -> bool:
    given = _same_constant(reference, given)
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
            return within_own_digits(stated.value, stated.decimals, exact, terminates(exact))
        return _rounds_to(stated, given)
    except (TooLarge, Undefined):
        return False


def _rounds_to(stated: Num, given: Node) -> bool:
    """Whether an irrational constant rounds to the stated decimal."""
    places = stated.decimals or 0
    if abs(stated.value) * Fraction(10) ** places < 10:
        return False  # one digit says too little, as in `within_own_digits`
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
    """10 m or 5 m/s written without \\text: a number times unit letters."""
    if not isinstance(node, Op) or node.name not in ("mul", "div"):
        return None
    value: list[Node] = []
    unit: list[str] = []
    rest = list(node.args) if node.name == "mul" else [node.args[0]]
    if node.name == "div" and isinstance(rest[0], Op) and rest[0].name == "mul":
        rest = list(rest[0].args)
    for part in rest:
        base = part.args[0] if isinstance(part, Op) and part.name == "pow" else part
        if isinstance(base, Sym) and base.name in _UNIT_LETTERS and value:
            exponent = part.args[1] if isinstance(part, Op) else None
            unit.append(base.name + (f"^{exponent.value}" if isinstance(exponent, Num) else ""))
        elif unit or free_symbols(part):
            return None
        else:
            value.append(part)
    if node.name == "div":
        if not isinstance(node.args[1], Sym) or node.args[1].name not in _UNIT_LETTERS:
            return None
        unit += ["/", node.args[1].name]
    if not unit or not value:
        return None
    return Quantity(
        value[0] if len(value) == 1 else Op("mul", tuple(value)), " ".join(unit).replace(" / ", "/")
    )


def quantity_of(node: Node) -> Node:
    """10 m and 5 m/s as quantities; any other node as it is."""
    return node if isinstance(node, Quantity) else _with_unit_letters(node) or node


def _quantities_equal(reference: Node, given: Node) -> bool:
    """Values with units.

    The same dimension is converted exactly, another dimension is another answer. A missing unit is forgiven
    on either side. A percentage p% is p/100; where the reference says percent, a bare p is read as p%, but a
    given p% is not p, and only a reference up to 1 may be met by a percentage at all. An angle in degrees
    also equals its measure in radians.
    """
    reference, given = quantity_of(reference), quantity_of(given)
    if isinstance(reference, Quantity) and isinstance(given, Quantity):
        if reference.unit == given.unit:
            return scalars_equal(reference.value, given.value)
        if "radian" in (reference.unit, given.unit):
            return values_equal(*(q.value if q.unit == "radian" else q for q in (reference, given)))
        ours, our_dimension = convert(reference.unit)
        theirs, their_dimension = convert(given.unit)
        if _generic(our_dimension) or _generic(their_dimension):
            same_kind = max(_power(our_dimension), 1) == max(_power(their_dimension), 1)
            return same_kind and scalars_equal(reference.value, given.value)
        if our_dimension != their_dimension:
            return False
        return values_equal(_scaled(reference.value, ours), _scaled(given.value, theirs))
    if isinstance(reference, Quantity):
        if reference.unit == "%":
            return scalars_equal(reference.value, given) or values_equal(reference, given)
        if reference.unit == "degree" and values_equal(reference, given):
            return True
        return scalars_equal(reference.value, given)
    if isinstance(given, Quantity):
        if given.unit == "%":
            return _at_most_one(reference) and values_equal(reference, given)
        if changes_value(given.value, given.unit):
            return False
        if given.unit == "degree" and values_equal(reference, given):
            return True
        return scalars_equal(reference, given.value)
    return _exact_or_rounded(reference, given)


def _generic(dimension: tuple[tuple[str, int], ...]) -> bool:
    """Square or cubic units, whatever the unit is."""
    return len(dimension) == 1 and dimension[0][0] == "unit"


def _power(dimension: tuple[tuple[str, int], ...]) -> int:
    """The exponent of the only length or unit in a dimension; 0 for any other."""
    return dimension[0][1] if len(dimension) == 1 and dimension[0][0] in ("unit", "length") else 0


def _at_most_one(node: Node) -> bool:
    """Whether a value can be meant as a share, so that a percentage is another way to write it."""
    try:
        value = rational(node)
    except (TooLarge, Undefined):
        return False
    return value is not None and abs(value) <= 1


def _scaled(value: Node, factor: Fraction) -> Node:
    return Op("mul", (value, Num(factor)))


__all__ = ["Matrix", "PlainNumber", "same_plain", "scalars_equal", "values_equal"]
