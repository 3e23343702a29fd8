"""The tables of labelled cases: every line is judged as it says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from verifiers import Outcome, verify

TABLES = sorted((Path(__file__).parent / "tables").glob("*.jsonl"))


def cases(table: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]


def judge(case: dict[str, Any]) -> bool:
    verdict = verify(
        case["completion"],
        case["answer"],
        case.get("type", "auto"),
        case.get("extract", "auto"),
        case.get("options", ()),
        case.get("prompt", ""),
        case.get("row"),
    )
    assert verdict.outcome not in (Outcome.ERROR, Outcome.BAD_REFERENCE), f"{case['id']}: {verdict}"
    return verdict.outcome is Outcome.CORRECT


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_every_line_is_judged_as_labelled(table: Path) -> None:
    wrong = [case for case in cases(table) if judge(case) != case["expected"]]
    assert wrong == []


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_references_equal_themselves(table: Path) -> None:
    again = [{**c, "completion": c["answer"], "extract": "bare", "prompt": ""} for c in cases(table)]
    distinct = {json.dumps({k: v for k, v in c.items() if k not in ("id", "expected")}): c for c in again}
    assert [case["answer"] for case in distinct.values() if not judge(case)] == []


def test_the_tables_are_large_and_balanced() -> None:
    labels = Counter(case["expected"] for table in TABLES for case in cases(table))
    ids = [case["id"] for table in TABLES for case in cases(table)]
    assert len(ids) == len(set(ids)) >= 600
    assert 0.4 <= labels[True] / labels.total() <= 0.6
