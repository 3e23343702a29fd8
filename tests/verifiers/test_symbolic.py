"""Every kind of answer as an exact sympy object, bounded whatever the text."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sympy
from hostile_corpus import CORPUS
from random_formulas import random_formula
from sympy import S

from verifiers import ParseError, read
from verifiers.answers.structured import read_answer
from verifiers.equality.exact import free_symbols
from verifiers.equality.numeric import Numeric
from verifiers.equality.simplify import comparable
from verifiers.grammar.nodes import Num, Op
from verifiers.tools.hostile import hostile_texts

a, b, k, n, x, y, i = sympy.symbols("a b k n x y i")
MATRIX = sympy.ImmutableMatrix([[1, x], [3, 4]])

OBJECTS = [
    ("0.25", S.One / 4),
    ("9\\%", sympy.Rational(9, 100)),
    ("1 1/2", S(3) / 2),
    ("101_2", S(5)),
    ("10!", S(3628800)),
    ("30^\\circ", sympy.pi / 6),
    ("3:4", S(3) / 4),
    ("2x+3x", 5 * x),
    ("3+4i", 3 + 4 * sympy.I),
    ("\\sqrt{8}", 2 * sympy.sqrt(2)),
    ("\\sqrt[3]{-2}", -sympy.cbrt(2)),
    ("(-8)^{1/3}", S(-2)),
    ("\\sin\\frac\\pi3", sympy.sqrt(3) / 2),
    ("\\log_2 x", sympy.log(x) / sympy.log(2)),
    ("e^{2x}", sympy.exp(2 * x)),
    ("|x-1|", sympy.Abs(x - 1)),
    ("\\lfloor x\\rfloor", sympy.floor(x)),
    ("n!", sympy.factorial(n)),
    ("\\binom nk", sympy.binomial(n, k)),
    ("\\max(1,x)", sympy.Max(1, x)),
    ("x\\bmod 3", sympy.Mod(x, 3)),
    ("x=5", sympy.Eq(x, 5)),
    ("x\\ne 5", sympy.Ne(x, 5)),
    ("x<5", x < 5),
    ("1<x\\le 3", sympy.And(sympy.Lt(1, x), x <= 3)),
    ("x<1 or x>3", sympy.Or(x < 1, x > 3)),
    ("x=1,y=2", sympy.And(sympy.Eq(x, 1), sympy.Eq(y, 2))),
    ("(1,2)", sympy.Tuple(1, 2)),
    ("1,2,2", sympy.Tuple(1, 2, 2)),
    ("[3,1]", sympy.Tuple(3, 1)),
    ("1\\pm\\sqrt2", sympy.Tuple(1 + sympy.sqrt(2), 1 - sympy.sqrt(2))),
    ("\\{1,2,2\\}", sympy.FiniteSet(1, 2)),
    ("1 \\text{ or } 2", sympy.FiniteSet(1, 2)),
    ("(1,2]", sympy.Interval.Lopen(1, 2)),
    ("[0,1]", sympy.Interval(0, 1)),
    ("(a,b]", sympy.Interval.Lopen(a, b)),
    ("(0,\\infty)", sympy.Interval.open(0, sympy.oo)),
    ("[\\sqrt2,\\pi]", sympy.Interval(sympy.sqrt(2), sympy.pi)),
    ("(-\\infty,1)\\cup[2,3)", sympy.Union(sympy.Interval.open(-sympy.oo, 1), sympy.Interval.Ropen(2, 3))),
    ("\\mathbb{R}", S.Reals),
    ("no solution", S.EmptySet),
    ("-\\infty", -sympy.oo),
    ("\\mathbb{R}\\setminus\\{0\\}", sympy.Complement(S.Reals, sympy.FiniteSet(0), evaluate=False)),
    ("x\\in(0,1)", sympy.Contains(x, sympy.Interval.open(0, 1))),
    ("\\{x\\in\\mathbb{R}\\mid x^2>2\\}", sympy.ConditionSet(x, x**2 > 2, S.Reals)),
    ("\\{2k : k\\in\\mathbb{Z}\\}", sympy.ImageSet(sympy.Lambda(k, 2 * k), S.Integers)),
    ("\\begin{pmatrix}1&x\\\\3&4\\end{pmatrix}", MATRIX),
    ("\\begin{vmatrix}1&x\\\\3&4\\end{vmatrix}", sympy.Determinant(MATRIX)),
    ("\\begin{pmatrix}1&x\\\\3&4\\end{pmatrix}^2", sympy.MatPow(MATRIX, 2)),
    (
        "\\begin{cases}x^2,&\\text{if }x<1\\\\2&\\text{otherwise}\\end{cases}",
        sympy.Piecewise((x**2, x < 1), (2, True)),
    ),
    ("\\int_0^1 x^2\\,dx", sympy.Integral(x**2, (x, 0, 1))),
    ("\\int \\frac{dx}{x}", sympy.Integral(1 / x, x)),
    ("\\sum_{i=1}^{10} i^2", sympy.Sum(i**2, (i, 1, 10))),
    ("\\prod_{k=1}^n k", sympy.Product(k, (k, 1, n))),
    ("\\lim_{x\\to 0}\\frac{\\sin x}{x}", sympy.Limit(sympy.sin(x) / x, x, 0, dir="+-")),
    ("\\frac{d}{dx} x^2", sympy.Derivative(x**2, x)),
]


@pytest.mark.parametrize(("text", "expected"), OBJECTS, ids=[text for text, _ in OBJECTS])
def test_each_kind_of_answer_has_its_object(text: str, expected: sympy.Basic) -> None:
    result = read(text)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "Monday", "5 cm", "8:05", "3=4", "n\\equiv 3\\pmod 5", "\\frac{1}{x-x}", "\\frac00", "2^{10^9}",
        "\\gcd(a,b)", "\\{\\{1\\},\\{2\\}\\}", "(2,1]", "\\text{yes}", "", "(((", "x\\in A",
    ],
)  # fmt: skip
def test_what_has_no_object_says_so_in_one_sentence(text: str) -> None:
    with pytest.raises(ParseError, match=r"^[^\n]+$"):
        read(text)


@pytest.mark.parametrize(
    "text",
    [
        "(2x)^{10^9}\\cdot 3", "e^{10^9\\ln 2}", "2^{10^9 x/x}", "2^{10^9\\cos 0}", "\\sqrt{2}^{10^9}",
        "\\{x\\in\\{3,4\\}\\mid x^{10^9}>2\\}", "\\cos\\frac{\\pi}{2^{500}}", "\\sqrt{10^{1000}+1}x",
        "|(1+\\sqrt2)^2-3-2\\sqrt2|>0", "\\{e^{e^{e^{e^9}}},2\\}\\cup(1,2)", "(10^8x/x)!",
        "\\sum_{k=1}^{10^9}k!",
    ],
)  # fmt: skip
def test_bombs_are_built_unevaluated_or_refused(text: str) -> None:
    start = time.process_time()
    with contextlib.suppress(ParseError):
        read(text)
    assert time.process_time() - start < 5  # one that goes off takes hours or all memory


def test_hostile_and_random_texts_neither_hang_nor_crash() -> None:
    draw = random.Random(20240608)
    texts = [case.answer for case in CORPUS] + [case.completion[:6000] for case in CORPUS]
    texts += [*hostile_texts().values(), *(random_formula(draw, draw.randint(1, 5)) for _ in range(600))]
    made = 0
    for text in texts:
        start = time.process_time()
        with contextlib.suppress(ParseError):
            made += isinstance(read(text), sympy.Basic)
        assert time.process_time() - start < 5, text[:200]
    assert made > 300


def test_objects_have_the_values_that_verdicts_are_made_of() -> None:
    tables = sorted(Path(__file__).with_name("tables").glob("*.jsonl"))
    lines = [line for table in tables for line in table.read_text(encoding="utf-8").splitlines()]
    compared = 0
    for text in dict.fromkeys(json.loads(line)["answer"] for line in lines):
        try:
            node = read_answer(text).node
            node = node and comparable(node)
            if not isinstance(node, Op | Num) or free_symbols(node):
                continue
            result, ours = read(text), Numeric(200).value(node)
        except ParseError:
            continue
        theirs = sympy.N(result.doit() if isinstance(result, sympy.Determinant) else result, 30)
        assert abs(theirs - sympy.sympify(ours)) <= 1e-25 * max(1, abs(theirs)), text
        compared += 1
    assert compared > 400


def test_importing_the_package_and_judging_numbers_imports_no_sympy() -> None:
    code = (
        "import sys, verifiers; verifiers.verify('so 3', '3'); "
        "print('sympy' in sys.modules, 'mpmath' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
