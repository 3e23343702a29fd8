"""Evaluations: numbers by hand, interrupted and resumed, compared only where that is fair."""

import json
from collections.abc import Sequence
from dataclasses import astuple, fields, replace
from pathlib import Path

import pytest

from mathrl.errors import UserError
from mathrl.evaluation.completions import read_evaluation
from mathrl.evaluation.evaluate import EvaluationSettings, compare_evaluations, evaluate_problems
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.evaluation.statistics import mcnemar_exact, wilson_interval
from mathrl.rewards.votes import same_answers
from mathrl.rollout.base import OnCompletion
from mathrl.types import Completion, Group, Problem, Sampling, Score
from verifiers import verify


class ScriptedEngine:
    """Answers from a table: (problem id, greedy or not, index) -> text; can die after some completions."""

    name, exact_logprobs = "scripted", True

    def __init__(self, script: dict[str, Sequence[str]], version: int = 0, die_after: int = 10**9):
        self.script, self.version, self.left = script, version, die_after
        self.sampled: list[tuple[str, int, float]] = []

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        assert sampling is not None
        greedy = sampling.temperature == 0
        groups = []
        for p, problem in enumerate(problems):
            texts = self.script[problem.id][:1] if greedy else self.script[problem.id][1 : 1 + group_size]
            completions = []
            for i, text in enumerate(texts):
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
                self.sampled.append((problem.id, i, sampling.temperature))
                completion = Completion(
                    tuple(range(1, len(text) + 2)), text, "length" if text == "…" else "stop"
                )
                completions.append(completion)
                if on_completion:
                    on_completion(p, i, completion)
            groups.append(Group(problem, (1, 2), tuple(completions)))
        return groups


class InProcessScorer:
    """The verifiers, without worker processes."""

    extract = "gsm8k"

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, problem: Problem, completion: Completion) -> None:
        self.submitted += 1

    def same_answers(self, asked: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[int]]:
        return same_answers(lambda requests: [verify(*astuple(request)) for request in requests], asked)

    def judge(self, groups: Sequence[Group]) -> list[Group]:
        out = []
        for g in groups:
            verdicts = [
                verify(c.text, g.problem.answer, g.problem.answer_type, "gsm8k") for c in g.completions
            ]
            scores = tuple(Score(float(v.correct or 0), v.outcome.value, v.extracted) for v in verdicts)
            out.append(Group(g.problem, g.prompt_ids, g.completions, scores=scores))
        return out


PROBLEMS = [
    Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i), meta={"num_steps": 1 + i % 2}) for i in range(6)
]
SCRIPT = {  # greedy, then four samples
    "p0": ["#### 0", "#### 0", "#### 0", "#### 0", "#### 0"],
    "p1": ["#### 2", "#### 2", "#### 3", "#### 3", "#### 2"],
    "p2": ["#### 5", "#### 4", "#### 5", "#### 5", "#### 5"],
    "p3": ["…", "…", "#### 6", "#### 6", "#### x y"],
    "p4": ["no", "no", "no", "no", "no"],
    "p5": ["#### 10", "#### 9", "#### 8", "#### 7", "#### 10"],
}


def run(engine: ScriptedEngine, out: Path | None = None, problems=PROBLEMS, **changes) -> Evaluation:
    own = {f.name for f in fields(EvaluationSettings)} & changes.keys()
    asked = {"max_completion_tokens": 32, "num_samples": 4, "temperature": 0.8}
    settings = EvaluationSettings(**asked | {name: changes.pop(name) for name in own})
    return evaluate_problems(engine, problems, InProcessScorer(), settings, out=out, **{"seed": 3} | changes)


def test_numbers_by_hand(tmp_path: Path) -> None:
    result = run(ScriptedEngine(SCRIPT), tmp_path / "before.jsonl")
    assert (result.n, result.num_right, result.accuracy) == (6, 3, 0.5)
    assert result.ci95 == wilson_interval(3, 6)
    assert result.sample_right == [4, 2, 1, 2, 0, 1]
    assert result.mean_at_k == pytest.approx(10 / 24)
    assert result.pass_at_k[1].value == pytest.approx(result.mean_at_k)
    assert result.maj_at_k[1].value == pytest.approx(result.mean_at_k)
    assert result.pass_at_k[4].value == pytest.approx(5 / 6)
    # p1 ties 2:2; p2 loses 1:3; p3 wins 2:0, for the rest abstain; p5 is a four-way tie
    assert result.maj_at_k[4].value == pytest.approx((1 + 0.5 + 0 + 1 + 0 + 0.25) / 6)
    assert result.outcomes == {"correct": 3, "no_answer": 2, "wrong": 1}
    assert result.truncated == 1
    assert [(s.value, s.n, s.accuracy) for s in result.by("num_steps")] == [("1", 3, 1 / 3), ("2", 3, 2 / 3)]
    low, high = result.pass_at_k[4].ci95
    assert 0 < low < 5 / 6 < high <= 1
    saved = json.loads((tmp_path / "before.json").read_text())
    assert saved["accuracy"] == 0.5
    assert saved["mean_at_k"] == pytest.approx(10 / 24)
    assert set(result.summary()) == {"accuracy", "ci95", "n", "mean_at_k", "k"}


