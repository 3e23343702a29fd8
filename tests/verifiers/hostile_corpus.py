"""Hostile completions, each with the one thing that matters: may it be accepted or not?

`python tests/verifiers/hostile_corpus.py > hostile.jsonl` writes them as labelled lines for the benchmark.
"""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """A reference, a completion, and whether the completion deserves to be called correct."""

    kind: str
    answer: str
    completion: str
    accept: bool
    answer_type: str = "auto"
    extract: str = "auto"


def box(text: str) -> str:
    return f"Thus the result is $\\boxed{{{text}}}$."


def refused(kind: str, answer: str, *completions: str, answer_type: str = "auto") -> list[Case]:
    return [Case(kind, answer, completion, False, answer_type) for completion in completions]


def accepted(kind: str, answer: str, *completions: str, answer_type: str = "auto") -> list[Case]:
    return [Case(kind, answer, completion, True, answer_type) for completion in completions]


BOMBS = [
    *refused(
        "bomb",
        "42",
        box("9^{9^{9^{9}}}"),
        box("9**9**9**9"),
        box("10^{10^{100}}"),
        box("99999999!"),
        box("((10!)!)!"),
        box("9!!!!!!!!!!!!!!"),
        box("\\binom{10^{10}}{10^{9}}"),
        box("\\sum_{k=1}^{10^{15}} k^{-2}"),
        box("\\prod_{k=1}^{10^8} (k+1)"),
        box("(1+x)^{100000}"),
        box("(a+b+c+d+e)^{999}"),
        box("\\sqrt[1000000007]{2^{1000000007}+1}"),
        box("2^{-10^{30}}"),
        box("1e1000000000"),
        box("1e-1000000000"),
        box("\\sin(10^{10^{10}})"),
        box("e^{e^{e^{e^{10}}}}"),
        box("\\log_{2}(2^{10^{18}}) + 10^{10^{7}}"),
        box("7^{10^{12}} \\mod 10^{9}"),
        box("0x" + "f" * 300_000),
        box("101_{2}" * 2_000),
        box("(10^{5000})^{5000}"),
        box("\\frac{1}{2}^{" * 40 + "9" + "}" * 40),
        box("\\int_0^{\\infty} e^{-x^{x^{x}}} dx"),
        box("\\lim_{n\\to\\infty} n!^{n!^{n!}}"),
        box("+".join(f"\\sqrt{{{p}}}" for p in range(2, 400))),
        box("*".join(f"(x_{{{i}}}+1)" for i in range(60))),
        box("\\sqrt{" + "+\\sqrt{".join(str(n) for n in range(2, 40)) + "}" * 38),
        box("\\gcd(10^{10^{6}}, 10^{10^{6}}-1)"),
        "the answer is 9**9**9**9**9",
        "#### 99999999999!",
    ),
    *refused("bomb", "x^2+1", box("(x+1)^{10^9}"), box("(x^{99999}+1)(x^{99999}-1)"), box("x^{x^{x^{x}}}")),
    *refused("bomb", "(x+1)^{10}", box("(x+1)^{10}+10^{-10^{10}}")),
    *refused("bomb", "10^{10^{10}}", box("10^{10^{10}}+1"), box("10^{10^{9}}")),
    *refused("bomb", "99999999!", box("99999998!")),
]

SIZES = [
    *refused(
        "size",
        "42",
        box("4" * 1_000_000),
        box("0." + "1" * 1_000_000),
        box("1+" * 300_000 + "1"),
        box("1," * 300_000 + "1"),
        box("x" * 500_000),
        "z" * 3_000_000,
        "42 " * 500_000,
        "$" * 1_000_000,
        "\\" * 1_000_000,
        "<think>" * 200_000 + "\\boxed{42}",
        "\n" * 1_000_000,
        " " * 2_000_000,
        "\\boxed{" + "-" * 500_000 + "42}",
        box("\\{" + ",".join(str(n) for n in range(100_000)) + "\\}"),
        box("\\begin{pmatrix}" + "1 & " * 100_000 + "1\\end{pmatrix}"),
        box("\\text{" + "forty two " * 100_000 + "}"),
        "A: " * 300_000,
        "#### " * 300_000,
        "the answer is " * 100_000,
    ),
    *accepted(
        "size",
        "42",
        "We try again and again. " * 40_000 + "\\boxed{42}",
        "<think>" + "hm, 41? " * 100_000 + "</think> So \\boxed{42}.",
        "{" * 20_000 + "}" * 20_000 + " so \\boxed{42}",
    ),
]

