"""``mathrl compare``: runs on one page, results of evaluations, and what cannot be compared."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from made_run import made_evaluation, make_run

from mathrl.cli import main
from mathrl.commands.compare import compare_results
from mathrl.evaluation.completions import write_evaluation
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.statistics import holm
from mathrl.report.evaluation_page import Result, write_results
from mathrl.report.run_record import RunRecord, read_run
from mathrl.report.runs_page import differing_settings, paired_tests, run_names, seed_groups


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = [make_run(folder / "a"), make_run(folder / "b", level=0.66), make_run(folder / "c", level=0.62)]
    for path, seed, name in zip(made, (0, 1, 0), ("grpo", "grpo", "ppo"), strict=True):
        config = (path / "config.toml").read_text()
        config = config.replace("seed = 3", f"seed = {seed}").replace('name = "grpo"', f'name = "{name}"')
        (path / "config.toml").write_text(config)
    return [*made, make_run(folder / "half", steps=9, finished=False)]


@pytest.fixture(scope="module")
def records(runs: list[Path]) -> list[RunRecord]:
    return [read_run(path) for path in runs]


def test_later_runs_are_tested_against_the_first(records: list[RunRecord]) -> None:
    names = run_names(records)
    assert names == ["a", "b", "c", "half"]
    tests = paired_tests("held_out", records, names)
    assert [t.name for t in tests] == ["b", "c"]
    after = [r.evaluations["held_out", "after"] for r in records[:3]]
    expected = [compare_evaluations(after[0], other) for other in after[1:]]
    assert [t.value for t in tests] == pytest.approx([100 * d.value for d in expected])
    adjusted = holm([d.p_value for d in expected])
    assert adjusted != pytest.approx([d.p_value for d in expected], rel=0.1)
    assert [t.p_holm for t in tests] == pytest.approx(adjusted)


def test_seeds_are_averaged_and_other_settings_told(records: list[RunRecord]) -> None:
    (group,) = seed_groups(records, run_names(records))
    assert group["names"] == ["a", "b"]
    mean = sum(r.summary["after"]["accuracy"] for r in records[:2]) / 2
    assert f"2 seeds: {100 * mean:.1f}" in group["told"]
    rows = {row[0]: row[1:] for row in differing_settings(records[:3])}
    assert rows == {"run.seed": ["0", "1", "0"], "algorithm.name": ["grpo", "grpo", "ppo"]}


def test_runs_of_one_name_are_told_apart_by_their_folders(runs: list[Path], tmp_path: Path) -> None:
    other = make_run(tmp_path / "elsewhere" / "a", steps=2, finished=False)
    names = run_names([read_run(runs[0]), read_run(other)])
    assert names == [f"{runs[0].parent.name}/a", "elsewhere/a"]


def test_the_command_writes_a_page_and_prints_the_numbers(
    runs: list[Path], records: list[RunRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deep" / "all.html"
    assert main(["compare", *map(str, runs), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    for record in records[:3]:
        accuracy = 100 * record.summary["after"]["accuracy"]
        assert re.search(rf"^{record.name} .*{accuracy:.1f}\u202f% \[", printed, re.MULTILINE)
    assert re.search(r"^half +not finished", printed, re.MULTILINE)
    html = page.read_text()
    assert "half has not finished" in html
    assert "Reward by tokens sampled" in html
    assert html.count("<figure") >= 15
    page.write_text("mine")
    assert main(["compare", *map(str, runs[:2]), "--out", str(page)]) == 2
    assert f"{page} exists: choose another --out, or replace it with --overwrite" in capsys.readouterr().err
    assert page.read_text() == "mine"
    assert main(["compare", *map(str, runs[:2]), "--out", str(page), "--overwrite"]) == 0
    assert page.read_text() != "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "book.txt").write_text("kept")
    assert main(["compare", *map(str, runs[:2]), "--out", str(tmp_path / "mine")]) == 0
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["book.txt", "comparison.html"]


def evaluate_into(folder: Path, accuracy: float, seed: int, extract: str = "gsm8k") -> Path:
    """A folder as ``mathrl eval`` leaves it, of two benchmarks."""
    results = []
    for name in ("gsm8k", "svamp"):
        evaluation = made_evaluation((accuracy,), n=80, k=0, seed=seed, name=name)
        evaluation = replace(evaluation, protocol={**evaluation.protocol, "extract": extract})
        (folder / name).mkdir(parents=True)
        write_evaluation(evaluation, folder / name / "completions.jsonl", {"resume_key": "made"})
        results.append(Result(evaluation))
    write_results(folder, folder.name, results, {})
    return folder


def test_results_of_evaluations_are_compared_benchmark_by_benchmark(tmp_path: Path) -> None:
    before = evaluate_into(tmp_path / "before", 0.2, 1)
    after = evaluate_into(tmp_path / "after", 0.8, 2)
    assert main(["compare", str(before), str(after)]) == 0
    numbers = json.loads((tmp_path / "comparison" / "eval.json").read_text())
    assert list(numbers["benchmarks"]) == ["gsm8k", "svamp"]
    for row in numbers["benchmarks"].values():
        assert row["difference"]["value"] > 0.3
        assert row["difference"]["p_value_holm"] == pytest.approx(2 * row["difference"]["p_value"], rel=1.01)


def test_a_comparison_does_not_take_the_place_of_results(tmp_path: Path) -> None:
    before = evaluate_into(tmp_path / "before", 0.2, 1)
    after = evaluate_into(tmp_path / "after", 0.8, 2)
    kept = (after / "eval.json").read_bytes()
    assert main(["compare", str(before), str(after), "--out", str(after)]) == 2
    assert (after / "eval.json").read_bytes() == kept


def test_a_benchmark_that_only_one_of_them_has_is_left_out(tmp_path: Path) -> None:
    before = evaluate_into(tmp_path / "before", 0.2, 1)
    after = evaluate_into(tmp_path / "after", 0.8, 2)
    shutil.rmtree(before / "svamp")
    assert [(r.name, r.before is not None) for r in compare_results([before, after])] == [("gsm8k", True)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t, r: [r[0]], "name two or more"),
        (lambda t, r: [r[0], r[0]], "name two or more"),
        (lambda t, r: [r[0], t / "nowhere"], "there is no folder"),
        (lambda t, r: [r[0], t], "is neither a run"),
        (lambda t, r: [r[0], evaluate_into(t / "e", 0.5, 1)], "compare like with like"),
        (
            lambda t, r: [evaluate_into(t / "x", 0.5, 1), evaluate_into(t / "y", 0.5, 2, extract="boxed")],
            "gsm8k in x and gsm8k in y cannot be compared, for they differ in extract (gsm8k against boxed)",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    make, message: str, tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    paths = make(tmp_path, runs)
    before = sorted(tmp_path.rglob("*"))
    assert main(["compare", *map(str, paths)]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
