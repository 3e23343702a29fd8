"""Reward functions of the user's own: forms, weights, failures, and time that runs out."""

import asyncio
import contextlib
import functools
import subprocess
import sys
import time

import pytest

from mathrl.config import RewardConfig
from mathrl.errors import UserError
from mathrl.rewards.functions import RewardFunction, checked, evaluate_function, load_functions
from mathrl.rewards.scorer import RewardScorer, rollout_metrics
from mathrl.rewards.time_limit import OutOfTime, time_limit
from mathrl.types import Completion, Group, Problem
from verifiers import Outcome, Verdict


def completion(text, finish="stop"):
    return Completion((1, 2), text, finish)


GROUPS = [
    Group(
        Problem("a", "six times seven?", "42", row={"level": 3}), (1,), tuple(map(completion, ("xx", "y")))
    ),
    Group(Problem("b", "two?", "2", row={"level": 1}), (1,), (completion("zzz"), completion(""))),
]
VERDICTS = [[Verdict(Outcome.CORRECT), Verdict(Outcome.WRONG)], [Verdict(Outcome.NO_ANSWER)] * 2]


def size(problem, completion, verdict):
    return len(completion.text) + 10 * (verdict.outcome is Outcome.CORRECT)


def rank(problem, completions, verdicts):
    return [i + 100 * problem.row["level"] for i in range(len(completions))]


async def slowly(problem, completion, verdict):
    await asyncio.sleep(0.2)
    return len(completion.text)


def trl(completions, level, **columns):
    assert columns["prompts"] == ["six times seven?"] * 2 + ["two?"] * 2
    assert columns["ground_truth"] == columns["answer"] == ["42", "42", "2", "2"]
    return [len(c) * n for c, n in zip(completions, level, strict=True)]


def trl_chat(prompts, completions, **columns):
    assert prompts[0] == [{"role": "user", "content": "six times seven?"}]
    return [len(c[0]["content"]) if c[0]["content"] else None for c in completions]


def trl_strict(completions, answer):  # no **columns: only what it names is passed
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def values(call, **more):
    return evaluate_function(RewardFunction(call, **more), GROUPS, VERDICTS, timeout_s=5)


def test_each_form_is_called_as_its_parameters_say():
    assert values(size) == [[12, 1], [3, 0]]
    assert values(rank) == [[300, 301], [100, 101]]
    assert values(trl) == [[6, 3], [3, 0]]
    assert values(trl_chat, style="trl_chat") == [[2, 1], [3, 0]]  # None adds nothing
    assert values(trl_strict) == [[0, 0], [0, 0]]


def test_parameters_with_values_of_their_own_are_left_alone():
    def weighed(problem, completion, verdict, per_letter=2, *, more=1, **rest):
        return per_letter * len(completion.text) + more

    assert values(weighed) == [[5, 3], [7, 1]]
    assert values(functools.partial(weighed, per_letter=3), name="thrice") == [[7, 4], [10, 1]]


def test_a_blocked_async_call_ends_the_others_before_they_block():
    called = []

    async def blocked(problem, completion, verdict):
        called.append(problem.id)
        time.sleep(60)

    with pytest.raises(UserError, match="took more than 0.1 s for completion 1 of problem a"):
        evaluate_function(RewardFunction(blocked), GROUPS, VERDICTS, timeout_s=0.1)
    assert called == ["a"]


def test_an_async_call_is_given_what_it_waits_for_and_told_when_it_is_cancelled():
    seen = []

    async def asks(problem, completion, verdict):
        with contextlib.suppress(KeyError):
            await failing()
        return await asyncio.wait_for(asyncio.sleep(0.01, result=len(completion.text)), 1)

    async def failing():
        await asyncio.sleep(0)
        raise KeyError

    async def waits(problem, completion, verdict):
        try:
            await asyncio.sleep(60)
        finally:
            seen.append(problem.id)

    assert values(asks) == [[2, 1], [3, 0]]
    with pytest.raises(UserError, match="'waits' took more than 0.05 s"):
        evaluate_function(RewardFunction(waits), GROUPS, VERDICTS, timeout_s=0.05)
    assert len(seen) == 4


