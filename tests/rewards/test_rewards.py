"""Verdict -> reward, streamed or not, and the metrics of a rollout."""

import pytest

import verifiers
from mathrl.config import RewardConfig
from mathrl.errors import UserError
from mathrl.rewards.scorer import (
    RewardScorer,
    as_answer,
    check_answer_type,
    check_reference,
    could_be_judged,
    rollout_metrics,
)
from mathrl.types import Completion, Group, Problem
from verifiers.pool.pool import MIN_MEMORY_MB


def completion(text: str, length: int = 4) -> Completion:
    return Completion(tuple(range(length)), text, "stop" if length < 9 else "length")


@pytest.fixture(scope="module")
def scorer():
    scorer = RewardScorer(RewardConfig(correct=1.0, wrong=-0.5, format=0.25, length=-0.01), extract="gsm8k")
    yield scorer
    scorer.close()


GROUPS = [
    Group(
        Problem("a", "q", "42"), (1, 2), (completion("6*7\n#### 42"), completion("#### 41"), completion("?"))
    ),
    Group(Problem("b", "q", "1,000"), (1,), (completion("#### 1000", 9),) * 3),
    Group(Problem("c", "q", "fruit"), (1,), (completion("#### 3"),) * 3),
]


def test_rewards_are_the_weighted_sum_of_their_parts(scorer):
    scored = scorer.score(GROUPS)
    assert [s.outcome for s in scored[0].scores] == ["correct", "wrong", "no_answer"]
    assert scored[0].rewards == pytest.approx((1 + 0.25 - 0.04, -0.5 + 0.25 - 0.04, -0.5 - 0.04))
    for group in scored:
        for score in group.scores:
            assert sum(score.parts.values()) == pytest.approx(score.reward)
    assert scored[0].scores[0].extracted == "42"
    assert scored[0].scores[0].correct
    assert not scored[0].scores[1].correct


def test_a_percentage_that_is_asked_for_may_have_its_sign(scorer):
    texts = tuple(completion(f"#### {given}") for given in ("75%", "75", "75 percent", "74%"))
    for question, right in (
        ("What percentage are roses?", [1, 1, 1, 0]),
        ("How many are roses?", [0, 1, 0, 0]),
    ):
        (scored,) = scorer.score([Group(Problem("a", question, "75", "number"), (1,), texts)])
        assert [int(s.correct) for s in scored.scores] == right
        assert scored.problem.answer == "75"


def test_the_format_reward_is_for_answers_that_were_read(scorer):
    """Right or wrong; not for what no verifier can read, which would pay for the mark alone."""
    group = Group(
        Problem("a", "q", "42", "number"),
        (1,),
        tuple(completion(text) for text in ("#### 42", "#### 41", "#### forty of them, and two {", "?")),
    )
    (scored,) = scorer.score([group])
    assert [s.outcome for s in scored.scores] == ["correct", "wrong", "unparsed", "no_answer"]
    assert [s.parts["format"] for s in scored.scores] == [0.25, 0.25, 0.0, 0.0]


def test_a_thought_that_did_not_end_is_told_and_counted():
    scorer = RewardScorer(RewardConfig(num_workers=1), extract="gsm8k")
    scorer.prompt_text = lambda problem: (
        "<|im_start|>assistant\n<think>\n" if problem.id == "a" else "Answer:"
    )
    texts = (
        ("so #### 42", "so 42.</think>\n#### 42", "<think> or #### 41"),
        ("#### 42", "<think> 42", "nothing"),
    )
    groups = [
        Group(Problem(i, "q", "42"), (1,), tuple(map(completion, t)))
        for i, t in zip("ab", texts, strict=True)
    ]
    try:
        scored = scorer.score(groups)
    finally:
        scorer.close()
    assert [s.outcome for g in scored for s in g.scores] == [
        "no_answer", "correct", "no_answer", "correct", "no_answer", "no_answer",
    ]  # fmt: skip
    assert [s.detail == "its thought did not end" for g in scored for s in g.scores] == [1, 0, 1, 0, 1, 0]
    assert rollout_metrics(scored)["rollout/unfinished_thought_frac"] == 0.5


def test_an_unreadable_reference_is_neither_right_nor_wrong(scorer):
    scored = scorer.score(GROUPS)
    assert {s.outcome for s in scored[2].scores} == {"bad_reference"}
    assert [g.problem.id for g in could_be_judged(scored)] == ["a", "b"]
    assert check_reference(GROUPS[0].problem) is None
    assert "fruit" in check_reference(GROUPS[2].problem)


def test_verdicts_started_early_are_the_same_and_not_made_twice(scorer, monkeypatch):
    asked = []
    submit = scorer.pool.submit
    monkeypatch.setattr(scorer.pool, "submit", lambda request: asked.append(request) or submit(request))
    for group in GROUPS[:1]:
        for c in group.completions:
            scorer.submit(group.problem, c)
    assert len(asked) == 3
    early = scorer.score(GROUPS[:1])
    assert len(asked) == 3
    late = scorer.score(GROUPS[:1])
    assert len(asked) == 6
    assert [s.reward for s in early[0].scores] == [s.reward for s in late[0].scores]


