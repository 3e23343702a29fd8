"""Progress on a terminal and off it."""

import io

import pytest
from rich.console import Console

from mathrl.run import progress as module
from mathrl.run.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", clock)
    return clock


def plain() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out, width=40)), out


def test_off_a_terminal_a_line_at_times_with_the_numbers_that_matter(clock):
    progress, out = plain()
    with progress, progress.stage("train", 30) as stage:
        stage(0, 30)
        metrics = {"reward/mean": 0.25, "policy/kl_ref": 0.01234, "tokens/per_s": 8123.4}
        stage.show(1, metrics | {"held_out/accuracy": 0.551})
        assert out.getvalue() == ""
        clock.now += 12
        stage.show(6, metrics)
        assert out.getvalue() == (
            "train 6/30  reward 0.250 · held-out 55.1% · KL 0.0123 · 8,123 tok/s  0:48 left\n"
        )
        clock.now += 5
        stage.show(7, metrics)
    assert out.getvalue().splitlines()[1:] == [
        "train 7/30  reward 0.250 · held-out 55.1% · KL 0.0123 · 8,123 tok/s  17.0 s"
    ]


def test_time_left_of_a_resumed_stage_counts_its_own_steps(clock):
    progress, _ = plain()
    with progress.stage("train", 100) as stage:
        stage(80, 100)
        clock.now += 30
        stage(90, 100)
        assert stage.line() == "train 90/100  0:30 left"


def test_time_left_of_sampling_comes_from_tokens_at_their_latest_rate(clock):
    progress, out = plain()
    with progress.stage("held_out before", 100) as stage:
        stage.sampled(0, None)
        clock.now += 30
        stage.sampled(3000, None)  # nothing has finished: tokens alone are told
        assert out.getvalue() == "held_out before 0/100  3,000 tokens\n"
        clock.now += 10
        stage(1, 100)
        stage.sampled(5000, 0.01)
        assert stage.line() == "held_out before 1/100  5,000 tokens", "too early to tell"
        clock.now += 10
        stage.sampled(7000, 0.5)  # 4000 in the last 20 s, and 7000 to come
        assert stage.line() == "held_out before 1/100  7,000 tokens  0:35 left"
        stage.sampled(7000, 0.001)
        stage.sampled(7000, 0.04)
        assert stage.line().endswith("0:14:00 left".removeprefix("0:"))
        stage(100, 100)
    assert out.getvalue().splitlines()[-1] == "held_out before 100/100  50.0 s"


def test_hours_are_told_as_hours(clock):
    progress, _ = plain()
    with progress.stage("train", 1000) as stage:
        stage(0, 1000)
        clock.now += 1000
        stage(100, 1000)
        assert stage.line() == "train 100/1000  2:30:00 left"


def test_inner_stages_are_silent_off_a_terminal(clock):
    progress, out = plain()
    with progress.stage("train", 2), progress.stage("step 1", 50) as inner:
        clock.now += 60
        inner(50, 50)
    assert [line.split()[0] for line in out.getvalue().splitlines()] == ["train"]


def test_on_a_terminal_bars_stand_while_a_stage_lasts():
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, highlight=False, width=120))
    with progress:
        with progress.stage("train", 4) as outer:
            outer.show(2, {"reward/mean": 0.5})
            with progress.stage("step 2", 10) as inner:
                inner(3, 10)
                shown = [(t.description, t.fields["count"], t.completed) for t in progress.bars.tasks]
                assert shown == [("train", "2/4", 0.5), ("step 2", "3/10", 0.3)]
                progress.bars.refresh()
        assert progress.bars.tasks == []
    assert "reward 0.500" in out.getvalue()
    assert "train 2/4" in out.getvalue()
    progress.close()


def test_a_failing_stage_still_ends():
    progress, out = plain()
    with pytest.raises(RuntimeError), progress.stage("SFT", 3):
        raise RuntimeError
    assert progress.depth == 0
    assert out.getvalue().startswith("SFT 0/3")
