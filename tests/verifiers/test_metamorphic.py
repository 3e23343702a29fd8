"""What does not change an answer does not change its verdict: every case of the tables, rewritten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifiers import Outcome, verify

TABLES = Path(__file__).parent / "tables"


def boxed_cases() -> list[dict[str, Any]]:
    """The cases whose completion is one box and nothing else, and whose content is not spoken text."""
    lines = [line for table in sorted(TABLES.glob("*.jsonl")) for line in table.read_text().splitlines()]
    found = [json.loads(line) for line in lines]
    return [
        case for case in found if re.fullmatch(r"\\boxed\{(?:(?!boxed).)*\}", case["completion"], re.DOTALL)
    ]


CASES = boxed_cases()


def synonyms(inner: str) -> str:
    for old, new in [
        (r"\\frac(?![a-z])", r"\\dfrac"),
        (r"\\le(?![a-z])", r"\\leq"),
        (r"\\ge(?![a-z])", r"\\geq"),
        (r"\\ne(?![a-z])", r"\\neq"),
        (r"\\cdot(?![a-z])", r"\\times"),
        (r"pmatrix", "bmatrix"),
        (r"\\emptyset(?![a-z])", r"\\varnothing"),
    ]:
        inner = re.sub(old, new, inner)
    return inner


def sized(inner: str) -> str:
    r"""Brackets as \left( and \right) where every bracket has its partner of the same kind."""
    if any(mark in inner for mark in ("\\left", "\\right", "\\sqrt[", "\\\\[", "\\boxed")) or "]" in inner:
        return inner
    if inner.count("(") != inner.count(")") or "[" in inner or "\\text" in inner:
        return inner
    return inner.replace("(", "\\left(").replace(")", "\\right)")


REWRITINGS: dict[str, Callable[[str], str]] = {
    "braces": lambda inner: f"\\boxed{{{{{inner}}}}}",
    "blanks": lambda inner: f"\\boxed{{ {inner} }}",
    "thin spaces": lambda inner: f"\\boxed{{\\,{inner}\\,}}",
    "display style": lambda inner: f"\\boxed{{\\displaystyle {inner}}}",
    "dollars": lambda inner: f"so $$\\boxed{{{inner}}}$$",
    "full stop": lambda inner: f"Hence \\[\\boxed{{{inner}}}.\\]",
    "fbox": lambda inner: f"\\fbox{{{inner}}}",
    "an earlier box": lambda inner: f"First \\boxed{{98765}}. No, that was wrong.\n\nSo \\boxed{{{inner}}}.",
    "thinking": lambda inner: f"<think>\\boxed{{98765}} or \\boxed{{12}}?</think>\nThus \\boxed{{{inner}}}.",
    "end mark": lambda inner: f"\\boxed{{{inner}}}<|im_end|>",
    "said twice": lambda inner: f"\\boxed{{{inner}}}. To sum up: \\boxed{{{inner}}}",
    "synonyms": lambda inner: f"\\boxed{{{synonyms(inner)}}}",
    "sized brackets": lambda inner: f"\\boxed{{{sized(inner)}}}",
    "zero-width characters": lambda inner: f"\\boxed{{\u200b{inner}\u200e}}",
}


def accepted(case: dict[str, Any], completion: str) -> bool:
    verdict = verify(
        completion,
        case["answer"],
        case.get("type", "auto"),
        case.get("extract", "auto"),
        case.get("options", ()),
        case.get("prompt", ""),
        case.get("row"),
    )
    return verdict.outcome is Outcome.CORRECT


@pytest.mark.parametrize("name", REWRITINGS)
def test_rewriting_changes_no_verdict(name: str) -> None:
    # Each rewriting takes every third case, so that all together stay within seconds.
    start = list(REWRITINGS).index(name) % 3
    changed = []
    for case in CASES[start::3]:
        inner = case["completion"][len("\\boxed{") : -1]
        if inner.strip().endswith("\\") or not inner.strip() or re.search(r"\}\\text|The answer is", inner):
            continue
        rewritten = REWRITINGS[name](inner)
        if accepted(case, rewritten) is not case["expected"]:
            changed.append((case["id"], case["answer"], rewritten))
    assert changed == []


def test_there_are_many_cases_to_rewrite() -> None:
    assert len(CASES) > 2000
