"""GSM8K's training problems with other numbers: the same text, the same calculations, another answer.

A solution that marks its calculations (``<<48/2=24>>``) is a program over the numbers of its question: what a
calculation takes is a number of the question, an earlier result or a constant that the text names in words.
Where that reading is unambiguous, the question's numbers are drawn anew and the program runs again.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import CodeType

from wordproblems_stories import written

from mathrl.types import derive_seed

PLAIN = re.compile(r"(?<![\w.,/:-])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w%/:]|[.,-]\d|\s?%|-\w|\s?percent)")
NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
OPERATORS = frozenset("+-*/()")
TOKEN = re.compile(r"(\d+(?:\.\d+)?|\.\d+|[-+*/()])")
WORDS = {  # what a word may stand for in a calculation
    1: "one once first another each", 2: "two twice double half both pair second couple",
    3: "three triple thrice third", 4: "four quarter fourth", 5: "five", 6: "six", 7: "seven week",
    8: "eight", 9: "nine", 10: "ten", 12: "twelve dozen year month", 24: "day hour", 30: "month thirty",
    52: "week year", 60: "hour minute second", 100: "percent % dollar cent hundred", 365: "year day",
}  # fmt: skip
Numbers = Mapping[Fraction, Fraction]
LARGEST_CHANGE = 5  # a result beyond so many times the original one is unlikely to make sense
TRIES = 40


@dataclass(frozen=True, slots=True)
class Worked:
    """A question, the equations of its solution and its answer."""

    question: str
    equations: tuple[str, ...]
    answer: str

    @property
    def row(self) -> dict[str, str]:
        """As a data file has it: the equations one a line and ``#### N``."""
        return {"question": self.question, "answer": "\n".join([*self.equations, f"#### {self.answer}"])}


def read_worked(path: Path) -> list[Worked]:
    """GSM8K's rows that mark their calculations.

    The words between the calculations are left out: a model of this size copies their names wrongly, and a
    short solution samples and trains faster.
    """
    found = []
    for row in map(json.loads, path.open()):
        solution, _, answer = row["answer"].partition("####")
        marked = (re.sub(r"\s", "", e) for e in re.findall(r"<<([^<>]*=[^<>]*)>>", solution))
        equations = tuple(e for e in marked if re.search(r"\d\)*[-+*/].*=", e))  # without "60=60"
        if equations:
            found.append(Worked(row["question"], equations, answer.strip().replace(",", "")))
    return found


def renumber(worked: Worked, num: int, seed: int) -> list[Worked]:
    """Up to ``num`` problems that differ from ``worked`` in their numbers alone; none if it is ambiguous."""
    program = _Program.of(worked)
    if program is None:
        return []
    rng = random.Random(derive_seed(seed, "renumber", worked.question))
    found: dict[str, Worked] = {}
    for _ in range(num * TRIES):
        new = program.run({value: _drawn(value, rng) for value in program.given})
        if new and new.question != worked.question:
            found[new.question] = new
            if len(found) == num:
                break
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Step:
    """An expression over ``n`` (values by the question's numbers), ``r`` (earlier results) and constants."""

    tokens: tuple[str, ...]  # Python, one expression when joined
    value: CodeType
    result: Fraction  # with the original numbers

    @classmethod
    def of(cls, tokens: tuple[str, ...], given: Numbers, results: list[Fraction]) -> _Step | None:
        try:
            code = compile("".join(tokens), "calculation", "eval")
        except SyntaxError:
            return None
        result = _evaluated(code, given, results)
        return None if result is None else cls(tokens, code, result)

    def run(self, given: Numbers, results: list[Fraction]) -> Fraction | None:
        return _evaluated(self.value, given, results)

    def written(self, given: Numbers, results: list[Fraction]) -> str:
        """The expression with its numbers."""
        parts = (
            t if t in OPERATORS else _written(_evaluated(compile(t, "number", "eval"), given, results))
            for t in self.tokens
        )
        return "".join(part or "" for part in parts)


