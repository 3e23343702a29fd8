"""Functions that change their form somewhere, tried on all sides of every break.

|x - 7|, max(a, b), the sign of x and even roots change where an expression, their switch, is 0. The points
lie on lines through random points: along each variable, and in random directions. On a line every switch is a
function of one number; its zeros (a polynomial's up to `MAX_DEGREE`, else where its sign changes on a grid)
cut the line into cells, and one random point of each cell is tried. So both sides of every break that a line
crosses are seen, and each is tried by several lines. In a cell two different rational functions of degree d
agree at its point with a probability of at most d / 2^40.

Floors, ceilings and remainders change at infinitely many places: they are tried at `NUM_STEPS` random points
over some hundred steps and at the edges of some, or, where the variables are letters of integers, at
integers, as gcd and lcm always are: for one variable all of 1 to 2 L for the common denominator L of their
arguments, else random ones that share many factors. A difference on one residue of a modulus beyond
`MAX_RESIDUES` can be missed.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from verifiers.base import ParseError
from verifiers.equality.exact import children, free_symbols, rational
from verifiers.equality.numeric import GUARD_BITS, Numeric
from verifiers.grammar.nodes import Node, Num, Op

MAX_DEGREE = 6
NUM_STEPS = 60
MAX_RESIDUES = 120
NUM_BASES = 3
MAX_LINES = 9
MAX_SWITCHES = 12
_FINE = 2**40

_SIGNS = frozenset({"abs", "sgn", "max", "min"})
_STEPS = frozenset({"floor", "ceil", "mod"})
_DIVISORS = frozenset({"gcd", "lcm"})
_BREAKING = _SIGNS | _STEPS | _DIVISORS
_INTEGER_LETTERS = frozenset({"i", "j", "k", "l", "m", "n", "N", "M", "K"})

Env = dict[str, Fraction]


def has_breaks(node: object) -> bool:
    """Whether a function of variables is used that changes its form somewhere."""
    if (
        isinstance(node, Op)
        and (node.name in _BREAKING or _even_root(node) is not None)
        and free_symbols(node)
    ):
        return True
    return any(has_breaks(part) for part in children(node))


class _Form(Numeric):
    """Values with every function that has breaks as a number of its own, which only its argument decides."""

    def operation(self, node: Op) -> Any:
        inside = _even_root(node)
        if inside is None and node.name not in _BREAKING:
            return super().operation(node)
        values = [self.value(arg) for arg in (node.args if inside is None else (inside,))]
        if node.name == "abs":
            values = [max(values[0], -values[0], key=lambda value: (value.real, value.imag))]
        texts = [self.mp.nstr(value, 20) for value in values]
        if node.name in ("max", "min", "gcd", "lcm"):
            texts.sort()
        exponent = "" if inside is None else str(_exponent(node))
        return self.pseudo_random(" ".join(("root" if exponent else node.name, exponent, *texts)))


def _exponent(node: Op) -> Fraction | None:
    number = rational(node.args[1])
    return 1 / number if number and node.name == "root" else number


def same_form(left: Node, right: Node, names: Sequence[str], rng: random.Random) -> bool:
    """Whether two functions agree even with unknown functions for those that have breaks: sufficient, and
    quick.
    """
    env = {name: _between(rng, Fraction(1), Fraction(3)) for name in names}
    form = _Form(2 * GUARD_BITS, env)
    try:
        a, b = form.value(left), form.value(right)
    except ParseError:
        return False
    return bool(abs(a - b) <= max(abs(a), abs(b), 1) * form.mp.mpf(2) ** -GUARD_BITS)


def points_on_all_sides(nodes: Sequence[Node], names: Sequence[str], rng: random.Random) -> Iterator[Env]:
    """Values of the variables that reach every form of the functions, as the module says."""
    found = set().union(*(_names_of_functions(node) for node in nodes))
    if found & _DIVISORS or (found & _STEPS and set(names) <= _INTEGER_LETTERS):
        yield from _integers(nodes, names, rng, divisors=bool(found & _DIVISORS))
        return
    if found & _STEPS:
        for scale in (1, 8, 100):
            for _ in range(NUM_STEPS // 3):
                yield {name: _between(rng, Fraction(-scale), Fraction(scale)) for name in names}
        for _ in range(NUM_STEPS // 4):  # on the steps' edges, where floor(x) is not ceil(x) - 1
            yield {name: Fraction(rng.randrange(-60, 61), rng.choice((1, 1, 2, 3, 4, 6))) for name in names}
    switches = list(dict.fromkeys(s for node in nodes for s in _switches(node)))[:MAX_SWITCHES]
    for base, direction in _lines(names, rng):
        zeros = sorted({zero for switch in switches for zero in _zeros(switch, base, direction)})
        for t in _one_of_each_cell(zeros, rng):
            yield {name: base[name] + t * direction[name] for name in names}


def _names_of_functions(node: object) -> set[str]:
    own = {node.name} if isinstance(node, Op) and free_symbols(node) else set()
    return own.union(*(_names_of_functions(part) for part in children(node)))


def _even_root(node: Op) -> Node | None:
    """What stands under an even root; None for anything else."""
    if node.name == "root":
        index = rational(node.args[1]) if not free_symbols(node.args[1]) else None
        even = index is not None and index.denominator == 1 and index.numerator % 2 == 0
        return node.args[0] if even else None
    if node.name == "pow" and isinstance(node.args[1], Num | Op) and not free_symbols(node.args[1]):
        try:
            exponent = rational(node.args[1])
        except ParseError:
            return None
        return node.args[0] if exponent is not None and exponent.denominator % 2 == 0 else None
    return None


def _switches(node: object) -> Iterator[Node]:
    """The expressions at whose zeros a function in the tree changes its form."""
    if isinstance(node, Op):
        if node.name in ("abs", "sgn"):
            yield node.args[0]
        elif node.name in ("max", "min"):
            for a, b in itertools.combinations(node.args, 2):
                yield Op("add", (a, Op("neg", (b,))))
        elif (inside := _even_root(node)) is not None:
            yield inside
    for part in children(node):
        yield from _switches(part)


def _between(rng: random.Random, low: Fraction, high: Fraction) -> Fraction:
    return low + (high - low) * Fraction(rng.randrange(1, _FINE), _FINE)


def _lines(names: Sequence[str], rng: random.Random) -> Iterator[tuple[Env, Env]]:
    """Random points, and from each one direction along every variable and one along all of them."""
    count = 0
    for scale in (Fraction(2), Fraction(30), Fraction(1, 2), Fraction(500)):
        for _ in range(NUM_BASES):
            base = {name: _between(rng, -scale, scale) for name in names}
            directions = [{name: Fraction(int(name == only)) for name in names} for only in names]
            if len(names) > 1:
                directions.append({name: _between(rng, Fraction(-1), Fraction(1)) for name in names})
            for direction in directions:
                count += 1
                if count > MAX_LINES:
                    return
                yield base, direction


def _zeros(switch: Node, base: Env, direction: Env) -> list[Fraction]:
    """Where a switch may be 0 on a line: the real parts of a polynomial's roots, else changes of sign."""

    def at(t: Fraction) -> Fraction | None:
        try:
            return rational(switch, {name: base[name] + t * direction[name] for name in base})
        except ParseError:
            return None

    values = [at(Fraction(t)) for t in range(MAX_DEGREE + 3)]
    known = [value for value in values if value is not None]
    if len(known) == len(values) and (coefficients := _polynomial(known)) is not None:
        return _roots(coefficients)
    return _sign_changes(switch, base, direction)