def test_the_file_gives_the_evaluation_back(tmp_path: Path) -> None:
    problems = [replace(PROBLEMS[0], system_prompt="Be brief."), *PROBLEMS[1:]]
    result = run(ScriptedEngine(SCRIPT), tmp_path / "e.jsonl", problems)
    assert result.protocol["problems"] != run(ScriptedEngine(SCRIPT)).protocol["problems"]
    again = read_evaluation(tmp_path / "e.jsonl")
    assert again.records == result.records
    assert again.to_dict() == result.to_dict()


@pytest.mark.parametrize("die_after", [0, 3, 6, 17, 29])
def test_an_interrupted_evaluation_goes_on(tmp_path: Path, die_after: int) -> None:
    whole = run(ScriptedEngine(SCRIPT))
    out = tmp_path / "e.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(ScriptedEngine(SCRIPT, die_after=die_after), out)
    with open(out, "a") as file:
        file.write('{"problem_id": "p0", "kind": "gre')  # the process died in the middle of a line
    with pytest.raises(KeyboardInterrupt):
        run(ScriptedEngine(SCRIPT, die_after=0), out)
    second = ScriptedEngine(SCRIPT)
    resumed = run(second, out)
    assert resumed.records == whole.records
    kept = min(die_after, 6) + 4 * (max(die_after - 6, 0) // 4)  # groups are kept whole
    assert (resumed.reused, len(second.sampled)) == (kept, 30 - kept)
    third = ScriptedEngine(SCRIPT)
    assert run(third, out).records == whole.records
    assert third.sampled == []


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.jsonl"
    notes.write_text("my notes\nwithout a last line end")
    with pytest.raises(UserError, match="holds another evaluation"):
        run(ScriptedEngine(SCRIPT), notes)
    assert notes.read_text() == "my notes\nwithout a last line end"


@pytest.mark.parametrize(
    "change", [{"max_completion_tokens": 31}, {"seed": 4}, {"temperature": 0.7}, {"prompt": {"kind": "chat"}}]
)
def test_another_evaluation_is_not_mixed_into_a_file(tmp_path: Path, change: dict) -> None:
    run(ScriptedEngine(SCRIPT), tmp_path / "e.jsonl")
    with pytest.raises(UserError, match="holds another evaluation"):
        run(ScriptedEngine(SCRIPT), tmp_path / "e.jsonl", **change)
    with pytest.raises(UserError, match="holds another evaluation"):
        run(ScriptedEngine(SCRIPT, version=1), tmp_path / "e.jsonl")


def test_completions_of_an_interrupted_evaluation_are_judged_by_the_verifiers_of_today(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(ScriptedEngine(SCRIPT), tmp_path / "e.jsonl")
    monkeypatch.setattr("mathrl.evaluation.protocol.verifiers_hash", lambda: "other")
    engine = ScriptedEngine(SCRIPT)
    second = run(engine, tmp_path / "e.jsonl")
    assert engine.sampled == []
    assert (first.protocol["verifiers"] != "other", second.protocol["verifiers"]) == (True, "other")
    with pytest.raises(UserError, match="other versions of the verifiers"):
        compare_evaluations(first, second)


def test_another_evaluation_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    run(ScriptedEngine(SCRIPT), tmp_path / "e.jsonl")
    again = ScriptedEngine(SCRIPT, version=1)
    assert run(again, tmp_path / "e.jsonl", replace_other=True).version == 1
    assert len(again.sampled) == 30
    assert read_evaluation(tmp_path / "e.jsonl").version == 1


def test_completions_are_cut_where_the_next_question_begins(tmp_path: Path) -> None:
    script = {p.id: [f"#### {p.answer}\n\nQuestion: and 9?\nAnswer: #### 9"] * 5 for p in PROBLEMS}
    assert run(ScriptedEngine(script)).num_right == 0
    result = run(ScriptedEngine(script), tmp_path / "e.jsonl", stop="\nQuestion:")
    assert (result.num_right, result.sample_right) == (6, [4] * 6)
    assert all("and 9" not in r.greedy.text for r in read_evaluation(tmp_path / "e.jsonl").records)


def test_what_cannot_be_read_has_no_vote() -> None:
    """Three equal texts that no verifier reads do not outvote the one right answer."""
    script = {"p3": ["#### 6", "#### x y", "#### 6", "#### x y", "#### x y"]}
    result = run(ScriptedEngine(script), problems=[PROBLEMS[3]])
    assert result.sample_outcomes == {"unparsed": 3, "correct": 1}
    assert result.maj_at_k[4].value == 1.0


def test_wrong_answers_are_merged_by_what_they_say(tmp_path: Path) -> None:
    """Two right, and one half three times, written three ways: the majority is wrong."""
    problem = Problem("p", "?", "3")
    script = {"p": ["#### 3", "#### 3", "#### 3", "#### 1/2", "#### 0.5", "#### \\frac{1}{2}"]}
    result = run(ScriptedEngine(script), tmp_path / "e.jsonl", problems=[problem], num_samples=5)
    assert result.maj_at_k[5].value == 0.0
    assert result.maj_at_k[1].value == pytest.approx(2 / 5)
    assert len({s.vote for s in result.records[0].samples if not s.correct}) == 1
    assert [s.extracted for s in result.records[0].samples[2:]] == ["1/2", "0.5", "\\frac{1}{2}"]
    again = read_evaluation(tmp_path / "e.jsonl")
    assert again.maj_at_k[5].value == 0.0
    assert again.records == result.records


def test_any_of_several_references_will_do() -> None:
    problem = Problem("p", "?", '["1", "2", "3"]', "any_of")
    result = run(
        ScriptedEngine({"p": ["#### 3", "#### 1", "#### 2", "#### 4", "#### 3"]}), problems=[problem]
    )
    assert (result.num_right, result.sample_right) == (1, [3])


def test_difference_counts_only_changed_problems() -> None:
    better = SCRIPT | {"p2": ["#### 4"] * 5, "p4": ["#### 8"] * 5, "p0": ["#### 1"] * 5}
    before, after = run(ScriptedEngine(SCRIPT)), run(ScriptedEngine(better, version=9))
    difference = compare_evaluations(before, after)
    assert difference.value == pytest.approx(1 / 6)
    assert difference.p_value == mcnemar_exact(2, 1)
    assert difference.newly_right == ("p2", "p4")
    assert difference.newly_wrong == ("p0",)
    assert difference.mean_at_k is not None
    assert difference.mean_at_k.value == pytest.approx((-4 + 3 + 4) / 24)
    assert set(difference.to_dict()) >= {"value", "ci95", "p_value"}


def test_other_protocols_and_problems_are_refused() -> None:
    base = run(ScriptedEngine(SCRIPT), prompt={"kind": "plain"})
    for change in ({"prompt": {"kind": "chat"}}, {"max_completion_tokens": 31}, {"num_samples": 2}):
        other = run(ScriptedEngine(SCRIPT), **({"prompt": {"kind": "plain"}} | change))
        with pytest.raises(UserError, match=f"differ in {next(iter(change))}"):
            compare_evaluations(base, other)
    fewer = run(ScriptedEngine(SCRIPT), problems=PROBLEMS[:5], prompt={"kind": "plain"})
    with pytest.raises(UserError, match="differ in num_problems"):
        compare_evaluations(base, fewer)
    assert compare_evaluations(base, run(ScriptedEngine(SCRIPT), seed=8, prompt={"kind": "plain"})).value == 0


def test_unreadable_references_are_counted_apart() -> None:
    problems = [*PROBLEMS, Problem("bad", "?", "}{", answer_type="number")]
    result = run(ScriptedEngine(SCRIPT | {"bad": ["#### 1"] * 5}), problems=problems)
    assert (result.n, result.skipped) == (6, 1)
    with pytest.raises(UserError, match="no verifier can read any"):
        run(ScriptedEngine({"bad": ["#### 1"] * 5}), problems=problems[-1:])


def test_bad_calls_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no problem"):
        run(ScriptedEngine(SCRIPT), problems=[])
    with pytest.raises(UserError, match="p0 is there twice"):
        run(ScriptedEngine(SCRIPT), problems=[*PROBLEMS, PROBLEMS[0]])
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"kind": "header", "protocol": {}}\nnot json\n{}\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        list(read_evaluation(broken).records)


class Shown:
    """Notes what progress it is told of."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []
        self.tokens: list[tuple[int, float | None]] = []

    def __call__(self, done: int, total: int) -> None:
        self.counts.append((done, total))

    def sampled(self, tokens: int, share: float | None) -> None:
        self.tokens.append((tokens, share))


def test_progress_reaches_the_total_and_verdicts_start_early() -> None:
    shown, scorer = Shown(), InProcessScorer()
    engine = ScriptedEngine(SCRIPT)
    found = evaluate_problems(engine, PROBLEMS, scorer, EvaluationSettings(32, num_samples=4), progress=shown)
    assert shown.counts[-1] == (30, 30)
    assert scorer.submitted == 30
    assert shown.tokens[-1] == (found.tokens, 1.0)
    assert engine.on_tokens is None, "nobody is told after the evaluation"


def test_progress_moves_before_anything_has_finished() -> None:
    class Slow(ScriptedEngine):
        def sample(self, problems, *args, **kwargs):
            for tokens in (10, 20):
                self.on_tokens(tokens)
            return super().sample(problems, *args, **kwargs)

    shown = Shown()
    evaluate_problems(Slow(SCRIPT), PROBLEMS, InProcessScorer(), EvaluationSettings(32), progress=shown)
    assert shown.tokens[:2] == [(10, None), (20, None)]
    assert shown.tokens[2][1] is not None


def test_length_slices_part_all_problems() -> None:
    records = tuple(
        Record(Problem(str(i), "q", "1"), Judged("x", "correct" if i < 30 else "wrong", num_tokens=i))
        for i in range(40)
    )
    slices = Evaluation("e", records, {}).by("length")
    assert sum(s.n for s in slices) == 40
    assert [s.accuracy for s in slices] == [1.0, 1.0, 1.0, 0.0]