def test_columns_of_the_data_come_as_they_are_and_the_problem_fills_what_is_missing():
    row = {"answer": "6 * 7 = 42 #### 42", "problem": "the column"}
    groups = [
        Group(Problem("a", "six times seven?", "42", solution="6 * 7", row=row), (1,), (completion("x"),)),
        Group(Problem("b", "two?", "2"), (1,), (completion("y"),)),
    ]
    seen = {}

    def trl_reward(completions, problem, answer, solution, question, **columns):
        seen.update(problem=problem, answer=answer, solution=solution, question=question)
        return [0.0] * len(completions)

    evaluate_function(RewardFunction(trl_reward), groups, [[Verdict(Outcome.WRONG)]] * 2, timeout_s=5)
    assert seen["problem"] == ["the column", None]  # a column of that name, and not a Problem
    assert seen["answer"][0] == row["answer"]
    assert seen["solution"] == ["6 * 7", "2"]  # without a worked solution the answer is all there is
    assert seen["question"] == ["six times seven?", "two?"]


def test_async_calls_wait_together():
    start = time.monotonic()
    assert values(slowly) == [[2, 1], [3, 0]]
    assert time.monotonic() - start < 0.7  # one after the other: 0.8


def test_async_functions_run_inside_a_running_loop():
    async def notebook():
        return values(slowly)

    assert asyncio.run(notebook()) == [[2, 1], [3, 0]]


def boom(problem, completion, verdict):
    return 1 / len(completion.text)


async def never(problem, completion, verdict):
    await asyncio.sleep(60)


async def blocks(problem, completion, verdict):
    time.sleep(60)  # the loop stands still


async def computes(problem, completions, verdicts):
    await asyncio.sleep(0.01)
    while True:
        pass


def leaves(problem, completion, verdict):
    sys.exit(3)


async def leaves_later(problem, completion, verdict):
    await asyncio.sleep(0.01)
    sys.exit(3)


def hangs(problem, completion, verdict):
    while True:
        with contextlib.suppress(Exception):  # what careless code does
            time.sleep(60)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            boom,
            r"'boom' failed for completion 2 of problem b: ZeroDivisionError.*test_functions.py, line \d+",
        ),
        (hangs, r"'hangs' took more than 0.1 s for completion 1 of problem a.*function_timeout_s"),
        (never, r"'never' took more than 0.1 s for completion 1 of problem a"),
        (blocks, r"'blocks' took more than 0.1 s for completion 1 of problem a"),
        (computes, r"'computes' took more than 0.1 s for completion 1 of problem a and 1 more"),
        (leaves_later, r"'leaves_later' failed for completion 1 of problem a: SystemExit: 3"),
        (leaves, r"'leaves' failed for completion 1 of problem a: SystemExit: 3 \(test_functions.py"),
        (lambda problem, completions, verdicts: {0: 1.0, 1: 0.5}, r"gave {0: 1.0.*must give a list"),
        (lambda problem, completions, verdicts: {1.0, 0.5}, r"must give a list"),
        (lambda completions, **columns: [c[0]["content"] for c in completions], 'style = "trl_chat" gives'),
        (lambda problem, completion, verdict: "1", r"gave '1' for completion 1 of problem a.*finite number"),
        (lambda problem, completion, verdict: float("nan"), r"gave nan for completion 1 of problem a"),
        (lambda problem, completion, verdict: None, r"gave None for completion 1 of problem a"),
        (lambda problem, completions, verdicts: [1.0], r"gave 1 numbers for 2 completions"),
        (lambda problem, completions, verdicts: 1.0, r"must give a list"),
        (lambda completions, **columns: [0, 0, "x", 0], r"gave 'x' for completion 1 of problem b"),
    ],
)
def test_a_failing_function_is_named_with_its_completion(call, words):
    with pytest.raises(UserError, match=words):
        evaluate_function(RewardFunction(call), GROUPS, VERDICTS, timeout_s=0.1)


