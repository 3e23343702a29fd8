"""Rational functions are compared exactly: within stated bounds, and only where random points agree."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from verifiers import Outcome, verify
from verifiers.equality import polynomials, values
from verifiers.equality.polynomials import (
    MAX_PRODUCTS,
    Quotients,
    Unfit,
    equal_quotients,
    proportional_quotients,
)
from verifiers.grammar import parse

EQUAL = [
    ("(x+y)^3", "x^3+3x^2y+3xy^2+y^3"),
    ("\\frac{1}{x-1}+\\frac{1}{x+1}", "\\frac{2x}{x^2-1}"),
    ("\\frac{x^2-1}{x-1}", "x+1"),
    ("(x^{-1}+y^{-1})^{-1}", "\\frac{xy}{x+y}"),
    ("(x-\\sqrt{2})(x+\\sqrt{2})", "x^2-2"),
    ("\\frac{x}{\\sqrt{12}}", "\\frac{\\sqrt{3}x}{6}"),
    ("\\sqrt{6}x", "\\sqrt{2}\\sqrt{3}x"),
    ("\\frac{x}{1+\\sqrt{2}}", "(\\sqrt{2}-1)x"),
    ("(x+i)(x-i)", "x^2+1"),
    ("\\sqrt{-4}x", "2ix"),
    ("\\sqrt{\\frac{2}{3}}x", "\\frac{\\sqrt{6}}{3}x"),
    ("\\pi(x+e)^2", "\\pi x^2+2\\pi ex+\\pi e^2"),
    ("x^{50000}x^{50000}", "x^{100000}"),
    ("0.5x+5!", "\\frac{x+240}{2}"),
]
DIFFERENT = [
    ("(x+y)^3", "x^3+3x^2y+3xy^2+y^3+10^{-30}"),
    ("\\sqrt{2}x", "\\sqrt{3}x"),
    ("\\sqrt{6}x", "\\sqrt{2}+\\sqrt{3}x"),
    ("\\sqrt{-4}x", "-2ix"),
    ("\\pi x", "ex"),
    ("(x+1)^{40}", "(x+1)^{39}(x+2)"),
]


@pytest.mark.parametrize(("left", "right"), EQUAL)
def test_equal_functions_are_proven_equal(left: str, right: str) -> None:
    assert equal_quotients(parse(left), parse(right)) is True
    assert verify(f"\\boxed{{{left}}}", right).outcome is Outcome.CORRECT


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_different_functions_are_proven_different(left: str, right: str) -> None:
    assert equal_quotients(parse(left), parse(right)) is False
    assert verify(f"\\boxed{{{left}}}", right).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    "text",
    [
        "\\sin x",
        "x^y",
        "\\frac{1}{x-x}",
        "\\frac{x}{\\sqrt{2}\\sqrt{2}-2}",
        "\\sqrt[3]{2}x",
        "\\sqrt{x}",
        "|x|",
    ],
)
def test_other_and_undefined_functions_are_left_to_the_points(text: str) -> None:
    assert equal_quotients(parse(text), parse(f"0+{text}")) is None


@pytest.mark.parametrize(
    "text",
    [
        "(x+y+z+w)^{200}",
        "(x+1)^{10000}",
        "(2x)^{100000}",
        "x^{1000000}",
        "((x^{999})^{999})^{999}",
        "(x+y)^{30}(z+w)^{30}(a+b)^{30}",
        "+".join(f"\\frac{{1}}{{x_{{{n}}}}}" for n in range(12)) + "+\\frac{1}{(x+y+z)^{40}}",
        "+".join(f"x_{{{n}}}" for n in range(40)),
        "x\\sqrt{1000003000003}",
    ],
)
def test_what_is_beyond_the_bounds_is_left_undecided_before_it_is_expanded(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = []

    class Watched(Quotients):
        def __init__(self, *nodes: object) -> None:
            fields.append(self)
            super().__init__(*nodes)  # type: ignore[arg-type]

        def times(self, left, right):  # type: ignore[no-untyped-def]
            result = super().times(left, right)
            assert self.products <= MAX_PRODUCTS
            assert len(result) <= MAX_PRODUCTS
            return result

    monkeypatch.setattr(polynomials, "Quotients", Watched)
    assert equal_quotients(parse(text), parse(f"1+{text}")) is None
    assert len(fields) == 1


def test_a_function_that_vanishes_at_every_point_tried_is_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values.Points, "generator", lambda self, trial: random.Random(7))
    point = random.Random(7).randrange(2, 2**61)
    given, reference = parse(f"x^2+x-{point}"), parse("x^2")
    assert not values.values_equal(reference, given)
    assert verify(f"\\boxed{{x(x-{point})=0}}", f"(2x-{point})(x-{point})=0").outcome is Outcome.WRONG
    # By points alone it would have been accepted.
    monkeypatch.setattr(polynomials, "equal_quotients", lambda left, right: None)
    assert values.values_equal(reference, given)


def test_the_points_depend_on_both_expressions_but_not_on_their_order() -> None:
    a, b, c = map(parse, ("x+1", "1+x", "x+2"))
    draws = {
        pair: values.Points(*nodes).generator(0).random()
        for pair, nodes in {"ab": (a, b), "ba": (b, a), "ac": (a, c), "bc": (b, c)}.items()
    }
    assert draws["ab"] == draws["ba"]
    assert len(set(draws.values())) == 3


@pytest.mark.parametrize(
    ("left", "right", "sign"),
    [
        ("2x+2y-4", "x+y-2", 1),
        ("4-2x-2y", "x+y-2", -1),
        ("\\frac{x}{3}-\\frac{y}{x}", "x^2-3y", 0),
        ("x^2-3x", "\\frac{6x-2x^2}{7}", -1),
        ("x-1", "x+1", 0),
        ("x", "y", 0),
        ("x-x", "x", 0),
        ("\\pi x", "x", None),
        ("\\sqrt{2}x", "x", None),
        ("\\sin x", "x", None),
    ],
)
def test_constant_factors_of_equations(left: str, right: str, sign: int | None) -> None:
    assert proportional_quotients(parse(left), parse(right)) == sign


def test_a_polynomial_that_passes_the_probes_is_not_linear() -> None:
    given = "\\boxed{x+x(x-1)(x-3)(x+7)<5}"
    assert verify(given, "x<5").outcome is Outcome.WRONG
    assert verify("\\boxed{(x+1)^2-x^2<11}", "x<5").outcome is Outcome.CORRECT


def test_roots_are_split_into_distinct_primes() -> None:
    assert polynomials._square_free(2**5 * 3**2 * 7) == (12, (2, 7))
    assert polynomials._square_free(1009**2 * 2) == (1009, (2,))
    assert polynomials._square_free(999_983) == (1, (999_983,))
    with pytest.raises(Unfit):
        polynomials._square_free(1009 * 1013)


CODE = """
import sys
from verifiers import verify
for completion, answer in {judged!r}:
    verify(completion, answer)
print("sympy" in sys.modules)
"""


@pytest.mark.parametrize(
    ("judged", "loaded"),
    [
        ([("\\boxed{1/2}", "0.5"), ("\\boxed{\\sqrt{8}}", "2\\sqrt2"), ("\\boxed{x^2}", "x^3")], False),
        ([("\\boxed{(1,2)}", "(1,2)"), ("\\boxed{[0,1)}", "0\\le x<1"), ("\\boxed{x=3}", "3")], False),
        ([("\\boxed{x+1}", "1+x")], True),
    ],
)
def test_sympy_is_imported_for_true_equalities_of_functions_only(judged: list, loaded: bool) -> None:
    code = CODE.format(judged=judged)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)


def test_a_worker_has_imported_sympy_before_it_says_that_it_is_ready() -> None:
    code = (
        "import sys; from verifiers.pool.worker import _load; _load({'auto'}); print('sympy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