def _polynomial(values: list[Fraction]) -> list[Fraction] | None:
    """Coefficients, highest first, of a polynomial up to `MAX_DEGREE` with these values at 0, 1, 2, ..."""
    differences = [values]
    while len(differences[-1]) > 1:
        row = differences[-1]
        differences.append([b - a for a, b in itertools.pairwise(row)])
    heads = [row[0] for row in differences]
    if any(heads[MAX_DEGREE + 1 :]):
        return None
    # Newton's form in binomials of t, multiplied out.
    result = [Fraction(0)]
    term = [Fraction(1)]  # lowest first
    for order, head in enumerate(heads[: MAX_DEGREE + 1]):
        result = [a + head * b for a, b in itertools.zip_longest(result, term, fillvalue=Fraction(0))]
        term = [
            (low - order * high) / (order + 1)
            for low, high in itertools.zip_longest([Fraction(0), *term], term, fillvalue=Fraction(0))
        ]
    while len(result) > 1 and not result[-1]:
        result.pop()
    return result[::-1]


def _roots(coefficients: list[Fraction]) -> list[Fraction]:
    if len(coefficients) == 1:
        return []
    if len(coefficients) == 2:
        return [-coefficients[1] / coefficients[0]]
    mp = Numeric(128).mp
    if len(coefficients) == 3:
        a, b, c = coefficients
        half, rest = -b / (2 * a), (b * b - 4 * a * c) / (4 * a * a)
        # Without real zeros the vertex is as good a place as any.
        root = Fraction(math.isqrt(int(max(rest, Fraction(0)) * _FINE**2)), _FINE)
        return [half - root, half + root]
    numbers = [mp.mpf(c.numerator) / c.denominator for c in coefficients]
    try:
        roots = mp.polyroots(numbers, maxsteps=100, extraprec=128)
    except (mp.NoConvergence, ZeroDivisionError):
        return []
    return [Fraction(int(mp.floor(root.real * _FINE)), _FINE) for root in roots if abs(root.real) < 2**40]


