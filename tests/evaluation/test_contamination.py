"""Training questions among a benchmark's: word for word, but for spelling, but for the numbers."""

import json
from pathlib import Path

import pytest

from mathrl.commands.evaluate import questions_of
from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import normalised
from mathrl.evaluation.contamination import find_contamination
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.evaluation.statistics import wilson_interval
from mathrl.types import Problem

# Made questions in the two spellings that the same competition problem has in different collections.
PAIRS = [
    (
        r"Find the number of ordered pairs $(a,b)$ of integers such that $\dfrac{a}{b} + \dfrac{b}{a} = 3.$",
        r"Find the number of ordered pairs \((a, b)\) of integers such that \(\frac{a}{b}\!+\frac{b}{a}=3\)",
    ),
    (
        r"Let $\left( 1 + x \right)^{12}$ be expanded. What is the sum of 1,000 times its coefficients?",
        "let (1+x)^{12} be expanded; what is the sum of 1000 times its coefficients",
    ),
    (
        "A square has side 4. [asy]draw((0,0)--(4,4));[/asy] How long is its diagonal in centimetres?",
        "A square has side 4.  How long is its diagonal, in centimetres?",
    ),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_spelling_and_layout_do_not_hide_a_question(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_other_words_and_numbers_are_other_questions() -> None:
    assert normalised("What is 1,2?") != normalised("What is 12?")
    assert normalised(r"\leftarrow x") != normalised("arrow x")
    assert normalised("x + 12") != normalised("x + 13")


def judged(problems: list[Problem], right: set[str]) -> Evaluation:
    records = [Record(p, Judged("", "correct" if p.id in right else "wrong")) for p in problems]
    return Evaluation("b", tuple(records), {})


def test_kinds_of_overlap_are_told_apart() -> None:
    template = "Ann has {} apples and buys {} more at the market. How many has she?"
    problems = [
        Problem("exact", "How old is Bob?", "1"),
        Problem("spelling", "How  old is ANN", "1"),
        Problem("numbers", template.format(3, "1,200"), "1"),
        Problem("short", "What is 3 + 4?", "7"),  # shares its words with any sum
        Problem("new", "How tall is the tree behind the house?", "1"),
    ]
    training = ["How old is Bob?\n", "How old is Ann?", template.format(5, 2.5), "What is 5 + 9?"]
    found = find_contamination(problems, training)
    assert found.found == {"exact": "exact", "spelling": "normalised", "numbers": "template"}
    assert (
        found.warning == "2 of 5 questions were trained on (1 word for word): read the accuracy on the rest"
    )
    facts = found.facts(judged(problems, {"exact", "spelling", "new"}))
    assert (facts["exact"], facts["normalised"], facts["template"]) == (1, 1, 1)
    assert facts["accuracy_without"] == {
        "n": 2,  # "short" and "new": whatever overlaps in any way is left out
        "accuracy": 0.5,
        "ci95": list(wilson_interval(1, 2)),
    }
    clean = find_contamination(problems[3:], training)
    assert (clean.found, clean.warning) == ({}, "")


def test_a_competitions_training_file_that_holds_test_problems_of_another_set() -> None:
    """As with published collections: 20 of 500 test problems are among the training questions, respelt."""
    benchmark = [
        Problem(f"math/{i}", rf"Let $f(x)=x^2+{i}x+{i * i}$. Find $\left|f\left({i + 1}\right)\right|$.", "1")
        for i in range(500)
    ]
    training = [f"Competition problem number {i}: find the smallest prime above {i}." for i in range(900)]
    training += [
        p.question.replace("$", r"\(").replace(r"\left", "").replace(r"\right", " ") for p in benchmark[::25]
    ]
    found = find_contamination(benchmark, training)
    assert {i for i, kind in found.found.items() if kind == "normalised"} == {p.id for p in benchmark[::25]}
    assert found.warning.startswith("20 of 500 questions were trained on (0 word for word)")


def test_questions_of_training_files_by_their_usual_fields(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answer": "1"},
        {"problem": "b?", "solution": "2"},
        {"Body": "c.", "Question": "d?"},
        {"input": "e?", "target": 1},
    ]
    for row in rows:
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
        assert len(questions_of(str(tmp_path / "train.jsonl"))) == 1
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[2]) + "\n")
    assert questions_of(str(tmp_path / "train.jsonl")) == ["c. d?"]
    chat = [{"role": "user", "content": "f?"}, {"role": "assistant", "content": "6"}]
    further = [*chat, {"role": "user", "content": "g?"}]
    rows = [{"messages": chat}, {"messages": None}, {"messages": further}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert questions_of(str(tmp_path / "train.jsonl")) == ["f?", "f?", "g?"]
    (tmp_path / "train.jsonl").write_text('{"question": {"text": "f?"}}\n')
    with pytest.raises(UserError, match="row 1: the question is a dictionary"):
        questions_of(str(tmp_path / "train.jsonl"))
    (tmp_path / "train.jsonl").write_text('{"text": "f?"}\n')
    with pytest.raises(UserError, match=r"row 1: no question.*\(fields: text\)"):
        questions_of(str(tmp_path / "train.jsonl"))


def test_a_question_that_was_asked_with_its_options_is_found_with_and_without_them() -> None:
    problem = Problem("1", "Which is even?", "B", options=("1", "2"))
    for asked in ("Which is even?\nA) 1\nB) 2", "Which is even?"):
        assert find_contamination([problem], [asked]).found == {"1": "exact"}
    assert not find_contamination([problem], ["Which is even?\nA) 1\nB) 4"]).found
