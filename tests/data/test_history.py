"""What a run remembers of its problems, and which it passes over."""

from collections import Counter

import pytest

from mathrl.config import HistoryConfig
from mathrl.data.history import History
from mathrl.data.stream import ProblemStream
from mathrl.types import Completion, Group, Problem, Score

PROBLEMS = [Problem(str(i), f"q{i}", "1") for i in range(20)]
DONE = Completion((1,), "", "stop")
CONFIG = HistoryConfig(enabled=True, window=8, min_tries=4)


def group(problem: Problem, right: int, of: int = 4) -> Group:
    scores = tuple(Score(0.0, "correct" if i < right else "wrong") for i in range(of))
    return Group(problem, (1,), (DONE,) * of, scores=scores)


def right_of(problem: Problem) -> int:
    """The first five are always solved, the next five never, the rest half."""
    return 4 if int(problem.id) < 5 else 0 if int(problem.id) < 10 else 2


def run(stream: ProblemStream, steps: int, per_step: int = 4) -> list[list[str]]:
    asked = []
    for _ in range(steps):
        problems = stream.take(per_step)
        asked.append([p.id for p in problems])
        stream.observe([group(p, right_of(p)) for p in problems])
    return asked


def test_the_newest_tries_count():
    history = History(CONFIG)
    problem = PROBLEMS[0]
    assert history.rate("0") is None
    history.observe([group(problem, 0)])
    assert history.rate("0") == 0.0
    history.observe([group(problem, 4)])
    assert history.rate("0") == 0.5
    history.observe([group(problem, 4)])  # a window of 8 tries: the first visit is forgotten
    assert history.rate("0") == 1.0


def test_solved_and_unsolved_problems_are_asked_less_and_none_vanishes():
    stream = ProblemStream(PROBLEMS, 0, History(CONFIG))
    asked = Counter(name for step in run(stream, 400) for name in step)
    visits = [asked[str(i)] for i in range(20)]
    epochs = stream.epoch
    assert all(v > 0 for v in visits)
    # asked in a quarter, a half and all of the epochs: sums of 5 x epochs coin throws, 4 standard deviations
    for part, share in ((visits[:5], 0.25), (visits[5:10], 0.5)):
        spread = 4 * (5 * epochs * share * (1 - share)) ** 0.5
        assert abs(sum(part) - 5 * epochs * share) < spread + 10
    # a problem of the step under way is not asked again where the next epoch begins with it
    assert all(0.9 * epochs <= v <= epochs + 1 for v in visits[10:])


def test_every_step_asks_different_problems_also_over_the_end_of_an_epoch():
    stream = ProblemStream(PROBLEMS, 1, History(CONFIG))
    for step in run(stream, 60, per_step=7):
        assert len(set(step)) == 7


def test_without_anything_to_pass_over_the_order_is_the_plain_one():
    plain, kept = ProblemStream(PROBLEMS, 3), ProblemStream(PROBLEMS, 3, History(CONFIG))
    for _ in range(10):
        assert plain.take(4) == kept.take(4)
    assert plain.state() | {"problems": ""} == {"epoch": 1, "position": 20, "problems": ""}


def test_a_resumed_stream_asks_the_same_problems():
    whole = ProblemStream(PROBLEMS, 5, History(CONFIG))
    run(whole, 30)
    state = whole.state()
    resumed = ProblemStream(PROBLEMS, 5, History(CONFIG))
    resumed.restore(state)
    assert run(resumed, 40) == run(whole, 40)


def test_metrics_say_what_was_passed_over():
    config = HistoryConfig(skip_solved=0.9, skip_unsolved=0.0, min_tries=4)
    stream = ProblemStream(PROBLEMS[:10], 0, History(config))
    passed = 0.0
    for _ in range(30):
        problems = stream.take(2)
        metrics = stream.observe([group(p, right_of(p)) for p in problems])
        passed += metrics["data/skipped_solved"]
        assert metrics["data/skipped_unsolved"] == 0
    assert metrics["data/seen"] == 10
    assert metrics["data/solved_frac"] == metrics["data/unsolved_frac"] == 0.5
    assert passed > 30  # five of ten problems, nine visits of ten


def test_a_problem_counts_as_solved_from_the_rate_on():
    for right, passed in ((3, True), (2, False), (0, False)):
        history = History(HistoryConfig(solved_rate=0.75, skip_solved=0.95, skip_unsolved=0.0, min_tries=4))
        history.observe([group(PROBLEMS[0], right)])
        assert any(history.skips("0", 0, epoch) for epoch in range(20)) == passed
        metrics = history.observe([])
        assert metrics["data/solved_frac"] == passed
        assert (metrics["data/skipped_solved"] > 0) == passed
        assert history.observe([])["data/skipped_solved"] == 0, "counted once, for the step it was for"


def test_a_probability_of_one_is_refused():
    with pytest.raises(ValueError, match="0.95"):
        HistoryConfig(skip_solved=1.0)


def test_more_tries_than_are_remembered_are_not_waited_for():
    """Without this no problem would ever be passed over, and nothing would say so."""
    config = HistoryConfig(skip_solved=0.9, skip_unsolved=0.0, window=8, min_tries=64)
    stream, passed = ProblemStream(PROBLEMS[:10], 0, History(config)), []
    for _ in range(40):
        problems = stream.take(2)
        passed.append(stream.observe([group(p, right_of(p)) for p in problems])["data/skipped_solved"])
    assert sum(passed) > 10
    tried = len(group(PROBLEMS[0], 1).scores)
    assert sum(passed[: 5 * 8 // tried]) == 0  # not before eight tries of a problem
