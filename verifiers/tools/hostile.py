"""Texts that no answer type may choke on, run, or accept: what the conformance kit throws at each of them."""

from __future__ import annotations

_DEEP = 50_000
_LONG = 200_000


def hostile_texts() -> dict[str, str]:
    """Hostile texts by a short name that says what each one attacks."""
    return _characters() | _shapes() | _values() | _code()


def _characters() -> dict[str, str]:
    """Characters that no answer has."""
    return {
        "blank": "   \t ",
        "null byte": "\x00",
        "lone surrogate": "\ud800",
        "byte order mark": "\ufeff",
        "zero-width only": "\u200b\u200c\u200d\u2060",
        "direction override": "\u202e21\u202c",
        "combining marks": "e" + "\u0301" * 5_000,
        "undefined characters": "\U000e0001\uffff\ufdd0",
        "control characters": "\x07\x1b[31m\x08",
        "digit from another script": "٣٤\u0967",
        "superscripts stacked": "2" + "²" * 2_000,
    }


def _shapes() -> dict[str, str]:
    """Long and deeply nested texts."""
    return {
        "long number": "9" * _LONG,
        "long decimal": "0." + "3" * _LONG,
        "long word": "a" * _LONG,
        "long sum": "+".join(["1"] * (_LONG // 2)),
        "long list": ",".join(["1"] * (_LONG // 2)),
        "long product of variables": "*".join(f"x_{{{i}}}" for i in range(5_000)),
        "many minus signs": "-" * _LONG + "1",
        "deep parentheses": "(" * _DEEP + "1" + ")" * _DEEP,
        "deep braces": "{" * _DEEP + "1" + "}" * _DEEP,
        "deep fractions": "\\frac{1}{" * 5_000 + "2" + "}" * 5_000,
        "deep roots": "\\sqrt{" * 5_000 + "2" + "}" * 5_000,
        "deep exponents": "2^{" * 5_000 + "2" + "}" * 5_000,
        "deep text": "\\text{" * 5_000 + "a" + "}" * 5_000,
        "open parentheses": "(" * _DEEP,
        "open braces": "\\frac{" * _DEEP,
        "closing braces": "}" * _DEEP,
        "backslashes": "\\" * _LONG,
        "dollar signs": "$" * _LONG,
    }


def _values() -> dict[str, str]:
    """Values that cannot be worked out in any time, or do not exist."""
    return {
        "power tower": "9**9**9**9",
        "LaTeX power tower": "10^{10^{10^{10}}}",
        "power of a power": "((((9^{99})^{99})^{99})^{99})^{99}",
        "negative power tower": "2^{-10^{20}}",
        "large float exponent": "1e999999999999",
        "factorial": "99999999999!",
        "nested factorial": "((9!)!)!",
        "repeated factorial": "9" + "!" * 5_000,
        "binomial": "\\binom{10^{12}}{5 \\cdot 10^{11}}",
        "expansion": "(a+b+c+d+e+f+g)^{5000}",
        "expanded powers": "*".join(f"(x+{i})^{{40}}" for i in range(200)),
        "large sum": "\\sum_{k=1}^{10^{12}} \\frac{1}{k}",
        "large product": "\\prod_{k=1}^{10^{9}} k",
        "hard integral": "\\int_0^1 x^{x^{x}} e^{\\sin(x^x)} dx",
        "large root index": "\\sqrt[10^{9}]{10^{9}+1}",
        "trigonometry of a huge number": "\\sin(10^{10^{8}})",
        "logarithm of a huge number": "\\log(10^{10^{8}})",
        "nested roots": "\\sqrt{2+" * 40 + "1" + "}" * 40,
        "large modulus": "7^{10^{18}} \\bmod 10^{18}",
        "division by zero": "1/0",
        "zero to the power zero": "0^0",
        "logarithm of zero": "\\log 0",
        "indeterminate": "\\infty-\\infty",
        "not a number": "nan",
        "large matrix": "\\begin{pmatrix}" + "\\\\".join(["&".join(["1"] * 300)] * 300) + "\\end{pmatrix}",
        "unclosed matrix": "\\begin{pmatrix} 1 & 2",
        "large set": "\\{" + ",".join(str(i) for i in range(50_000)) + "\\}",
        "many unions": "\\cup".join(f"[{i},{i + 1}]" for i in range(0, 20_000, 2)),
        "many plus-minus": "\\pm".join(["1"] * 60),
        "chained comparison": "<".join(str(i) for i in range(5_000)),
        "chained equation": "=".join(["x"] * 20_000),
    }


def _code() -> dict[str, str]:
    """Code, and texts that trap what reads them."""
    return {
        "Python import": "__import__('os').system('echo run')",
        "Python lambda": "(lambda: (_ for _ in ()).throw(SystemExit))()",
        "Python attribute walk": "().__class__.__mro__[1].__subclasses__()",
        "Python exit": "exit()",
        "sympy call": "sympify('exit()')",
        "sympy symbol call": "Symbol('x').func.__init__.__globals__",
        "format string": "{0.__class__.__init__.__globals__}%s%n%x",
        "LaTeX file input": "\\input{/etc/passwd}",
        "LaTeX macro loop": "\\def\\x{\\x\\x}\\x",
        "shell": "$(touch owned); `touch owned`",
        "SQL": "'; DROP TABLE answers; --",
        "markup": "<script>alert(1)</script>",
        "regular expression trap": "a" * 30_000 + "!",
        "spaces trap": " " * _LONG + "x",
        "comma trap": "1" + "," * _LONG,
        "digit group trap": "1" + ",000" * 50_000,
        "mixed trap": "1 " * (_LONG // 2),
    }