_INTERVALS = [f"[{2 * i},{2 * i + 1}]" for i in range(300)]
_SURDS = [f"[\\sqrt{{{2 * i}}},\\sqrt{{{2 * i + 1}}}]" for i in range(300)]
SIZES += [
    *accepted("size", "\\cup".join(_INTERVALS), box("\\cup ".join(reversed(_INTERVALS)))),
    *refused("size", "\\cup".join(_INTERVALS), box("\\cup".join(_INTERVALS[1:])), box("\\cup".join(_SURDS))),
]

NESTING = [
    *refused(
        "nesting",
        "42",
        box("(" * 100_000 + "42" + ")" * 100_000),
        box("{" * 30_000 + "41" + "}" * 30_000),
        box("\\frac{" * 20_000),
        box("\\sqrt{" * 10_000 + "1" + "}" * 10_000),
        box("\\left(" * 10_000 + "41" + "\\right)" * 10_000),
        box("-(" * 20_000 + "41" + ")" * 20_000),
        box("|" * 50_000),
        box("x_{" * 10_000 + "1" + "}" * 10_000),
        box("[" * 50_000 + "]" * 50_000),
        "\\boxed{" * 50_000,
        "\\boxed{" * 20_000 + "41" + "}" * 20_000,
        "}" * 100_000,
        box("\\begin{matrix}" * 5_000),
        box("\\{" * 20_000 + "1" + "\\}" * 20_000),
        # One inside the other without a bracket.
        box("(-1,1)" + "\\cap(-2,2)" * 300),
        box("(0,1)" + "\\setminus\\{7\\}" * 400),
        box("(0,1)" + "\\cup(0,1)\\cap(0,1)" * 300),
        box("43" + "/1" * 1_000),
        box("43" + "\\bmod 50" * 500),
        box("43" + "^\\circ" * 500),
        box("43" + "!" * 1_000),
        # A product doubles with every factor.
        box("\\begin{pmatrix}x&y\\\\z&1\\end{pmatrix}" * 40),
        box("2," + "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}" * 40),
        box("\\det(" + "\\begin{pmatrix}x&2\\\\3&4\\end{pmatrix}" * 40 + ")"),
    ),
    *accepted("nesting", "42", box("{{{{42}}}}"), box("((42))")),
]

INJECTION = [
    *refused(
        "injection",
        "42",
        box("__import__('os').system('touch {marker}')"),
        box("open('{marker}','w').write('x')"),
        box("exec(\"open('{marker}','w')\")"),
        box("(lambda f: f.write('x'))(open('{marker}','w'))"),
        box("Symbol('x').__class__.__init__.__globals__['__builtins__']['open']('{marker}','w')"),
        box("sympify(\"__import__('os').mkdir('{marker}')\")"),
        box("parse_expr(\"open('{marker}','w')\")"),
        box("\\text{open('{marker}','w')}"),
        box("[x for x in (1).__class__.__base__.__subclasses__()]"),
        box("\\input{/etc/passwd}"),
        box("\\write18{touch {marker}}"),
        box("\\def\\a{\\a\\a}\\a"),
        box("$(touch {marker})"),
        box("`touch {marker}`"),
        box("{0.__class__}"),
        box("%(answer)s"),
        box("exit()"),
        box("quit"),
        box("raise SystemExit"),
        box("1; import os; os.mkdir('{marker}')"),
        box("eval(input())"),
        box("breakpoint()"),
        box("globals()"),
        box("answer"),
        box("reference == given or True"),
        box("x if x else 42"),
        "#### __import__('pathlib').Path('{marker}').touch()",
        "The answer is os.mkdir('{marker}')",
        "```python\nprint(42)\n```\n\\boxed{print(42)}",
        '{"outcome": "correct", "correct": true}',
        '["correct", "42", "", 0.0, false]\n["correct"',
    ),
]

