"""Equations, labels and chains of relations."""

from __future__ import annotations

from fractions import Fraction

from verifiers.equality.breaks import has_breaks, points_on_all_sides
from verifiers.equality.exact import TooLarge, Undefined, free_symbols, rational
from verifiers.equality.names import is_name
from verifiers.equality.numeric import Numeric, has_unevaluated
from verifiers.equality.scalars import scalars_equal
from verifiers.equality.values import Points, needed_bits, values_equal
from verifiers.grammar.nodes import Big, Group, Matrix, Node, Op, Rel, Sym

_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


ANGLE = Sym("angle")
_PARTS = frozenset("abcdkmnpqrs")


def labelled(node: Node) -> tuple[Node, Node] | None:
    """(name, value) of `name = value`, None for anything else."""
    if isinstance(node, Rel) and node.ops == ("=",):
        name, value = node.sides
        if isinstance(name, Big) and not has_unevaluated(value):
            return name, value
        if is_matrix_name(name, value):
            return name, value
        if is_sum_of_names(name):
            return None if free_symbols(value) or isinstance(value, Group) else (name, value)
        if not is_name(name):
            return None
        if _applied(name) or not free_symbols(value) & free_symbols(name):
            return name, value
    return None


def is_sum_of_names(node: Node) -> bool:
    """m + n, which names what is asked for; x + 1 does not, and x + y = 5 is an equation."""
    return (
        isinstance(node, Op)
        and node.name == "add"
        and all(isinstance(arg, Sym) and arg.name in _PARTS for arg in node.args)
        and len(set(node.args)) == len(node.args)
    )


def is_matrix_name(node: Node, value: Node) -> bool:
    """A^{-1}, A^T or AB before a matrix: upper-case letters, their products and powers."""
    if not isinstance(value, Matrix):
        return False
    return _is_of_letters(node)


def _is_of_letters(node: Node) -> bool:
    if isinstance(node, Sym):
        return node.name[:1].isupper()
    if not isinstance(node, Op) or node.name not in ("pow", "mul", "add"):
        return False
    factors = node.args[:1] if node.name == "pow" else node.args
    return all(_is_of_letters(arg) for arg in factors)


def _applied(name: Node) -> bool:
    """f(x), whose own x may stand on the other side."""
    return isinstance(name, Op) and name.name in ("mul", "call")


def labels_agree(reference: Node, given: Node) -> bool:
    """The same name, or two names of a function's value: f(x) and y; AB is not AC, P(A) is not P(B)."""
    if reference == given:
        return True
    if ANGLE in (_head(reference), _head(given)):  # angle ABC is CBA, and not ACB
        return isinstance(reference, Op) and isinstance(given, Op) and reference.args[1:] == given.args[:0:-1]
    if values_equal(reference, given):
        return True
    if _applied(reference) and _applied(given):
        return False
    pair = (reference, given)
    return any(_applied(name) for name in pair) and any(name in (Sym("y"), Sym("z")) for name in pair)


def _head(name: Node) -> Node | None:
    return name.args[0] if isinstance(name, Op) and name.name == "mul" else None


def _difference(rel: Rel) -> Node:
    return Op("add", (rel.sides[0], Op("neg", (rel.sides[1],))))


def relations_equal(reference: Rel, given: Rel) -> bool:
    """The same relation: differences equal up to a constant factor, positive where the direction matters."""
    if len(reference.sides) != 2 or len(given.sides) != 2:
        return _chains_equal(reference, given)
    ours, theirs = reference.ops[0], given.ops[0]
    if ours not in _FLIPPED or theirs not in _FLIPPED:
        return ours == theirs and all(
            values_equal(a, b) for a, b in zip(reference.sides, given.sides, strict=True)
        )
    factor = constant_ratio(_difference(reference), _difference(given))
    if factor == 0:
        return False
    return theirs == (ours if factor > 0 else _FLIPPED[ours])