def test_equal_completions_are_judged_once(scorer, monkeypatch):
    """Eight of one text, and the same text of another problem: sixteen tokens more or less do not matter."""
    asked = []
    submit = scorer.pool.submit
    monkeypatch.setattr(scorer.pool, "submit", lambda request: asked.append(request) or submit(request))
    same = tuple(completion("so\n#### 42", length) for length in range(1, 9))
    groups = [Group(Problem(name, "q", answer), (1,), same) for name, answer in (("a", "42"), ("b", "43"))]
    for early in (True, False):
        asked.clear()
        for group in groups if early else ():
            for c in group.completions:
                scorer.submit(group.problem, c)
        scored = scorer.score(groups)
        assert [r.answer for r in asked] == ["42", "43"]
        assert [{s.outcome for s in g.scores} for g in scored] == [{"correct"}, {"wrong"}]
        lengths = [s.parts["length"] for s in scored[0].scores]
        assert lengths == pytest.approx([-0.01 * n for n in range(1, 9)])


def test_a_reward_model_is_weighted_and_logged_apart():
    scorer = RewardScorer(
        RewardConfig(model_path="given", model_weight=0.5),
        "gsm8k",
        reward_model=lambda problems, cs: [len(c.text) for c in cs],
    )
    group = scorer.score(GROUPS[:1])[0]
    scorer.close()
    assert group.scores[0].parts == {"answer": 1.0, "model": 0.5 * len("6*7\n#### 42")}
    assert group.scores[2].parts == {"answer": 0.0, "model": 0.5}


def test_rollout_metrics_count_what_the_policy_did(scorer):
    metrics = rollout_metrics(could_be_judged(scorer.score(GROUPS)))
    assert metrics["verify/correct_frac"] == pytest.approx(4 / 6)
    assert metrics["verify/no_answer_frac"] == pytest.approx(1 / 6)
    assert metrics["reward/equal_frac"] == 0.5
    assert metrics["rollout/truncated_frac"] == 0.5
    assert metrics["rollout/length_mean"] == (4 * 3 + 9 * 3) / 6
    assert metrics["tokens/sampled"] == 39
    assert metrics["reward/mean"] == pytest.approx(
        metrics["reward/answer"] + metrics["reward/format"] + metrics["reward/length"]
    )


def test_groups_whose_reference_is_only_words_are_a_metric_of_their_own(scorer):
    wordy = Group(Problem("w", "Which day?", "Tuesday evening", "auto"), (1,), GROUPS[0].completions)
    metrics = rollout_metrics(scorer.score([GROUPS[0], GROUPS[1], wordy]))
    assert metrics["verify/words_frac"] == pytest.approx(1 / 3)


def test_what_the_prompt_opened_is_no_answer_until_it_is_closed():
    thinks, plain = (Problem(name, "q", "42") for name in ("thinks", "plain"))
    groups = [
        Group(p, (1,), (completion("#### 42"), completion("so</think>\n#### 42"))) for p in (thinks, plain)
    ]
    scorer = RewardScorer(RewardConfig(num_workers=1), "gsm8k")
    scorer.prompt_text = lambda problem: "assistant\n<think>\n" if problem is thinks else "Answer:"
    for c in groups[0].completions:
        scorer.submit(thinks, c)
    outcomes = [[s.outcome for s in g.scores] for g in scorer.score(groups)]
    scorer.close()
    assert outcomes == [["no_answer", "correct"], ["correct", "correct"]]


def test_a_saved_problem_brings_its_prompt():
    saved = Problem("saved", "q", "42", meta={"prompt": "User: q Assistant: <think>"})
    scorer = RewardScorer(RewardConfig(num_workers=1), "gsm8k")
    (scored,) = scorer.score([Group(saved, (), (completion("#### 42"), completion("</think>#### 42")))])
    scorer.close()
    assert [s.outcome for s in scored.scores] == ["no_answer", "correct"]


def test_a_worked_solution_ends_in_one_alternative_or_in_all_that_is_needed():
    said = [("42", "number"), ('["1/2", "0.5"]', "any_of"), ('["3", "5"]', "all_of")]
    said += [('[["3", "5"], "none"]', "any_of"), ("[true, 7]", "all_of"), ("1/2", "any_of")]
    answers = [as_answer(Problem("p", "q", answer, kind)) for answer, kind in said]
    assert answers == ["42", "1/2", "3, 5", "3, 5", "yes, 7", "1/2"]
    for (answer, kind), text in zip(said, answers, strict=True):
        assert verifiers.verify(f"\\boxed{{{text}}}", answer, kind).correct


def test_a_group_with_two_rewards_is_not_equal(scorer):
    """Of four groups one is all alike."""
    texts = [("#### 42", "#### 41"), ("#### 42", "?"), ("#### 42", "#### 42"), ("#### 1", "#### 42")]
    groups = [
        Group(Problem(str(i), "q", "42"), (1,), tuple(completion(text) for text in pair))
        for i, pair in enumerate(texts)
    ]
    assert rollout_metrics(scorer.score(groups))["reward/equal_frac"] == 0.25


def test_an_unknown_answer_type_suggests_near_names():
    with pytest.raises(UserError, match="'number'"):
        check_answer_type("nubmer")


def test_the_configuration_refuses_the_memory_that_the_pool_refuses():
    assert RewardConfig(memory_mb=MIN_MEMORY_MB).memory_mb == MIN_MEMORY_MB
    with pytest.raises(ValueError, match=str(MIN_MEMORY_MB)):
        RewardConfig(memory_mb=MIN_MEMORY_MB - 1)