HEDGING = [
    *refused(
        "hedging",
        "42",
        box("41") + " or " + box("42"),
        "\\boxed{41} or \\boxed{42}",
        "\\boxed{42} or \\boxed{43}",
        "\\boxed{42}, \\boxed{43}",
        "\\boxed{42 \\text{ or } 43}",
        "\\boxed{42 or 43}",
        "\\boxed{42, 43}",
        "\\boxed{\\{42, 43\\}}",
        "\\boxed{41, 42, 43, 44}",
        "\\boxed{42/43}",
        "\\boxed{42; 43}",
        "\\boxed{42 \\lor 43}",
        "\\boxed{x = 42 \\text{ or } x = 43}",
        "\\boxed{\\pm 42}",
        "\\boxed{42 \\pm 1}",
        "\\boxed{[41, 43]}",
        "\\boxed{41 < x < 43}",
        "\\boxed{\\approx 42 \\text{ or } 40}",
        "\\boxed{\\text{maybe } 42}",
        " ".join(f"\\boxed{{{n}}}" for n in range(1, 43)),
        "\n".join(f"\\boxed{{{n}}}" for n in range(1_000, 41, -1)),
        "The answer is 42 or 43.",
        "The answer is either 42 or 43.",
        "The answer is 42, 43, or 44.",
        "The answer is between 41 and 43.",
        "The answer is not 42.",
        "The answer isn't 42.",
        "\\boxed{\\text{not } 42}",
        "\\boxed{\\neq 42}",
        "\\boxed{\\ne 42}",
        "\\boxed{>41}",
        "#### 42 or 43",
        "#### 41, 42",
        "A: 42 or 43",
    ),
    *refused("hedging", "B", "\\boxed{A, B}", "\\boxed{A or B}", "\\boxed{ABCD}", "The answer is A or B."),
    *refused("hedging", "B", "The answer is not B.", "\\boxed{\\text{(A) or (B)}}", answer_type="choice"),
    *refused("hedging", "yes", "\\boxed{yes and no}", "The answer is yes or no.", answer_type="boolean"),
    *accepted(
        "self-correction",
        "42",
        "First I get \\boxed{41}. Wait, I forgot one. It is \\boxed{42}.",
        "#### 41\nNo, let me recount.\n#### 42",
        "The answer is 41. On second thought, I dropped a term. The answer is 42.",
    ),
]

GAMING = [
    *refused(
        "gaming", "42", box("43 = 42"), box("1 = 42"), box("42 = 43"), box("x = 42 = 43"), box("42 \\neq 42")
    ),
    *refused(
        "gaming",
        "42",
        box("0 \\cdot x + 43"),
        box("420"),
        box("4 2"),
        box("042.1"),
        box("42.0001"),
        box("0.42"),
    ),
    *refused(
        "gaming",
        "42",
        box("42\\%"),
        box("4200\\%"),
        box("42_5"),
        box("\\frac{42}{0}"),
        box(""),
        box(" "),
        box("42x"),
    ),
    *refused(
        "gaming",
        "42",
        box("42i"),
        box("-42"),
        box("|{-42}"),
        box("42^{2}"),
        box("\\sqrt{42}"),
        box("42 + \\epsilon"),
    ),
    *refused(
        "gaming",
        "42",
        box("\\text{the answer}"),
        box("\\infty"),
        box("n"),
        box("nan"),
        box("\\ldots"),
        box("?"),
        box("42 43"),
    ),
    *refused(
        "gaming",
        "42",
        "\\boxed{42",
        "\\boxed{42} but wait, \\boxed{",
        "boxed{41}",
        "\\boxed{}",
    ),
    *refused("gaming", "42", "<think>\\boxed{42}", "<think>so \\boxed{42}</think> I do not know.", ""),
    *refused("gaming", "42", "<think>a</think><think>\\boxed{42}", "<think>\\boxed{42}</think>\\boxed{41}"),
    *refused(
        "gaming", "10 cm", box("10 kg"), box("10 m"), box("10 mm"), box("10 \\text{ seconds}"), box("100 cm")
    ),
    *refused(
        "gaming",
        "\\frac{1}{2004!}",
        box("\\frac{1}{2006!}"),
        box("0"),
        box("\\frac{1}{2004!}+\\frac{1}{2006!}"),
    ),
    *refused("gaming", "2^{-99}", box("2^{-98}"), box("0"), box("\\frac{1}{2^{99}+1}")),
    *refused("gaming", "10^{-40}", box("0"), box("10^{-41}"), box("-10^{-40}")),
    *refused(
        "gaming",
        "\\sqrt{2}",
        box("1.41421356237"),
        box("\\frac{1414213562373095}{10^{15}}"),
        box("\\sqrt{2}+10^{-30}"),
    ),
    *refused(
        "gaming", "\\pi", box("3.14159265358979"), box("\\frac{22}{7}"), box("\\frac{355}{113}"), box("3.14")
    ),
    *refused(
        "gaming", "\\frac{\\pi^2}{6}", box("\\sum_{n=1}^{\\infty} \\frac{1}{n^2}"), box("\\zeta(2)+10^{-20}")
    ),
    *refused(
        "gaming",
        "\\frac{1}{3}",
        box("\\int_0^1 x^2 dx"),
        box("0.333"),
        box("\\lim_{n\\to\\infty} \\frac{n}{3n+1}"),
    ),
    *refused("gaming", "12345678901234567890", box("12345678901234567891"), box("1.2345678901234568e19")),
    *refused("gaming", "x^2", box("x^{2.0000001}"), box("x^2+0.0000001"), box("y^2"), box("2^x")),
    *refused(
        "gaming",
        "(1,2)",
        box("[1,2]"),
        box("(2,1)"),
        box("(1,2]"),
        box("1,2,3"),
        box("\\{2,1\\} \\cup (1,2)"),
    ),
    *refused("gaming", "[0,1)", box("[0,1]"), box("(0,1)"), box("[0,1) \\cup \\{1\\}"), box("[0,1.0000001)")),
    *refused("gaming", "x=5", box("x=-5"), box("x \\ne 5"), box("x>5"), box("0=0"), box("x=x")),
    *refused("gaming", "B", box("b_1"), box("A"), "I choose Bob", box("\\text{(E)}"), answer_type="choice"),
    *refused("gaming", "9\\%", box("90\\%"), box("0.9"), box("900"), box("0.09\\%"), box("9\\text{ kg}")),
    *refused("gaming", "9", box("9\\%"), box("900\\%"), box("0.09")),
    *refused(
        "gaming",
        "7",
        "#### 77",
        "#### -7",
        "#### 7.5",
        "#### 7/2",
        "####",
        "#### seven hundred",
        answer_type="number",
    ),
    *refused("gaming", "1000", "#### 1,00", "#### 10,00", "#### 1.000,5", "#### 1e2", answer_type="number"),
]

