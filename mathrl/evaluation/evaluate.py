"""Evaluate a policy: one greedy completion and k samples a problem, judged while others are still sampled."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mathrl.distributed.agreement import on_rank_0, together
from mathrl.distributed.collectives import gather, interleaved, own_share, rank
from mathrl.errors import UserError
from mathrl.evaluation.completions import (
    GREEDY,
    SAMPLE,
    CompletionLog,
    join_parts,
    judged_records,
    read_evaluation,
    remove_parts,
    write_evaluation,
)
from mathrl.evaluation.paired import Difference, compare_evaluations
from mathrl.evaluation.protocol import EvaluationSettings, make_protocol, resume_key
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.evaluation.tokens_left import TokensLeft
from mathrl.types import Completion, Group, Problem, Sampling, Score, derive_seed

if TYPE_CHECKING:  # judging saved completions needs no engine, and so neither torch nor transformers
    from mathrl.rollout.base import Engine

__all__ = [
    "Difference",
    "Evaluation",
    "EvaluationSettings",
    "compare_evaluations",
    "evaluate_problems",
    "read_evaluation",
]


class Gauge(Protocol):
    """What shows how far an evaluation has come: ``mathrl.run.progress.Stage``."""

    def __call__(self, done: int, total: int, /) -> None:
        """So many completions are there, of so many."""
        ...

    def sampled(self, tokens: int, share: float | None) -> None:
        """So many tokens are sampled, a share of all that will be; None: nobody can tell yet."""
        ...


class Scorer(Protocol):
    """What judges: ``mathrl.rewards.scorer.RewardScorer``."""

    extract: str

    def submit(self, problem: Problem, completion: Completion) -> object: ...

    def judge(self, groups: Sequence[Group]) -> list[Group]: ...

    def same_answers(self, asked: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[int]]: ...


def evaluate_problems(
    engine: Engine,
    problems: Sequence[Problem],
    scorer: Scorer,
    settings: EvaluationSettings,
    *,
    seed: int = 0,
    name: str = "held_out",
    info: Mapping[str, Any] | None = None,
    out: Path | None = None,
    replace_other: bool = False,
    progress: Gauge | None = None,
) -> Evaluation:
    """Sample, judge and count, with the weights the engine has now; several ranks share the problems.

    Every rank gets the whole evaluation, and it does not depend on how many there are.

    Args:
        info: told in the result, not compared (model, engine …).
        out: ``*.jsonl``; completions go there as they finish, and an evaluation that was interrupted goes on
            from them. At the end it holds the verdicts, and ``<stem>.json`` beside it the numbers.
        replace_other: an evaluation of something else in ``out`` is replaced, not refused.

    Raises:
        UserError: no problem, two problems with one id, a prompt too long for the model's context, or
            ``out`` holds an evaluation of something else.
    """
    _check_ids(problems, name)
    protocol = make_protocol(problems, settings, extract=scorer.extract)
    header = {"name": name, "resume_key": resume_key(protocol, seed, engine.version, info)}
    start = time.perf_counter()
    if out is not None:
        on_rank_0("opening an evaluation", lambda: join_parts(out, header))
    with together(f"evaluation {name}"):
        with closing(CompletionLog(out, header, replace_other=replace_other, rank=rank())) as log:
            sampler = _Sampler(engine, own_share(problems), scorer, settings, log, progress, len(problems))
            groups = sampler.groups(seed)
        generated = time.perf_counter()
        own = _judge_each(scorer, groups)
    records, skipped = _kept(interleaved(gather(own)), name)
    evaluation = Evaluation(
        name=name,
        records=records,
        protocol=protocol,
        version=engine.version,
        seed=seed,
        skipped=skipped,
        reused=sum(gather(sampler.reused)),
        seconds={"generate": generated - start, "verify": time.perf_counter() - generated},
        info={"engine": engine.name, **(info or {})},
    )

    def write(path: Path) -> None:
        write_evaluation(evaluation, path, header)
        remove_parts(path)

    if out is not None:
        on_rank_0("writing an evaluation", lambda: write(out))
    return evaluation


def _check_ids(problems: Sequence[Problem], name: str) -> None:
    counts = Counter(p.id for p in problems)
    if not counts:
        raise UserError(f"evaluation {name}: there is no problem to evaluate on")
    twice, times = counts.most_common(1)[0]
    if times > 1:
        raise UserError(f"evaluation {name}: the problem id {twice} is there twice; ids must differ")


class _Sampler:
    """Samples what the log lacks; every completion is logged and handed to the verifiers as it finishes."""

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        scorer: Scorer,
        settings: EvaluationSettings,
        log: CompletionLog,
        progress: Gauge | None,
        num_problems: int,
    ):
        self.engine, self.problems, self.scorer, self.log = engine, problems, scorer, log
        self.settings, self.progress = settings, progress
        self.total = num_problems * (1 + settings.num_samples)  # of all ranks; shown as this one gets on
        self.shares = num_problems / max(len(problems), 1)
        self.done = self.reused = 0
        kinds = ((GREEDY, 1), (SAMPLE, settings.num_samples))
        missing = sum(size * len(self._split(kind, size)[1]) for kind, size in kinds)
        self.left = TokensLeft(missing, settings.max_completion_tokens)

    def groups(self, seed: int) -> list[Group]:
        """All completions of each problem, the greedy one first."""
        settings, limit = self.settings, self.settings.max_completion_tokens
        greedy = self._sample(GREEDY, 1, Sampling(0.0, max_completion_tokens=limit, logprobs=False), seed)
        sampled: list[tuple[Completion, ...]] = [()] * len(self.problems)
        if settings.num_samples:
            sampling = Sampling(
                settings.temperature, settings.top_p, max_completion_tokens=limit, logprobs=False
            )
            sampled = self._sample(SAMPLE, settings.num_samples, sampling, derive_seed(seed, "samples"))
        return [Group(p, (), (*g, *s)) for p, g, s in zip(self.problems, greedy, sampled, strict=True)]

    def _sample(self, kind: str, size: int, sampling: Sampling, seed: int) -> list[tuple[Completion, ...]]:
        """``size`` completions a problem; a problem of which any is missing is sampled whole."""
        ready, missing = self._split(kind, size)
        self.reused += size * len(ready)
        self._count(size * len(ready))

        def finished(problem_index: int, index: int, completion: Completion) -> None:
            problem, completion = missing[problem_index], self._cut(completion)
            self.log.add(problem, kind, index, completion)
            self.scorer.submit(problem, completion)
            self.left.finished(len(completion.token_ids))
            self._count(1)

        if missing:
            self.engine.on_tokens = self._under_way
            try:
                groups = self.engine.sample(missing, size, sampling, seed=seed, on_completion=finished)
            finally:
                self.engine.on_tokens = None
            ready |= {g.problem.id: tuple(map(self._cut, g.completions)) for g in groups}
        return [ready[p.id] for p in self.problems]

    def _split(self, kind: str, size: int) -> tuple[dict[str, tuple[Completion, ...]], list[Problem]]:
        """Completions that are there already, by problem; the problems of which any is missing."""
        ready: dict[str, tuple[Completion, ...]] = {}
        for problem in self.problems:
            found = [self.log.found.get((problem.id, kind, i)) for i in range(size)]
            if all(found):
                ready[problem.id] = tuple(c for c in found if c is not None)
        return ready, [p for p in self.problems if p.id not in ready]

    def _cut(self, completion: Completion) -> Completion:
        stop = self.settings.stop
        if not stop or stop not in completion.text:
            return completion
        return replace(completion, text=completion.text.split(stop, 1)[0], finish_reason="stop")

    def _count(self, more: int) -> None:
        self.done += more
        if self.progress is not None:
            self.progress(min(round(self.done * self.shares), self.total), self.total)
            if self.left.num_finished:
                self._tell()

    def _under_way(self, tokens: int) -> None:
        self.left.under_way(tokens)
        self._tell()

    def _tell(self) -> None:
        if self.progress is not None:
            self.progress.sampled(round(self.left.tokens * self.shares), self.left.share)


def judge_groups(scorer: Scorer, groups: Sequence[Group], name: str) -> tuple[tuple[Record, ...], int]:
    """The records of completions, and how many were left out because no verifier reads their reference.

    Raises:
        UserError: none is left.
    """
    return _kept(_judge_each(scorer, groups), name)


def _judge_each(scorer: Scorer, groups: Sequence[Group]) -> list[Record | None]:
    """The record of each group; None where no verifier reads its reference."""
    records = [record_of(group) for group in scorer.judge(groups)]
    kept = judged_records(records)
    left, voted = {id(record) for record in kept}, iter(with_votes(scorer, kept))
    return [next(voted) if id(record) in left else None for record in records]


def _kept(records: Sequence[Record | None], name: str) -> tuple[tuple[Record, ...], int]:
    kept = tuple(record for record in records if record is not None)
    if not kept:
        raise UserError(f"evaluation {name}: no verifier can read any of the {len(records)} references")
    return kept, len(records) - len(kept)


def with_votes(scorer: Scorer, records: Sequence[Record]) -> list[Record]:
    """The records, each wrong sample with what it votes for: the commonest text that says the same."""
    texts = [
        [text for text, _ in Counter(s.wrong_answer for s in r.samples).most_common() if text is not None]
        for r in records
    ]
    unsure = [i for i, found in enumerate(texts) if len(found) > 1]
    first = scorer.same_answers([(records[i].problem, texts[i]) for i in unsure])
    votes: list[dict[str | None, str]] = [{} for _ in records]
    for i, places in zip(unsure, first, strict=True):
        votes[i] = {text: texts[i][place] for text, place in zip(texts[i], places, strict=True)}
    return [
        replace(r, samples=tuple(replace(s, vote=own.get(s.wrong_answer)) for s in r.samples)) if own else r
        for r, own in zip(records, votes, strict=True)
    ]


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
