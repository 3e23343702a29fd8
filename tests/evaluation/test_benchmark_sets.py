"""Benchmarks as rows: the real files whole, the quirks of their references, and rows of the hub's form."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from mathrl.data.fields import UnusableRow
from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import (
    Benchmark,
    find_benchmarks,
    known_benchmarks,
    load_benchmark,
    to_problem,
)
from mathrl.types import Problem
from verifiers import verify

FILES = {
    "gsm8k": ("gsm8k/test.jsonl", 1319, 0),
    "gsm_hard": ("gsm_hard/gsmhardv2.jsonl", 1319, 0),
    "svamp": ("svamp/SVAMP.json", 1000, 0),
    "multiarith": ("mawps/multiarith.jsonl", 600, 20),
    "addsub": ("mawps/addsub.jsonl", 395, 0),
    "singleeq": ("mawps/singleeq.jsonl", 508, 1),
    "singleop": ("mawps/singleop.jsonl", 562, 31),
    "aqua": ("aqua/test.json", 254, 0),
}  # problems, and questions that were asked before


@pytest.mark.parametrize("name", FILES)
def test_the_authors_files_load_whole(name: str, data_dir: Path) -> None:
    file, problems, duplicates = FILES[name]
    found = load_benchmark(known_benchmarks()[name], str(data_dir / file))
    assert (len(found.problems), len(found.skipped), found.num_duplicates) == (problems, 0, duplicates)
    assert len({p.id for p in found.problems}) == problems
    assert all(p.id.startswith(f"{name}/") for p in found.problems)


def test_real_references_are_met_by_what_a_model_would_write(data_dir: Path) -> None:
    """Every GSM8K solution is right by its own benchmark's rules, and wrong when its number is changed."""
    benchmark = known_benchmarks()["gsm8k"]
    for p in load_benchmark(benchmark, str(data_dir / FILES["gsm8k"][0]), max_problems=150).problems:
        assert verify(p.solution, p.answer, p.answer_type, benchmark.extract).correct
        wrong = f"{p.solution.split('####')[0]}#### {int(p.answer.replace(',', '')) + 1}"
        assert verify(wrong, p.answer, p.answer_type, benchmark.extract).outcome == "wrong"


def row_of(name: str, row: dict) -> Problem:
    return to_problem(known_benchmarks()[name], row, "file", 7)


def right(problem: Problem, completion: str, name: str) -> bool:
    benchmark = known_benchmarks()[name]
    verdict = verify(
        completion, problem.answer, problem.answer_type, benchmark.extract, options=problem.options
    )
    return verdict.outcome == "correct"


ROWS = [  # benchmark, row, reference, a completion that is right, one that is not
    ("gsm8k", {"question": "q", "answer": "x <<1+1=2>>\n#### 2,125"}, "2,125", "#### 2125", "#### 2"),
    ("svamp", {"Body": "b", "Question": "q", "Answer": 51.0, "Type": "t"}, "51", "#### 51.0", "#### 5.1"),
    ("gsm_hard", {"input": "q", "target": 9867630.0}, "9867630", "#### 9,867,630", "#### 9867631"),
    ("gsm_hard", {"input": "q", "target": -3.0}, "-3", "#### -3", "#### 3"),
    ("singleeq", {"input": "q", "target": 0.6666666667}, "0.6666666667", "#### 2/3", "#### 0.66"),
    ("asdiv", {"body": "b", "question": "q", "answer": "9 (apples)"}, "9", "#### 9", "#### 8"),
    ("math500", {"problem": "q", "answer": r"\frac{1}{2}"}, r"\frac{1}{2}", r"\boxed{0.5}", r"\boxed{2}"),
    ("math", {"problem": "q", "solution": r"so \boxed{x^2+1}."}, "x^2+1", r"\boxed{1+x^2}", r"\boxed{x^2}"),
    ("aime24", {"problem": "q", "answer": "073"}, "073", r"\boxed{73}", r"\boxed{703}"),
    ("amc23", {"question": "q", "answer": 27.0}, "27", r"\boxed{27}", r"\boxed{72}"),
    (
        "olympiadbench",
        {"question": "q", "final_answer": ["$1,3$"], "is_multiple_answer": True},
        "$1,3$",
        r"\boxed{3, 1}",
        r"\boxed{1}",
    ),
    (
        "olympiadbench",
        {"question": "q", "final_answer": ["$1$", "$3$"], "is_multiple_answer": True},
        '["$1$", "$3$"]',
        r"\boxed{3, 1}",
        r"\boxed{1}",
    ),
    (
        "olympiadbench",
        {"question": "q", "final_answer": ["$n^2$", "$m$"], "is_multiple_answer": False},
        '["$n^2$", "$m$"]',
        r"\boxed{m}",
        r"\boxed{m, n^2}",
    ),
    (
        "minerva_math",
        {"question": "q", "answer": ["2.5", "5/2 cm"]},
        '["2.5", "5/2 cm"]',
        r"\boxed{2.5}",
        r"\boxed{25}",
    ),
    (
        "minerva_math",
        {"question": "q", "answer": True},
        "True",
        r"\boxed{\text{True}}",
        r"\boxed{\text{False}}",
    ),
    ("theoremqa", {"Question": "q", "Answer": "[8, 4]"}, "[8, 4]", r"\boxed{4, 8}", r"\boxed{8}"),
    (
        "theoremqa",
        {"Question": "q", "Answer": [0.333, 0.25]},
        '["0.333", "0.25"]',
        r"\boxed{\frac13, \frac14}",
        r"\boxed{\frac13}",
    ),
    ("theoremqa", {"Question": "q", "Answer": "False"}, "False", r"\boxed{\text{No}}", r"\boxed{\text{Yes}}"),
    ("theoremqa", {"Question": "q", "Answer": True}, "True", r"\boxed{\text{Yes}}", r"\boxed{\text{No}}"),
    ("theoremqa", {"Question": "q", "Answer": "(b)"}, "(b)", r"\boxed{b}", r"\boxed{c}"),
    ("theoremqa", {"Question": "q", "Answer": 1.5}, "1.5", r"\boxed{\frac32}", r"\boxed{3}"),
    ("multiarith", {"question": "q", "final_ans": "39"}, "39", "#### 39", "#### 93"),
]


