"""The commands tell the verifiers what the prompt ends with: a template may open a thought."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mathrl.commands import evaluation_run, train
from mathrl.config import Config
from mathrl.evaluation.benchmark_sets import Benchmark
from mathrl.rewards.scorer import RewardScorer
from mathrl.types import Completion, Group, Problem

PROBLEM = Problem("p", "How many?", "6")
TEMPLATE = SimpleNamespace(
    text=lambda problem: f"{problem.question}\nassistant\n<think>\n", encode=lambda p: (1,)
)


class Reached(Exception):
    """The place where completions would be sampled."""


def outcomes(scorer: RewardScorer) -> list[str]:
    completions = tuple(Completion((1,), text, "stop") for text in ("#### 6", "hm</think>#### 6"))
    return [score.outcome for score in scorer.judge([Group(PROBLEM, (1,), completions)])[0].scores]


def test_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RewardScorer] = []

    def scorer(*given: Any) -> RewardScorer:
        made.append(RewardScorer(given[0], "gsm8k"))
        return made[0]

    def sample(*_: Any) -> None:
        assert outcomes(made[0]) == ["no_answer", "correct"]
        raise Reached

    monkeypatch.setattr(train, "RewardScorer", scorer)
    monkeypatch.setattr(train, "_open_tracker", lambda _: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(train, "_reference", lambda *_: "")
    monkeypatch.setattr(train.Policy, "from_pretrained", lambda *_: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(train, "template_with_examples", lambda *_: TEMPLATE)
    monkeypatch.setattr(train, "make_engine", sample)
    config = Config.model_validate({"reward": {"num_workers": 1}})
    run: Any = SimpleNamespace(config=config, reward_functions=(), shown=())
    with pytest.raises(Reached):
        train._stages(SimpleNamespace(run=run))  # type: ignore[arg-type]


def test_in_evaluations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def sample(_: Any, problems: Any, scorer: RewardScorer, *rest: Any, **more: Any) -> None:
        assert outcomes(scorer) == ["no_answer", "correct"]
        raise Reached

    engine = SimpleNamespace(close=lambda: None)
    found = SimpleNamespace(benchmark=Benchmark(name="mine"), problems=(PROBLEM,))
    settings = SimpleNamespace(num_samples=0, max_completion_tokens=512)
    task = evaluation_run.Task(found, TEMPLATE, settings, 8, {}, None, tmp_path)  # type: ignore[arg-type]
    subject = SimpleNamespace(engine=lambda *_: (engine, "a double"))
    monkeypatch.setattr(evaluation_run, "load_subject", lambda _: subject)
    monkeypatch.setattr(evaluation_run, "_task", lambda *_: task)
    monkeypatch.setattr(evaluation_run, "evaluate_problems", sample)
    stage = SimpleNamespace(stage=lambda *_: nullcontext())
    monkeypatch.setattr(evaluation_run, "Progress", lambda _: nullcontext(stage))
    options = SimpleNamespace(max_completion_tokens=0, samples=0, seed=0, overwrite=False, rank_by="")
    source = SimpleNamespace(config=Config.model_validate({"reward": {"num_workers": 1}}), name="m")
    request: Any = SimpleNamespace(
        source=source, found=[found], options=options, out=tmp_path / "out", trained_on=None
    )
    with pytest.raises(Reached):
        evaluation_run.evaluate_benchmarks(request, Console(file=io.StringIO()))