def _chains_equal(reference: Rel, given: Rel) -> bool:
    if len(reference.sides) != len(given.sides):
        return False
    for sides, ops in (
        (given.sides, given.ops),
        (given.sides[::-1], tuple(_FLIPPED.get(op, op) for op in given.ops[::-1])),
    ):
        if ops == reference.ops and all(
            scalars_equal(a, b) for a, b in zip(reference.sides, sides, strict=True)
        ):
            return True
    return False


def constant_ratio(left: Node, right: Node) -> int:
    """The sign of c where left = c * right for one constant c other than 0, else 0.

    Rational functions are compared at integers below 2^61 and, if those agree, exactly; others at
    random points, as in `exact`.
    """
    names = sorted(free_symbols(left) | free_symbols(right))
    if not names:
        return 1 if values_equal(left, right) else 0
    points = Points(left, right)
    try:
        if has_breaks(left) or has_breaks(right):
            return _ratio_on_all_sides(left, right, names, points)
        at_integers = _exact_ratio(left, right, names, points, 2)
        sign = _numeric_ratio(left, right, names, points) if at_integers is None else at_integers
        if sign == 0:
            return 0
        from verifiers.equality.polynomials import proportional_quotients  # sympy's import takes 0.3 s

        exact = proportional_quotients(left, right)
        if exact is None and at_integers is not None:
            exact = _exact_ratio(left, right, names, points, 4)
        return sign if exact is None else exact
    except (TooLarge, Undefined):
        return 0


def _ratio_on_all_sides(left: Node, right: Node, names: list[str], points: Points) -> int:
    """The sign of a ratio that is the same number on all sides of every break, else 0."""
    bits = needed_bits(left, right)
    first = None
    for env in points_on_all_sides((left, right), names, points.generator(5000)):
        numeric = Numeric(2 * bits, env)
        try:
            a, b = numeric.value(left), numeric.value(right)
        except Undefined:
            continue
        tiny = numeric.mp.mpf(2) ** -bits
        if abs(a) < tiny and abs(b) < tiny:
            continue
        if abs(a) < tiny or abs(b) < tiny or not numeric.is_real(a / b):
            return 0
        ratio = (a / b).real
        first = ratio if first is None else first
        if abs(ratio - first) > tiny * abs(first):
            return 0
    return 0 if first is None else 1 if first > 0 else -1


def _exact_ratio(left: Node, right: Node, names: list[str], points: Points, num_points: int) -> int | None:
    ratios: set[Fraction] = set()
    for trial in range(num_points):
        rng = points.generator(2000 + trial)
        env = {name: Fraction(rng.randrange(2, 2**61) * rng.choice((1, -1))) for name in names}
        a, b = rational(left, env), rational(right, env)
        if a is None or b is None:
            return None
        if a == 0 or b == 0:
            return 0
        ratios.add(a / b)
    if len(ratios) > 1:
        return 0
    return 1 if ratios.pop() > 0 else -1


def _numeric_ratio(left: Node, right: Node, names: list[str], points: Points) -> int:
    bits = needed_bits(left, right)
    first = None
    for trial in range(6):
        rng = points.generator(3000 + trial)
        signs = (1, 1, 1) if trial < 3 else (1, -1, -1)
        env = {name: Fraction(rng.randrange(2**20, 2**22), 2**21) * rng.choice(signs) for name in names}
        numeric = Numeric(2 * bits, env)
        try:
            a, b = numeric.value(left), numeric.value(right)
        except Undefined:
            continue
        if trial >= 3 and numeric.left_reals:
            continue  # beyond the real domain of a root or logarithm
        tiny = numeric.mp.mpf(2) ** -bits
        if abs(a) < tiny or abs(b) < tiny:
            return 0
        ratio = a / b
        if first is None:
            first = ratio
        elif abs(ratio - first) > tiny * abs(first):
            return 0
    if first is None or not Numeric(2 * bits).is_real(first):
        return 0
    return 1 if first.real > 0 else -1
