"""Held-out accuracy while training: its interval, the best checkpoint by the lower bound, the early stop."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mathrl.cli import main
from mathrl.commands.watch import Watch
from mathrl.evaluation.completions import read_evaluation
from mathrl.evaluation.statistics import wilson_interval
from mathrl.report.run_page import render
from mathrl.report.run_record import read_run
from mathrl.run.checkpoint import CheckpointStore
from mathrl.training.sentinel import SyncError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that cannot learn (its learning rate is next to 0) and may stop after two evaluations in vain."""
    folder = tmp_path_factory.mktemp("stop")
    recipe = str(Path(__file__).parents[1] / "tiny.toml")
    words = ["train", recipe, "--run.output_dir", str(folder), "--run.name", "run"]
    words += ["--evaluate.every_steps", "1", "--evaluate.early_stop_patience", "2"]
    words += ["--update.learning_rate", "1e-12", "--sft.max_train_steps", "10", "--train.num_steps", "30"]
    assert main(words) == 0
    return folder / "run"


def test_it_stops_where_the_lower_bound_has_not_risen(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["num_steps"], summary["best_step"]) == (3, 30, 1)
    assert summary["finished"]
    assert CheckpointStore(run / "checkpoints", 2).best() == run / "checkpoints" / "step-00000001"


def test_the_interval_is_that_of_the_few_problems_and_is_drawn(run: Path) -> None:
    record = read_run(run)
    steps, accuracy = record.present("held_out/accuracy")
    assert steps == [1, 2, 3]
    n = record.config.evaluate.every_num_problems
    for row, value in zip(record.rows, accuracy, strict=True):
        low, high = wilson_interval(round(value * n), n)
        assert (row["held_out/accuracy_low"], row["held_out/accuracy_high"]) == pytest.approx((low, high))
    html = render(record)
    chart = html.split("<figcaption>Held-out accuracy</figcaption>")[1].split("</svg>")[0]
    assert 'class="band c0"' in chart


def test_before_and_after_are_the_same_problems_by_the_same_protocol(run: Path) -> None:
    before, after = (read_evaluation(run / "evaluations" / f"{when}.jsonl") for when in ("before", "after"))
    assert [r.problem for r in before.records] == [r.problem for r in after.records]
    assert before.protocol_hash == after.protocol_hash
    assert [r.greedy.text for r in before.records] == [
        r.greedy.text for r in after.records
    ]  # nothing learned
    assert (before.version, after.version) == (0, 3)


def test_a_look_through_an_engine_with_other_weights_counts_for_nothing() -> None:
    def refuse() -> None:
        raise SyncError("the engine still samples from older weights")

    found = SimpleNamespace(metrics=lambda: {"held_out/accuracy": 1.0}, records=[])
    watch: Any = object.__new__(Watch)
    watch.stop = SimpleNamespace(interruptible=nullcontext)
    watch.held_out = SimpleNamespace(look=lambda step: found)
    watch.trainer = SimpleNamespace(prove=refuse)
    metrics: dict[str, float] = {}
    with pytest.raises(SyncError):
        watch._look(4, metrics)
    assert not metrics
