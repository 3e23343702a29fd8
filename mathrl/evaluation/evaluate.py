"""Evaluate a policy: one greedy completion and k samples a problem, judged while others are still sampled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mathrl.errors import UserError
from mathrl.evaluation.completions import (
    GREEDY,
    SAMPLE,
    CompletionLog,
    judged_records,
    read_evaluation,
    write_evaluation,
)
from mathrl.evaluation.paired import Difference, compare_evaluations
from mathrl.evaluation.result import Evaluation, Judged, Record, problems_hash, protocol_hash
from mathrl.evaluation.source_hash import verifiers_hash
from mathrl.types import Completion, Group, Problem, Sampling, Score, derive_seed

if TYPE_CHECKING:  # judging saved completions needs no engine, and so neither torch nor transformers
    from mathrl.rollout.base import Engine

__all__ = [
    "Difference",
    "Evaluation",
    "compare_evaluations",
    "evaluate",
    "make_protocol",
    "read_evaluation",
]

Progress = Callable[[int, int], None]
"""Called as (completions there are, completions in all)."""


class Scorer(Protocol):
    """What judges: ``mathrl.rewards.scorer.RewardScorer``."""

    extract: str

    def submit(self, problem: Problem, completion: Completion) -> None: ...

    def score(self, groups: Sequence[Group]) -> list[Group]: ...


def make_protocol(
    problems: Sequence[Problem],
    *,
    extract: str,
    max_completion_tokens: int,
    num_samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    prompt: Mapping[str, Any] | None = None,
    stop: str = "",
) -> dict[str, Any]:
    """Everything that two evaluations must share to be compared. Seeds and engines are not in it."""
    further: dict[str, Any] = {"stop": stop} if stop else {}
    if num_samples:
        further |= {"temperature": temperature, "top_p": top_p}
    return {
        "problems": problems_hash(problems),
        "num_problems": len(problems),
        "prompt": dict(prompt or {}),
        "extract": extract,
        "verifiers": verifiers_hash(),
        "max_completion_tokens": max_completion_tokens,
        "num_samples": num_samples,
        **further,
    }


def resume_key(
    protocol: Mapping[str, Any], seed: int, version: int, info: Mapping[str, Any] | None = None
) -> str:
    """16 hex digits that change with anything completions depend on: what an interrupted file goes on with.

    The verifiers are left out: completions that are there already are judged by those of today.
    """
    made_by = {k: v for k, v in protocol.items() if k != "verifiers"}
    return protocol_hash({"protocol": made_by, "seed": seed, "version": version, "info": dict(info or {})})


def evaluate(
    engine: Engine,
    problems: Sequence[Problem],
    scorer: Scorer,
    *,
    max_completion_tokens: int,
    num_samples: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    name: str = "held_out",
    prompt: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
    stop: str = "",
    out: Path | None = None,
    replace_other: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Sample, judge and count, with the weights the engine has now.

    Args:
        num_samples: k samples a problem at ``temperature`` beside the greedy completion; 0: greedy only.
        prompt: describes the prompt template; part of the protocol.
        info: told in the result, not compared (model, engine …).
        stop: completions are cut before this text (few-shot prompts make a base model go on asking).
        out: ``*.jsonl``; completions go there as they finish, and an evaluation that was interrupted goes on
            from them. At the end it holds the verdicts, and ``<stem>.json`` beside it the numbers.
        replace_other: an evaluation of something else in ``out`` is replaced, not refused.

    A problem whose meta has ``other_references`` counts as right where any of its references is met.

    Raises:
        UserError: no problem, two problems with one id, a prompt too long for the model's context, or
            ``out`` holds an evaluation of something else.
    """
    ids = [p.id for p in problems]
    if not ids:
        raise UserError(f"evaluation {name}: there is no problem to evaluate on")
    if len(set(ids)) < len(ids):
        twice = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"evaluation {name}: the problem id {twice} is there twice; ids must differ")
    protocol = make_protocol(
        problems,
        extract=scorer.extract,
        max_completion_tokens=max_completion_tokens,
        num_samples=num_samples,
        temperature=temperature,
        top_p=top_p,
        prompt=prompt,
        stop=stop,
    )
    header = {"name": name, "resume_key": resume_key(protocol, seed, engine.version, info)}
    log = CompletionLog(out, header, replace_other=replace_other)
    sampler = _Sampler(engine, problems, scorer, log, stop, progress)
    sampler.total = len(problems) * (1 + num_samples)
    start = time.perf_counter()
    try:
        greedy = sampler.run(
            GREEDY, 1, Sampling(0.0, max_completion_tokens=max_completion_tokens, logprobs=False), seed
        )
        sampled = (
            [()] * len(problems)
            if not num_samples
            else sampler.run(
                SAMPLE,
                num_samples,
                Sampling(temperature, top_p, max_completion_tokens=max_completion_tokens, logprobs=False),
                derive_seed(seed, "samples"),
            )
        )
    finally:
        log.close()
    generated = time.perf_counter()
    groups = [Group(p, (), (*g, *s)) for p, g, s in zip(problems, greedy, sampled, strict=True)]
    scored = score(scorer, groups)
    records = [record_of(group) for group in scored]
    kept = judged_records(records)
    if not kept:
        raise UserError(f"evaluation {name}: no verifier can read any of the {len(ids)} references")
    evaluation = Evaluation(
        name=name,
        records=kept,
        protocol=protocol,
        version=engine.version,
        seed=seed,
        skipped=len(records) - len(kept),
        reused=sampler.reused,
        seconds={"generate": generated - start, "verify": time.perf_counter() - generated},
        info={"engine": engine.name, **(info or {})},
    )
    if out is not None:
        write_evaluation(evaluation, out, header)
    return evaluation