@dataclass(frozen=True, slots=True)
class _Program:
    worked: Worked
    given: tuple[Fraction, ...]  # numbers of the question that the calculations take
    steps: tuple[_Step, ...]

    @classmethod
    def of(cls, worked: Worked) -> _Program | None:
        """The solution as a program; None where it is not clear what stands for what."""
        text = worked.question.lower()
        known = {value: value for value in map(_value, PLAIN.finditer(worked.question))}
        fixed = {Fraction(found) for found in NUMBER.findall(PLAIN.sub(" ", worked.question))}
        steps: list[_Step] = []
        results: list[Fraction] = []
        used: dict[Fraction, None] = {}
        for equation in worked.equations:
            left, _, right = equation.partition("=")
            tokens = TOKEN.findall(left)
            if "".join(tokens) != left or not NUMBER.fullmatch(right):
                return None
            source = []
            for token in tokens:
                value = None if token in OPERATORS else Fraction(token)
                if value is None:
                    source.append(token)
                elif value in known and (value in results or value in fixed or _in_words(value, text)):
                    return None  # which of them is meant?
                elif value in results:
                    source.append(f"r[{len(results) - 1 - results[::-1].index(value)}]")
                elif value in known:
                    used[value] = None
                    source.append(f"n[F({value.numerator},{value.denominator})]")
                elif value in (1, 100) or value in fixed or value * 100 in fixed or _in_words(value, text):
                    source.append(f"F({value.numerator},{value.denominator})")
                else:
                    return None  # worked out in the head
            step = _Step.of(tuple(source), known, results)
            if step is None or step.result != Fraction(right):
                return None
            steps.append(step)
            results.append(step.result)
        answered = NUMBER.fullmatch(worked.answer) and results and results[-1] == Fraction(worked.answer)
        return cls(worked, tuple(used), tuple(steps)) if answered and used else None

    def run(self, given: Numbers) -> Worked | None:
        """The problem with these numbers; None where a result stops making sense."""
        results: list[Fraction] = []
        for step in self.steps:
            result = step.run(given, results)
            if result is None or not 0 < result <= LARGEST_CHANGE * step.result:
                return None
            if (step.result.denominator == 1) != (result.denominator == 1) or _written(result) is None:
                return None
            results.append(result)
        equations = [
            f"{step.written(given, results)}={_written(result)}"
            for step, result in zip(self.steps, results, strict=True)
        ]

        def replaced(match: re.Match[str]) -> str:
            value = given.get(_value(match))
            if value is None:
                return match[0]
            return f"{Decimal(_written(value) or 0):,}" if "," in match[0] else _written(value) or ""

        question = PLAIN.sub(replaced, self.worked.question)
        return Worked(question, tuple(equations), _written(results[-1]) or "")


def _evaluated(code: CodeType, given: Numbers, results: list[Fraction]) -> Fraction | None:
    """The value; None where there is none. The source holds operators, parentheses and our own names."""
    try:
        found = eval(code, {"__builtins__": {}, "F": Fraction, "n": given, "r": results})
    except (TypeError, ZeroDivisionError):
        return None
    return found if isinstance(found, Fraction) else None


def _value(match: re.Match[str]) -> Fraction:
    return Fraction(match[0].replace(",", ""))


def _in_words(value: Fraction, text: str) -> bool:
    words = WORDS.get(int(value), "") if value.denominator == 1 else ""
    return any(word in text for word in words.split())


def _drawn(value: Fraction, rng: random.Random) -> Fraction:
    """A number of the same kind and about the same size."""
    unit = Fraction(1)
    while (value / unit).denominator != 1:
        unit /= 10
    while value / unit >= 20 and (value / unit) % 10 == 0:
        unit *= 10
    count = int(value / unit)
    low, high = (2, 15) if count <= 12 else (max(2, count * 2 // 5), count * 9 // 5)
    return rng.randint(low, high) * unit


def _written(value: Fraction | None) -> str | None:
    """Digits of a number that ends within three places; None for others."""
    scaled = (value or Fraction(0)) * 1000
    if value is None or scaled.denominator != 1:
        return None
    return written(Decimal(int(scaled)) / 1000)