def _sign_changes(switch: Node, base: Env, direction: Env) -> list[Fraction]:
    """Changes of sign on a grid that is fine near the point and reaches far, each halved thirty times."""

    def sign(t: Fraction) -> int | None:
        numeric = Numeric(96, {name: base[name] + t * direction[name] for name in base})
        try:
            value = numeric.value(switch)
        except ParseError:
            return None
        return int(numeric.mp.sign(value.real)) if numeric.is_real(value) else None

    steps = [Fraction(2) ** power for power in range(-5, 14)]
    grid = [-step for step in reversed(steps)] + [Fraction(0)] + steps
    signs = [sign(t) for t in grid]
    found: list[Fraction] = []
    for (low, high), (below, above) in zip(itertools.pairwise(grid), itertools.pairwise(signs), strict=True):
        if below == above or below is None or above is None:
            continue
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if sign(middle) == below else (low, middle)
        found.append(low)
    return found


def _one_of_each_cell(zeros: list[Fraction], rng: random.Random) -> Iterator[Fraction]:
    if not zeros:
        yield _between(rng, Fraction(-1), Fraction(1))
        return
    width = 1 + max(abs(zeros[0]), abs(zeros[-1]))
    ends = [zeros[0] - width, *zeros, zeros[-1] + width]
    for low, high in itertools.pairwise(ends):
        if high > low:
            yield _between(rng, low, high)


def _integers(
    nodes: Sequence[Node], names: Sequence[str], rng: random.Random, *, divisors: bool
) -> Iterator[Env]:
    if len(names) == 1:
        period = min(math.lcm(*(_denominators(node) for node in nodes)), MAX_RESIDUES // 2)
        for value in range(1, max(2 * period, 24) + 1):
            yield {names[0]: Fraction(value)}
        for _ in range(12):
            yield {names[0]: Fraction(rng.randrange(1, 10**6))}
        return
    for _ in range(MAX_RESIDUES):
        common = rng.choice((1, 1, 2, 3, 4, 6, 12, 30)) if divisors else 1
        yield {name: Fraction(common * rng.randrange(1, 25)) for name in names}


def _denominators(node: object) -> int:
    """A common multiple of the divisors and moduli that are written in a tree."""
    result = 1
    if isinstance(node, Num):
        result = node.value.denominator
    elif isinstance(node, Op) and node.name in ("div", "mod", "gcd", "lcm"):
        numbers = (arg.value for arg in node.args if isinstance(arg, Num))
        result = math.lcm(*(abs(n.numerator) for n in numbers if 0 < abs(n.numerator) <= MAX_RESIDUES))
    return min(math.lcm(result, *(_denominators(part) for part in children(node))), 10**9)
