"""Sympy as an independent judge: its exact decisions on expressions that it made, rewrote and printed."""

from __future__ import annotations

from fractions import Fraction

import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from verifiers import Outcome, read, verify
from verifiers.equality.separation import _in_cyclotomic_field, _totient
from verifiers.grammar.nodes import Num

x, y = sympy.symbols("x y")
PERTURBATIONS = [
    sympy.S.Zero, sympy.S.Zero, sympy.S.One, sympy.Rational(1, 10**12), -sympy.Rational(1, 7), x / 10**9,
    y**3,
]  # fmt: skip
CONSTANT_PERTURBATIONS = [p for p in PERTURBATIONS if not p.free_symbols]
examples = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def accepts(given_expression: object, reference: object) -> bool:
    """Our verdict on what sympy prints."""
    texts = [e if isinstance(e, str) else sympy.latex(e) for e in (given_expression, reference)]
    verdict = verify(f"\\boxed{{{texts[0]}}}", texts[1])
    assert verdict.outcome in (Outcome.CORRECT, Outcome.WRONG), (texts, verdict)
    return verdict.outcome is Outcome.CORRECT


@st.composite
def rational_functions(draw: st.DrawFn, depth: int = 3) -> sympy.Expr:
    if depth == 0 or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from([x, y, *map(sympy.Integer, range(1, 8))]))
    a, b = draw(rational_functions(depth=depth - 1)), draw(rational_functions(depth=depth - 1))
    shape = draw(st.sampled_from("+-*/^"))
    if shape == "^":
        return a ** draw(st.sampled_from([2, 3, -1, -2]))
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / (b + 3)}[shape]


REWRITINGS = [
    sympy.expand,
    sympy.factor,
    sympy.together,
    sympy.cancel,
    lambda e: sympy.apart(e, x, full=False),
]


@examples
@given(rational_functions(), st.sampled_from(REWRITINGS), st.sampled_from(PERTURBATIONS))
def test_rational_functions(e: sympy.Expr, rewrite: object, perturbation: sympy.Expr) -> None:
    assume(e.free_symbols and not e.has(sympy.zoo, sympy.nan))
    try:
        given_expression = rewrite(e) + perturbation  # type: ignore[operator]
    except NotImplementedError:  # apart of several variables
        given_expression = sympy.expand(e) + perturbation
    assert accepts(given_expression, e) is (sympy.cancel(given_expression - e) == 0)
    assert sympy.cancel(read(sympy.latex(given_expression)) - e - perturbation) == 0


@examples
@given(rational_functions(depth=2), rational_functions(depth=2))
def test_independent_rational_functions(a: sympy.Expr, b: sympy.Expr) -> None:
    assume(not (a + b).has(sympy.zoo, sympy.nan))
    assert accepts(a, b) is (sympy.cancel(a - b) == 0)


@st.composite
def radicals(draw: st.DrawFn) -> sympy.Expr:
    """(a + b r)^k (c + s), or its quotient, with two square roots or one cube root r, s of small numbers."""
    small = st.integers(-3, 3).map(sympy.Integer)
    radicands = st.integers(2, 12).map(sympy.Integer)
    # Sympy's minimal polynomials of more than that take their time.
    r, s = sympy.sqrt(draw(radicands)), sympy.sqrt(draw(radicands))
    if draw(st.booleans()):
        r = s = sympy.cbrt(draw(radicands))
    first, second = draw(small) + draw(small) * r, draw(small) + s
    power = draw(st.sampled_from([1, 2]))
    return first**power * second if draw(st.booleans()) else first**power / second


@examples
@given(
    radicals(),
    st.sampled_from([sympy.expand, sympy.radsimp, sympy.sqrtdenest]),
    st.sampled_from(CONSTANT_PERTURBATIONS),
)
def test_radicals(e: sympy.Expr, rewrite: object, perturbation: sympy.Expr) -> None:
    assume(not e.has(sympy.zoo, sympy.nan))
    given_expression = rewrite(e) + perturbation  # type: ignore[operator]
    expected = sympy.minimal_polynomial(given_expression - e, x) == x
    assert accepts(given_expression, e) is expected
    assert sympy.minimal_polynomial(read(sympy.latex(given_expression)) - given_expression, x) == x


