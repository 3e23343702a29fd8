"""Real data sets: every reference judges itself right, and no other question's answer is taken for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifiers import Outcome, verify
from verifiers.policy import as_asked, asks_for_percent


def rows(folder: Path, *names: str) -> Iterator[dict]:
    for name in names:
        with (folder / name).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


@pytest.fixture(scope="module")
def gsm8k(data_dir: Path) -> list[tuple[str, str]]:
    """(solution as a model would write it, reference) of all questions."""
    solutions = [row["answer"] for row in rows(data_dir, "gsm8k/train.jsonl", "gsm8k/test.jsonl")]
    return [(re.sub(r"<<[^>]*>>", "", text), text.rpartition("####")[2].strip()) for text in solutions]


def number(reference: str) -> int:
    return int(reference.replace(",", ""))


@pytest.mark.parametrize(("answer_type", "extract"), [("number", "gsm8k"), ("auto", "auto")])
def test_every_gsm8k_solution_is_right_for_its_own_question(
    gsm8k: list[tuple[str, str]], answer_type: str, extract: str
) -> None:
    assert len(gsm8k) == 8792
    refused = [r for text, r in gsm8k if verify(text, r, answer_type, extract).outcome is not Outcome.CORRECT]
    assert refused == []


def test_whole_gsm8k_solutions_serve_as_references(gsm8k: list[tuple[str, str]]) -> None:
    assert all(verify(reference, text).correct for text, reference in gsm8k[::40])
    assert not any(verify(str(number(reference) + 1), text).correct for text, reference in gsm8k[::40])


@pytest.mark.parametrize(("answer_type", "extract"), [("number", "gsm8k"), ("auto", "auto")])
def test_no_gsm8k_solution_is_taken_for_the_next_question_unless_equal(
    gsm8k: list[tuple[str, str]], answer_type: str, extract: str
) -> None:
    following = gsm8k[1:] + gsm8k[:1]
    confused = [
        (own, other)
        for (text, own), (_, other) in zip(gsm8k, following, strict=True)
        if verify(text, other, answer_type, extract).correct is not (number(own) == number(other))
    ]
    assert confused == []


@pytest.mark.parametrize(
    "ending",
    [
        "\n#### {}",
        "\nTherefore, the final answer is $\\boxed{{{}}}$.",
        " The answer is {}.",
        "\n\n**Answer:** {}",
        "\nA: {}",
        "\nSo the answer is ${}.",
    ],
)
def test_gsm8k_solutions_are_judged_by_the_number_that_their_ending_marks(
    gsm8k: list[tuple[str, str]], ending: str
) -> None:
    refused, accepted = [], []
    for text, reference in gsm8k:
        working = text.rpartition("####")[0].rstrip()
        if not verify(working + ending.format(reference), reference).correct:
            refused.append(working[-60:])
        if verify(working + ending.format(number(reference) + 1), reference).correct:
            accepted.append(working[-60:])
    assert refused == []
    assert accepted == []


def test_svamp_and_mawps_references_are_met_by_themselves_and_by_no_neighbour(data_dir: Path) -> None:
    answers = [str(row["Answer"]) for row in json.loads((data_dir / "svamp/SVAMP.json").read_text())]
    for name in ("addsub", "multiarith", "singleeq", "singleop"):
        answers += [str(row["target"]) for row in rows(data_dir, f"mawps/{name}.jsonl")]
    assert len(answers) == 1000 + 2065
    assert [a for a in answers if not verify(f"\\boxed{{{a}}}", a, "number").correct] == []
    whole = [a for a in answers if float(a).is_integer()]
    assert [a for a in whole if not verify(f"#### {int(float(a))}", a, "number").correct] == []
    assert [a for a in whole if verify(f"#### {int(float(a)) + 1}", a, "number").correct] == []


def test_gsm_hard_references_are_met_to_their_digits(data_dir: Path) -> None:
    targets = [row["target"] for row in rows(data_dir, "gsm_hard/gsmhardv2.jsonl")]
    assert len(targets) == 1319
    assert [t for t in targets if not verify(f"\\boxed{{{t!r}}}", str(t), "number").correct] == []
    # Another fourth significant digit is another answer.
    assert [t for t in targets if t and verify(f"\\boxed{{{t * 1.001!r}}}", str(t), "number").correct] == []


def test_aqua_options_are_read_as_letters_and_as_texts(data_dir: Path) -> None:
    for row in rows(data_dir, "aqua/dev.json", "aqua/test.json"):
        options, letter = row["options"], row["correct"]
        right = "ABCDE".index(letter)
        for given, expected in [
            (letter, True),
            (f"({letter})", True),
            (options[right], True),
            (options[right][2:], True),
            ("ABCDE"[right - 1], False),
            (options[right - 1], False),
        ]:
            verdict = verify(f"\\boxed{{{given}}}", letter, "choice", options=options)
            assert verdict.correct is expected, (options, letter, given, verdict)


def test_percentages_are_right_with_their_sign_where_gsm8k_asks_for_one(data_dir: Path) -> None:
    asked = [
        (row["question"], row["answer"].rpartition("####")[2].strip())
        for row in rows(data_dir, "gsm8k/train.jsonl", "gsm8k/test.jsonl")
        if asks_for_percent(row["question"])
    ]
    assert len(asked) == 105  # all of them do, by eye
    for question, reference in asked:
        text = as_asked(reference, question, "number")
        for ending in ("#### {}%", "#### {}", "#### {} percent", "The answer is $\\boxed{{{}\\%}}$."):
            assert verify(ending.format(reference), text, "number").correct
            assert not verify(ending.format(number(reference) + 1), text, "number").correct
