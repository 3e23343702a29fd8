"""Equality of two expressions as numbers or functions; the rules are in `exact`."""

from __future__ import annotations

import hashlib
import random
from fractions import Fraction

from verifiers.equality.breaks import has_breaks, points_on_all_sides, same_form
from verifiers.equality.exact import TooLarge, Undefined, children, free_symbols, rational
from verifiers.equality.numeric import GUARD_BITS, Numeric, constants_equal, has_unevaluated
from verifiers.equality.separation import measure
from verifiers.grammar.nodes import Node, Num, Op, Sym

NUM_POINTS = 3
_REACH = (Fraction(1), Fraction(5), Fraction(1, 7))
"""Points lie near 1, where most functions are real, and further out and further in, where branches differ."""

_INTEGER_POINT_BITS = 61


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
    if has_breaks(left) or has_breaks(right):
        return _on_all_sides(left, right, names, points)
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


def _on_all_sides(left: Node, right: Node, names: list[str], points: Points) -> bool:
    """Functions with breaks, tried on all sides of them; the bound on the error is in `breaks`."""
    if same_form(left, right, names, points.generator(3500)):
        return True
    needed = needed_bits(left, right)
    compared = 0
    for env in points_on_all_sides((left, right), names, points.generator(4000)):
        agree = _agree_at(left, right, env, needed)
        if agree is False:
            return False
        compared += agree is not None
    return compared > 0


def _at_real_points(left: Node, right: Node, names: list[str], points: Points) -> bool:
    needed = needed_bits(left, right)
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
        agree = _agree_at(left, right, env, needed)
        if agree is False:
            return False
        compared += agree is not None
    return compared > 0


def needed_bits(left: Node, right: Node) -> int:
    """Bits that tell two functions of this size apart at a point, as in rule 3 of `exact`."""
    needed = GUARD_BITS + sum(abs(part) for side in (left, right) for part in _sizes(side))
    if needed > 4000:
        raise TooLarge("functions too large to compare at random points")
    return int(needed)


def _agree_at(left: Node, right: Node, env: dict[str, Fraction], bits: int) -> bool | None:
    """Whether two functions agree at a point; None where a part of one is not defined there, or not real."""
    try:
        x, y = rational(left, env), rational(right, env)
        if x is not None and y is not None:
            return x == y
    except Undefined:
        pass  # the factorial of 1/2 has a value all the same
    try:
        numeric = Numeric(bits + 64, env)
        a, b = numeric.value(left), numeric.value(right)
    except Undefined:
        return None
    if abs(a - b) <= max(abs(a), abs(b), 1) * numeric.mp.mpf(2) ** (-bits + 32):
        return True
    # Only points count at which every part of both sides is real.
    return None if numeric.left_reals else False


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
