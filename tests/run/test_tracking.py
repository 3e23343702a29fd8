"""metrics.jsonl, samples.jsonl and the trackers say what was logged, once."""

import errno
import io
import json
import math
import os
import sys
import types
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mathrl.config import Config, TrackingConfig
from mathrl.errors import UserError
from mathrl.evaluation.result import Judged, Record
from mathrl.run.folder import RunFolder
from mathrl.run.tracking import Tracker, check_trackers
from mathrl.types import Completion, Group, Problem, Score


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    path = tmp_path / "run"
    path.mkdir()
    return RunFolder(path)


def config(**tracking) -> Config:
    return Config(tracking=TrackingConfig(**({"tensorboard": False} | tracking)))


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def group(name: str) -> Group:
    completions = (Completion((5, 1), "4 — ok", "stop"), Completion((6, 6), "5", "length"))
    scores = (Score(1.0, "correct", "4"), Score(0.0, "wrong", "5"))
    return Group(Problem(name, "2 + 2?", "4"), (3,), completions, scores=scores)


def test_a_row_a_step_that_is_on_the_disk_at_once(folder):
    tracker = Tracker(folder, config(), 0)
    tracker.log(1, {"reward/mean": 0.5, "value/explained_variance": math.nan})
    assert rows(folder.path / "metrics.jsonl") == [
        {"step": 1, "reward/mean": 0.5, "value/explained_variance": None}
    ]
    tracker.log(2, {"reward/mean": 0.75})
    assert [row["step"] for row in rows(folder.path / "metrics.jsonl")] == [1, 2]


def test_a_resumed_run_drops_what_it_will_make_again(folder):
    first = Tracker(folder, config(), 0)
    for step in (1, 2, 3, 4):
        first.log(step, {"reward/mean": step / 10})
        first.samples(step, [group("a")])
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rewa')  # killed while writing
    again = Tracker(folder, config(), 2)
    assert [row["step"] for row in rows(folder.path / "metrics.jsonl")] == [1, 2]
    assert [row["step"] for row in rows(folder.path / "samples.jsonl")] == [1, 2]
    again.log(3, {"reward/mean": 0.9})
    assert [row["reward/mean"] for row in rows(folder.path / "metrics.jsonl")] == [0.1, 0.2, 0.9]


def test_samples_hold_completions_with_their_scores(folder):
    tracker = Tracker(folder, config(samples_per_step=2), 0)
    tracker.samples(7, [group("a"), group("b"), group("c")])
    tracker.watch(8, [Record(Problem("w", "1 + 1?", "2"), Judged("two", "no_answer", None, "length"))])
    found = rows(folder.path / "samples.jsonl")
    assert [(r["step"], r["kind"], r["problem_id"]) for r in found] == [
        (7, "train", "a"),
        (7, "train", "b"),
        (8, "watch", "w"),
    ]
    assert found[0] | {"completions": None} == {
        "step": 7,
        "kind": "train",
        "problem_id": "a",
        "question": "2 + 2?",
        "answer": "4",
        "completions": None,
    }
    assert found[0]["completions"] == [
        {"text": "4 — ok", "outcome": "correct", "reward": 1.0, "extracted": "4", "finish_reason": "stop"},
        {"text": "5", "outcome": "wrong", "reward": 0.0, "extracted": "5", "finish_reason": "length"},
    ]
    assert found[2]["completions"] == [
        {"text": "two", "outcome": "no_answer", "extracted": None, "finish_reason": "length"}
    ]
    Tracker(folder, config(samples_per_step=0), 8).samples(9, [group("a")])
    assert len(rows(folder.path / "samples.jsonl")) == 3


def test_tensorboard_reads_the_resumed_curve(folder):
    first = Tracker(folder, config(tensorboard=True), 0)
    for step in (1, 2, 3):
        first.log(step, {"reward/mean": float(step), "policy/bad": math.inf})
    first.close()
    first.close()
    again = Tracker(folder, config(tensorboard=True), 2)
    again.log(3, {"reward/mean": 30.0})
    again.close()
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/mean")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert events.Tags()["scalars"] == ["reward/mean"]


def test_a_full_disk_ends_in_a_sentence(folder, monkeypatch):
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tracker = Tracker(folder, config(), 0)
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: Full())
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: the disk is full; make room"):
        tracker.log(1, {"reward/mean": 0.5})


class Recorder(types.ModuleType):
    """A tracker's module that notes how it is called."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple] = []

    def init(self, **kwargs):
        self.calls.append(("init", kwargs))
        return self

    def log(self, metrics, step):
        self.calls.append(("log", metrics, step))

    def finish(self):
        self.calls.append(("finish",))


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_trackers_get_finite_metrics_and_the_configuration(folder, monkeypatch, name):
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)
    for step in (1, 2):
        tracker = Tracker(folder, config(**{name: True}), step - 1)
        tracker.log(step, {"reward/mean": 0.5, "policy/bad": math.nan})
        tracker.close()
    kinds = [call[0] for call in module.calls]
    assert kinds == ["init", "log", "finish"] * 2
    assert [call[1:] for call in module.calls if call[0] == "log"] == [
        ({"reward/mean": 0.5}, 1),
        ({"reward/mean": 0.5}, 2),
    ]
    first, second = (call[1] for call in module.calls if call[0] == "init")
    assert first == second, "a resumed run goes on in the same one"
    assert (first["project"], first["name"], first["resume"]) == ("mathrl", "run", "allow")
    assert first["config"]["rollout"]["group_size"] == Config().rollout.group_size


@pytest.mark.parametrize(("name", "advice"), [("wandb", "wandb login"), ("trackio", "leave it off")])
def test_a_tracker_that_cannot_begin_is_one_sentence(folder, monkeypatch, name, advice):
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)

    def refuse(**_):
        raise RuntimeError("No API key configured.\nMore lines")

    module.init = refuse
    with pytest.raises(UserError, match=rf"tracking\.{name} cannot begin \(No API key configured") as error:
        Tracker(folder, config(**{name: True}), 0)
    assert advice in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'mathrl\[{name}\]'"):
        check_trackers(TrackingConfig(**{name: True}))
    check_trackers(TrackingConfig())
