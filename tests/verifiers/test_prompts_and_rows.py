"""What goes to a verdict beside completion and reference: the prompt's end, and the data set's row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import ANY

import pytest

from verifiers import AnswerType, Outcome, ParseError, verify
from verifiers.extraction.rules import extract
from verifiers.extraction.thoughts import PROMPT_TAIL_CHARS, opens_thought
from verifiers.pool.pool import Request, VerifierPool
from verifiers.tools.conformance import check, read_examples
from verifiers.tools.records import Record, read_records

OPENED = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think>\n"


class Residue(AnswerType):
    """A whole number modulo the row's `modulus`."""

    name: ClassVar[str] = "residue"

    def parse(self, text: str) -> int:
        if not text.strip().isdecimal() or len(text) > 20:
            raise ParseError("expected a whole number")
        return int(text)

    def equal(self, reference: int, given: int, row: Mapping[str, Any] | None = None) -> bool:
        modulus = (row or {}).get("modulus", 0)
        return (reference - given) % modulus == 0 if modulus else reference == given


RESIDUE = f"{__name__}:Residue"


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(1) as shared:
        yield shared


@pytest.mark.parametrize("rule", ["auto", "boxed", "gsm8k", "prose", "tag", "bare"])
def test_no_rule_answers_in_a_thought_that_the_prompt_opened(rule: str) -> None:
    text = "The answer is 6. \\boxed{6} <answer>6</answer>\n#### 6"
    assert extract(text, rule) is not None
    assert extract(text, rule, OPENED) is None
    assert extract(f"hm</think>{text}", rule, OPENED) is not None


def test_a_long_prompt_says_the_same_as_its_end() -> None:
    for prompt in (OPENED, OPENED + "</think>\n", "Think in <think>.\nAnswer:"):
        longer = "It was long ago. " * 200 + prompt
        assert opens_thought(longer) == opens_thought(prompt) == opens_thought(longer[-PROMPT_TAIL_CHARS:])


@pytest.mark.parametrize("answer", ["6", "x^2+1"])  # decided at once, and by a worker
def test_the_pool_is_told_the_prompt(pool: VerifierPool, answer: str) -> None:
    text = f"\\boxed{{{answer}}}"
    first, second = pool.map([Request(text, answer, prompt=OPENED), Request(text, answer)])
    assert (first.outcome, second.outcome) == (Outcome.NO_ANSWER, Outcome.CORRECT)


def test_a_type_that_asks_for_the_row_gets_it_here_and_in_workers(pool: VerifierPool) -> None:
    rows = [{"modulus": 7, "question": "?"}, {"modulus": 8}, {}]
    expected = [Outcome.CORRECT, Outcome.WRONG, Outcome.WRONG]
    assert [verify("\\boxed{10}", "3", RESIDUE, row=row).outcome for row in rows] == expected
    verdicts = pool.map([Request("\\boxed{10}", "3", RESIDUE, row=row) for row in rows])
    assert [v.outcome for v in verdicts] == expected


def test_a_row_that_no_json_can_hold_is_no_crash(pool: VerifierPool) -> None:
    row = {"modulus": 7, "drawn": object(), "when": {1, 2}}
    assert pool.submit(Request("\\boxed{10}", "3", RESIDUE, row=row)).result().correct


def test_judge_reads_prompt_and_row_from_each_line() -> None:
    lines = [
        {"id": 0, "answer": "3", "completion": "\\boxed{10}", "modulus": 7},
        {"id": 1, "answer": "3", "completion": "\\boxed{10}", "modulus": 8},
        {"id": 2, "answer": "6", "completion": "\\boxed{6}", "prompt": OPENED, "type": "auto"},
        {"id": 3, "answer": "6", "completion": "\\boxed{6}", "prompt": "How many?"},
        {"id": 4, "answer": "6", "completion": "\\boxed{6}", "prompt": ["How many?"]},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "verifiers", "judge", "--jobs", "1", "--type", RESIDUE],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    assert said == ["correct", "wrong", "no_answer", "correct", "error"]


def test_a_reference_that_is_a_list_needs_a_type_that_reads_it() -> None:
    def record(**fields: object) -> Record:
        line = json.dumps({"answer": ["3", "5"], "completion": "\\boxed{5}"} | fields).encode()
        return next(read_records([line]))

    assert record(type="any_of").request == Request("\\boxed{5}", '["3", "5"]', "any_of", row=ANY)
    assert "any_of or all_of" in record().problem


def test_a_line_with_its_question_tells_whether_a_percentage_is_asked_for() -> None:
    def reference(question: object) -> str:
        line = json.dumps({"answer": "75", "completion": "\\boxed{75\\%}", "question": question}).encode()
        request = next(read_records([line])).request
        assert request is not None
        return request.answer

    asked = ("What percentage are roses?", "How many are roses?", None, 7)
    assert [reference(question) for question in asked] == ["75\\%", "75", "75", "75"]


def test_the_conformance_kit_hands_rows_on(pool: VerifierPool, tmp_path: Path) -> None:
    table = tmp_path / "residue.jsonl"
    lines = [
        {"answer": "3", "given": "10", "expected": "correct", "row": {"modulus": 7}},
        {"answer": "4", "given": "10", "expected": "wrong", "row": {"modulus": 7}},
    ]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = check(RESIDUE, read_examples(table), pool)
    assert [found for found in report.findings if found.startswith("example")] == []
    assert report.counts["examples"] == 2