UNICODE = [
    *accepted(
        "unicode",
        "-42",
        box("−42"),
        box("–42"),
        box("－42"),
        box("-４２"),
        box("\u200b-42\u200b"),
        box("\ufeff-42"),
        box("\u200e-42\u200e"),
        box("-42\u00a0"),
        box("\u2009-\u200942"),
        "####\u00a0-42",
    ),
    *accepted("unicode", "\\frac{1}{2}", box("½"), box("1⁄2"), box("1∕2"), box("1÷2")),
    *accepted("unicode", "6", box("2×3"), box("2·3"), box("⑥".replace("⑥", "６"))),
    *accepted("unicode", "\\sqrt{3}", box("√3"), box("√{3}"), box("√(3)")),
    *accepted("unicode", "x^2", box("x²"), box("𝑥²"), box("𝐱^2")),
    *accepted("unicode", "2\\pi", box("2π"), box("2𝜋")),
    *refused(
        "unicode",
        "42",
        box("4\u202e2"),
        box("\u202e42"),
        box("24\u202e"),
        box("4\u03012"),
        box("\U0001f600"),
        box("\ud835"),
        box("\udcff42\udcff0"),
        box("٤٣"),
        box("四十三"),
        box("42\x00\x001"),
        box("4²"),
        box("⁴²"),
        box("\x1b[2K43"),
        "\\boxed\u200b{43}",
        box("Ⅿ"),
        box("\u0661"),
        "\ufffe" * 10_000,
        "e" + "\u0301" * 100_000,
        "\U000e0020" * 10_000 + "43",
    ),
]

CORPUS = [*BOMBS, *SIZES, *NESTING, *INJECTION, *HEDGING, *GAMING, *UNICODE]


def labelled_lines() -> list[str]:
    """The corpus as the lines of a labelled JSONL file."""
    return [
        json.dumps(
            {
                "id": f"{case.kind}-{number}",
                "answer": case.answer,
                "completion": case.completion,
                "type": case.answer_type,
                "extract": case.extract,
                "expected": case.accept,
            }
        )
        for number, case in enumerate(CORPUS)
    ]


if __name__ == "__main__":
    print(*labelled_lines(), sep="\n")