def test_a_call_that_ignores_the_limit_ends_the_process_with_the_sentence():
    code = (
        "import time\nfrom mathrl.rewards import time_limit as t\nt.GRACE_S = 0.2\n"
        "with t.time_limit(0.1, 'too slow'):\n"
        "    while True:\n"
        "        try:\n            time.sleep(9)\n        except BaseException:\n            pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "mathrl: too slow\n")


def test_a_limit_that_was_kept_leaves_nothing_behind():
    with time_limit(0.05, "late"):
        pass
    time.sleep(0.15)
    with pytest.raises(OutOfTime), time_limit(0.05, "late"):
        time.sleep(5)
    time.sleep(0.1)


def test_parameters_of_no_form_and_names_that_are_taken_are_refused():
    with pytest.raises(UserError, match=r"takes \(text\).*\(problem, completion, verdict\)"):
        RewardFunction(lambda text: 0.0)
    with pytest.raises(UserError, match="reward/length is a metric already"):
        RewardFunction(size, name="length")
    with pytest.raises(UserError, match="two reward functions are named 'boom'"):
        checked([boom, boom])


def test_functions_are_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_rewards.py").write_text("def short(problem, completion, verdict):\n    return -1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    config = RewardConfig(functions="my_own_rewards:short=0.25")
    (function,) = load_functions(config)
    assert (function.name, function.weight, function.style) == ("short", 0.25, "completion")
    with pytest.raises(UserError, match="'my_own_rewards:long' cannot be imported.*module:function"):
        load_functions(RewardConfig(functions="my_own_rewards:long"))
    with pytest.raises(UserError, match="'math:pi' is a float"):
        load_functions(RewardConfig(functions="math:pi"))


def test_functions_add_their_weighted_values_under_their_own_names():
    config = RewardConfig(num_workers=1)
    scorer = RewardScorer(
        config, "gsm8k", functions=[RewardFunction(size, 0.5), RewardFunction(rank, -0.01, "place")]
    )
    groups = [
        Group(Problem("a", "q", "42", row={"level": 1}), (1,), (completion("#### 42"), completion("#### 4"))),
        Group(Problem("c", "q", "fruit", row={"level": 1}), (1,), (completion("#### 3"),) * 2),
    ]
    try:
        scored = scorer.score(groups)
        judged = scorer.judge(groups)
    finally:
        scorer.close()
    assert dict(scored[0].scores[0].parts) == {"answer": 1.0, "size": 0.5 * 17, "place": -1.0}
    assert scored[0].scores[1].reward == pytest.approx(0 + 0.5 * 6 - 0.01 * 101)
    assert scored[1].rewards == (0.0, 0.0)  # an unreadable reference: nothing is asked
    assert judged[0].rewards == (1.0, 0.0)
    assert rollout_metrics(scored[:1])["reward/place"] == pytest.approx(-1.005)


@pytest.mark.parametrize(
    ("text", "finish", "reward"),
    [("#### 42", "length", 1.0), ("#### 4", "stop", -1), ("#### 4", "length", -4), ("hm", "stop", -3),
     ("hm", "length", -4), (r"#### \frac{", "stop", -2)],
)  # fmt: skip
def test_outcomes_set_apart(text, finish, reward):
    scorer = RewardScorer(
        RewardConfig(wrong=-1, unparsed=-2, no_answer=-3, truncated=-4, num_workers=1), "gsm8k"
    )
    try:
        (scored,) = scorer.score([Group(Problem("a", "q", "42"), (1,), (completion(text, finish),))])
    finally:
        scorer.close()
    assert scored.rewards == (reward,)