@pytest.mark.parametrize(("name", "row", "answer", "correct", "wrong"), ROWS)
def test_rows_of_every_form(name: str, row: dict, answer: str, correct: str, wrong: str) -> None:
    problem = row_of(name, row)
    assert problem.answer == answer
    assert right(problem, correct, name)
    assert not right(problem, wrong, name)


def test_files_of_another_form_load_by_their_own_fields(tmp_path: Path) -> None:
    file = tmp_path / "olympiad_bench.json"
    file.write_text(
        json.dumps([{"problem": "p?", "answer": ["$n^2$", "$n*n$"]}, {"problem": "q?", "answer": "3"}])
    )
    first, second = load_benchmark(known_benchmarks()["olympiadbench"], str(file)).problems
    assert (first.answer_type, second.answer_type) == ("any_of", "auto")
    assert right(first, r"\boxed{n \cdot n}", "olympiadbench")


def test_options_are_answered_by_their_letter() -> None:
    row = {"question": "q?", "options": ["A)10", "B)12 km", "C)15"], "rationale": "r", "correct": "B"}
    problem = row_of("aqua", row)
    assert (problem.answer, problem.options[1]) == ("B", "12 km") or problem.options[1].endswith("12 km")
    assert right(problem, "so it is\n#### B", "aqua")
    assert not right(problem, "so it is\n#### C", "aqua")


def test_several_references_and_kinds_of_problem() -> None:
    row = {"question": "q", "final_answer": ["$3$", "$5$"], "subfield": "Algebra"}
    problem = row_of("olympiadbench", row)
    assert (problem.answer, problem.answer_type) == ('["$3$", "$5$"]', "any_of")
    assert problem.meta["subject"] == "Algebra"
    problem = row_of("gsm8k", {"question": "q", "answer": "a <<1+1=2>>\nb <<2*2=4>>\n#### 4"})
    assert problem.meta["num_steps"] == 2
    assert row_of("math500", {"problem": "q", "answer": "1", "level": 5, "subject": "Geometry"}).meta == {
        "level": 5,
        "subject": "Geometry",
    }


def test_a_sample_of_the_problems_is_the_same_at_every_call_and_in_order(tmp_path: Path) -> None:
    file = tmp_path / "f.csv"
    file.write_text("question,answer\n" + "".join(f"q{i}?,{i}\n" for i in range(90)))
    first = load_benchmark(Benchmark(name="mine"), str(file), max_problems=9).problems
    assert first == load_benchmark(Benchmark(name="mine"), str(file), max_problems=9).problems
    numbers = [int(p.answer) for p in first]
    assert numbers == sorted(numbers)
    assert numbers != list(range(9))


def test_unreadable_references_are_counted_and_left_out(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    rows = [("a?", "1"), ("b?", "None"), ("c?", "3"), ("c?", "3")]
    file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    found = load_benchmark(Benchmark(name="mine", answer_type="number"), str(file))
    assert [p.answer for p in found.problems] == ["1", "3", "3"]
    assert [(s.row, s.text) for s in found.skipped] == [(2, "None")]
    assert found.num_duplicates == 1
    facts = found.facts()
    assert (facts["num_problems"], facts["num_unreadable_references"]) == (3, 1)
    assert facts["source"].startswith("f.jsonl (blake2b ")


def test_references_that_are_missing_are_counted_like_empty_ones(tmp_path: Path) -> None:
    file = tmp_path / "f.jsonl"
    rows = [{"problem": f"q{i}?", "answer": a} for i, a in enumerate([None, "1", "", "3", "4"])]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = Benchmark(name="mine", question=("q",), local={"question": ("problem",), "answer": "answer"})
    for benchmark in (mine, Benchmark(name="mine", question=("problem",), answer_pattern=r"(\w+)")):
        found = load_benchmark(benchmark, str(file))
        assert [p.answer for p in found.problems] == ["1", "3", "4"]
        assert [(s.row, s.reason) for s in found.skipped] == [(1, "empty answer"), (3, "empty answer")]
    file.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[1], rows[2])))
    with pytest.raises(UserError, match=r"2 of 3 rows make no problem \(row 1: empty answer"):
        load_benchmark(mine, str(file))


def test_several_references_are_read_one_by_one() -> None:
    row = {"question": "q", "final_answer": [Decimal("1.50"), 2.0]}
    assert row_of("olympiadbench", row).answer == '["1.5", "2"]'
    assert row_of("olympiadbench", row | {"final_answer": [2.0]}).answer == "2"
    for bad in ([], [None], ["1", {"value": 2}]):
        with pytest.raises(UnusableRow):
            row_of("olympiadbench", {"question": "q", "final_answer": bad})


def test_every_row_of_the_table_is_whole() -> None:
    rows = known_benchmarks()
    assert len(rows) == 20
    for row in rows.values():
        assert row.licence
        assert row.note
        assert row.extract in ("gsm8k", "boxed")
    assert find_benchmarks(["gsm8k", "math"]) == [rows["gsm8k"], rows["math"]]
    with pytest.raises(UserError, match="did you mean 'olympiadbench'"):
        find_benchmarks(["olympiad_bench"])
