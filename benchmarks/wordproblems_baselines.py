"""Baselines of the word problems that understand nothing, and how far greedy answers are ahead of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from mathrl.evaluation.statistics import paired_proportions
from mathrl.types import Problem

NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?")
Equation = Callable[[Sequence[float]], float]
FIRST_MINUS_SECOND = "|first - second number|"
NEAREST_EQUATION = "equation of the nearest training question"


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def read_problems(path: Path) -> list[Problem]:
    """Prepared problems; their ids name the file and the row."""
    return [
        Problem(f"{path.stem}/{i}", row["question"], row["answer"], "number")
        for i, row in enumerate(read_rows(path))
    ]


def numbers(question: str) -> list[float]:
    return [float(text.replace(",", "")) for text in NUMBER.findall(question)]


def equations(count: int) -> list[Equation]:
    """Ways to combine up to three of ``count`` numbers, in the order in which they are tried."""
    two: list[Callable[[float, float], float]] = [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b if b else float("nan"),
    ]
    found: list[Equation] = []
    for i, j in permutations(range(count), 2):
        found += [lambda n, i=i, j=j, f=f: f(n[i], n[j]) for f in two]  # type: ignore[misc]
    for i, j, k in permutations(range(count), 3):
        found += [lambda n, i=i, j=j, k=k, f=f, g=g: g(f(n[i], n[j]), n[k]) for f in two for g in two]  # type: ignore[misc]
    return found


def nearest_equation(train: Sequence[dict[str, str]], asked: Sequence[dict[str, str]]) -> list[bool]:
    """Which are right if each question takes the equation of the training question with the most equal words.

    The equation of a training question is the first that gives its answer from its numbers.
    """

    def words(question: str) -> set[str]:
        return set(re.findall(r"[a-z]+", question.lower()))

    known = []
    for row in train:
        given = numbers(row["question"])
        ways = equations(len(given)) if 2 <= len(given) <= 4 else []
        equation = next((e for e in ways if abs(e(given) - float(row["answer"])) < 1e-6), None)
        if equation:
            known.append((words(row["question"]), len(given), equation))
    right = []
    for row in asked:
        given, own = numbers(row["question"]), words(row["question"])
        same = [(len(own & w) / len(own | w), e) for w, n, e in known if n == len(given)]
        best = max(same, key=lambda s: s[0])[1](given) if same else float("nan")
        right.append(abs(best - float(row["answer"])) < 1e-6)
    return right


def first_minus_second(asked: Sequence[dict[str, str]]) -> list[bool]:
    return [
        len(n := numbers(row["question"])) >= 2 and abs(abs(n[0] - n[1]) - float(row["answer"])) < 1e-6
        for row in asked
    ]


def baselines(folder: Path) -> dict[str, dict[str, list[bool]]]:
    """Which problems of each held-out file, by question, each baseline answers rightly."""
    train = read_rows(folder / "grpo.jsonl")
    held_out = {name: read_rows(folder / f"{name}.jsonl") for name in ("svamp", "mawps")}
    return {
        name: {
            FIRST_MINUS_SECOND: first_minus_second(rows),
            NEAREST_EQUATION: nearest_equation(train, rows),
        }
        for name, rows in held_out.items()
    }


def ahead(folder: Path, name: str, baseline: Sequence[bool], completions: Path) -> dict[str, Any]:
    """How far greedy answers are ahead of a baseline on the same problems, with the paired interval."""
    answered = {}
    for row in read_rows(completions):
        if row["kind"] == "greedy":
            answered[row["question"]] = row["outcome"] == "correct"
    asked = read_rows(folder / f"{name}.jsonl")
    test = paired_proportions(baseline, [answered[row["question"]] for row in asked])
    return {"difference": test.value, "ci95": list(test.ci95), "p": test.p_value}