@examples
@given(st.integers(2, 30), st.integers(2, 30), st.integers(-2, 2).map(lambda n: Fraction(n, 10**9)))
def test_nested_radicals(a: int, b: int, gap: Fraction) -> None:
    nested = sympy.sqrt(a + b + 2 * sympy.sqrt(a * b)) + sympy.Rational(gap.numerator, gap.denominator)
    plain = sympy.sqrt(a) + sympy.sqrt(b)
    assert accepts(nested, plain) is (sympy.minimal_polynomial(nested - plain, x) == x)


angles = st.tuples(
    st.sampled_from([sympy.sin, sympy.cos, sympy.tan]), st.integers(-24, 24),
    st.sampled_from([1, 2, 3, 4, 5, 6, 8, 10, 12]),
)  # fmt: skip


@examples
@given(angles, angles, st.sampled_from("+-*"), st.sampled_from(CONSTANT_PERTURBATIONS))
def test_trigonometric_values(first: tuple, second: tuple, sign: str, perturbation: sympy.Expr) -> None:
    values = [function(sympy.pi * k / n) for function, k, n in (first, second)]
    assume(not any(value.has(sympy.zoo) for value in values))
    a, b = (f"\\{function.__name__}\\frac{{{k}\\pi}}{{{n}}}" for function, k, n in (first, second))
    combined = {"+": values[0] + values[1], "-": values[0] - values[1], "*": values[0] * values[1]}[sign]
    asked = f"{a}\\cdot {b}" if sign == "*" else f"{a}{sign}{b}"
    # Sympy has put radicals for the functions; a text of functions is ours alone.
    given_expression = combined + perturbation
    assert accepts(given_expression, asked) is (perturbation == 0)
    assert accepts(asked, given_expression) is (perturbation == 0)
    other = values[0] * 2
    assert accepts(f"2{a}", combined) is (sympy.minimal_polynomial(other - combined, x) == x)


logarithms = st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 36)), min_size=1, max_size=3)


@examples
@given(logarithms, logarithms, st.booleans())
def test_logarithms(first: list, second: list, combine: bool) -> None:
    def total(terms: list) -> sympy.Expr:
        return sympy.Add(*(k * sympy.log(n) for k, n in terms))

    def split(e: sympy.Expr) -> sympy.Expr:
        return sympy.expand_log(e, force=True, factor=True)

    a = total(first)
    b = sympy.logcombine(a, force=True) if combine else total(second)
    for given_expression in (b, split(a), b + sympy.Rational(1, 10**12)):
        difference = split(split(given_expression) - split(a))
        assert accepts(given_expression, a) is (sympy.expand(difference) == 0)


@settings(examples, max_examples=20)  # sympy's own decision takes its time
@given(rational_functions(depth=2), st.sampled_from(["\\sin x", "e^{x}", "\\sqrt{x}", "\\ln x"]))
def test_functions_of_variables(e: sympy.Expr, function: str) -> None:
    assume(not e.has(sympy.zoo, sympy.nan))
    inner = read(function)
    given_expression = sympy.expand((inner + e) ** 2)
    assert accepts(given_expression, (inner + e) ** 2)
    for changed in (given_expression + inner / 10**12, given_expression + x**2 - x):
        assert changed.equals((inner + e) ** 2) is False
        assert not accepts(changed, (inner + e) ** 2)


def test_one_cyclotomic_field_counts_once_in_the_separation_bound() -> None:
    asked = "\\sin\\frac{\\pi}{3}+\\sin\\frac{\\pi}{5}"
    exact = sympy.sin(sympy.pi / 3) + sympy.sin(sympy.pi / 5)
    assert accepts(exact, asked)
    assert not accepts(exact + sympy.Rational(1, 10**300), asked)
    assert [_totient(n) for n in (1, 4, 60, 97, 1440)] == [sympy.totient(n) for n in (1, 4, 60, 97, 1440)]
    for order in (12, 20, 24, 60):
        field = sympy.QQ.algebraic_field(sympy.exp(2 * sympy.pi * sympy.I / order)) if order == 12 else None
        for square in (2, 3, 5, 6, 10, 15, 12, 7):
            inside = _in_cyclotomic_field((Num(Fraction(square)), 2), order)
            # sqrt(d) lies there exactly if its conductor divides the order (Kronecker, Weber).
            core = sympy.core.numbers.Integer(
                sympy.prod(p for p, e in sympy.factorint(square).items() if e % 2)
            )
            assert inside is (order % int(core if core % 4 == 1 else 4 * core) == 0)
        assert field is None or field.mod.degree() == _totient(order)
