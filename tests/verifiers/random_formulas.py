"""Random formulas of functions of very large, very small and odd arguments."""

from __future__ import annotations

import random

_LEAVES = (
    "0", "1", "2", "-1", "3", "7", "10", "100", "0.5", "1e5", "1e-9", "10^{9}", "10^{100}", "999999999",
    "x", "y", "n", "\\pi", "e", "i", "\\infty", "\\theta", "\\frac12", "12345678901234567890", "1.5",
    "2024",
)  # fmt: skip
_SHAPES = (
    "{}+{}", "({})({})", "\\frac{{{}}}{{{}}}", "({})^{{{}}}", "\\sqrt{{{}}}", "\\sqrt[{}]{{{}}}",
    "\\sin({})", "\\ln({})", "\\log_{{{}}}({})", "({})!", "\\binom{{{}}}{{{}}}", "e^{{{}}}", "|{}|",
    "\\lfloor {}\\rfloor", "\\tan({})", "\\arcsin({})", "\\cosh({})", "\\gcd({},{})", "{}\\pm{}",
    "({},{})", "\\{{{},{}\\}}", "[{},{})", "{}={}", "{}<{}", "{}\\le {}", "{}\\%", "{}^\\circ",
    "({})\\bmod({})", "\\begin{{pmatrix}}{}\\\\{}\\end{{pmatrix}}", "({})!!", "{} \\text{{ cm}}",
    "{}:{}", "{}, {}", "{} \\text{{ or }} {}", "C_{{{}}}^{{{}}}", "{} \\pmod{{{}}}",
)  # fmt: skip


def random_formula(draw: random.Random, depth: int) -> str:
    """One formula of at most `depth` nested shapes."""
    if depth == 0 or draw.random() < 0.15:
        return draw.choice(_LEAVES)
    shape = draw.choice(_SHAPES)
    return shape.format(
        *(random_formula(draw, depth - 1) for _ in range(shape.replace("{{", "").count("{}")))
    )