class _Sampler:
    """Samples what the log lacks; every completion is logged and handed to the verifiers as it finishes."""

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        scorer: Scorer,
        log: CompletionLog,
        stop: str,
        progress: Progress | None,
    ):
        self.engine, self.problems, self.scorer, self.log = engine, problems, scorer, log
        self.stop, self.progress = stop, progress
        self.total = self.done = self.reused = 0

    def run(self, kind: str, size: int, sampling: Sampling, seed: int) -> list[tuple[Completion, ...]]:
        """``size`` completions a problem; a problem of which any is missing is sampled whole."""
        ready: dict[str, tuple[Completion, ...]] = {}
        for problem in self.problems:
            found = [self.log.found.get((problem.id, kind, i)) for i in range(size)]
            if all(found):
                ready[problem.id] = tuple(c for c in found if c is not None)
        missing = [p for p in self.problems if p.id not in ready]
        self.reused += size * len(ready)
        self._count(size * len(ready))

        def finished(problem_index: int, index: int, completion: Completion) -> None:
            problem, completion = missing[problem_index], self._cut(completion)
            self.log.add(problem, kind, index, completion)
            self.scorer.submit(problem, completion)
            self._count(1)

        if missing:
            groups = self.engine.sample(missing, size, sampling, seed=seed, on_completion=finished)
            ready |= {g.problem.id: tuple(map(self._cut, g.completions)) for g in groups}
        return [ready[p.id] for p in self.problems]

    def _cut(self, completion: Completion) -> Completion:
        if not self.stop or self.stop not in completion.text:
            return completion
        return replace(completion, text=completion.text.split(self.stop, 1)[0], finish_reason="stop")

    def _count(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(self.done, self.total)


def score(scorer: Scorer, groups: Sequence[Group]) -> list[Group]:
    """Scored groups; what misses the reference is held against the problem's ``other_references`` in turn."""
    scored = scorer.score(groups)
    depth = max((len(g.problem.meta.get("other_references", ())) for g in groups), default=0)
    for turn in range(depth):
        again = [
            (at, replace(g, problem=replace(g.problem, answer=others[turn]), scores=()))
            for at, g in enumerate(scored)
            if len(others := g.problem.meta.get("other_references", ())) > turn
        ]
        for (at, _), second in zip(again, scorer.score([g for _, g in again]), strict=True):
            best = (b if b.correct else a for a, b in zip(scored[at].scores, second.scores, strict=True))
            scored[at] = replace(scored[at], scores=tuple(best))
    return scored


def record_of(group: Group) -> Record:
    """The first completion of a scored group is the greedy one."""
    judged = [_judged(c, s) for c, s in zip(group.completions, group.scores, strict=True)]
    return Record(group.problem, judged[0], tuple(judged[1:]))


def _judged(completion: Completion, score: Score) -> Judged:
    return Judged(
        completion.text,
        score.outcome,
        score.extracted,
        completion.finish_reason,
        len(completion.token_ids),
        score.detail,
    )
