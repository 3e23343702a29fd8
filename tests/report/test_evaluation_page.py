"""The page and the files of an evaluation say what its completions say."""

from dataclasses import replace

import pytest

from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.evaluation.statistics import sample_size_paired
from mathrl.report import evaluation_page
from mathrl.report.evaluation_page import Result, adjusted_p_values, browse_data, render
from mathrl.types import Problem


def judged(right: bool, text: str = "so", **changes) -> Judged:
    return Judged(text, "correct" if right else "wrong", "1", **changes)


def evaluation(right: str, samples: tuple[Judged, ...] = (), name: str = "made") -> Evaluation:
    """A greedy completion a letter: ``x`` is right, ``.`` is wrong."""
    records = tuple(
        Record(Problem(f"p{i}", f"question {i}", "1"), judged(letter == "x", f"{letter}{i}"), samples)
        for i, letter in enumerate(right)
    )
    return Evaluation(name, records, {})


def result(before: str, after: str, name: str = "made") -> Result:
    old, new = evaluation(before, name=name), evaluation(after, name=name)
    return Result(new, old, compare_evaluations(old, new))


def test_a_difference_that_chance_explains_is_told_with_the_problems_it_needs() -> None:
    chance, plain = result("..xx......", "xxx......."), result("." * 10, "x" * 10)
    needed = sample_size_paired(0.1, 0.3)
    assert f"with {needed:,} problems; these are 10." in render("t", [chance], {})
    assert "shows up four times in five" not in render("t", [plain], {})
    assert "shows up four times in five" not in render("t", [result("x...", "x...")], {})


def test_p_values_of_several_benchmarks_are_corrected() -> None:
    results = [
        result("." * 6, "x" * 6, "a"),
        result("." * 8, "x" * 8, "b"),
        Result(evaluation("x.", name="c")),
    ]
    p = {r.name: r.difference.p_value for r in results if r.difference}
    assert adjusted_p_values(results) == pytest.approx({"a": p["a"], "b": 2 * p["b"]})


def test_the_list_of_completions_marks_what_changed_and_what_was_cut() -> None:
    made = result("x..x", "xx..")
    first = made.evaluation.records[0]
    cut = replace(first, greedy=replace(first.greedy, finish_reason="length"))
    made = replace(made, evaluation=replace(made.evaluation, records=(cut, *made.evaluation.records[1:])))
    (found,) = browse_data([made])[0]["sets"]
    rows = {row[0]: row for row in found["problems"]}
    assert {name: row[4] for name, row in rows.items()} == {"p0": "", "p1": "right", "p2": "", "p3": "wrong"}
    assert {name: row[5][0][4] for name, row in rows.items()} == {"p0": 1, "p1": 0, "p2": 0, "p3": 0}
    assert [rows["p1"][6][1], rows["p3"][6][1]] == [".1", "x3"], "the completions from before"
    assert len(rows["p0"]) == 6


def test_verdicts_of_samples_are_shares_of_the_samples_and_failed_ones_are_warned_of() -> None:
    late = Judged("so", "timeout")
    page = render("t", [Result(evaluation("xx..", (judged(True), judged(False), late, late)))], {})
    assert "8 verdicts ran out of time" in page
    label = next(line for line in page.split('aria-label="') if line.startswith("samples: "))
    told = label.partition('"')[0].replace("\u202f", " ")
    assert told.count("25.0 %") == 2
    assert "50.0 %" in told


def test_long_texts_are_cut_to_what_a_page_can_hold(monkeypatch) -> None:
    monkeypatch.setattr(evaluation_page, "MAX_PAGE_BYTES", 20_000)
    long = Result(evaluation("x" * 20, (judged(True, "z" * 5000),)))
    data, cut = browse_data([long])
    texts = [completion[1] for row in data["sets"][0]["problems"] for completion in row[5]]
    assert 200 <= cut < 1000
    assert texts[0] == "x0"
    assert texts[1] == f"{'z' * cut}\n… {5000 - cut} more characters"
    assert browse_data([Result(evaluation("x."))])[1] == 0
