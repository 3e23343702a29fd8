"""What an evaluation is: judged completions of a list of problems, and the numbers that follow from them.

The file of completions (JSON lines, a header first) holds everything; all numbers are computed from it, so an
evaluation can be judged again or compared long after the model has gone.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mathrl.evaluation.statistics import (
    Interval,
    cluster_bootstrap,
    maj_at_k,
    pass_at_k,
    wilson_interval,
)
from mathrl.types import Problem

CORRECT = "correct"
NO_VOTE = ("no_answer", "unparsed", "timeout", "error")  # no answer that could win a majority
UNJUDGED = "bad_reference"


@dataclass(frozen=True, slots=True)
class Judged:
    """A completion and its verdict."""

    text: str
    outcome: str  # a verifiers.Outcome value
    extracted: str | None = None
    finish_reason: str = "stop"
    num_tokens: int = 0
    detail: str = ""
    vote: str | None = None  # of a wrong sample: the text that stands for all that say the same

    @property
    def correct(self) -> bool:
        return self.outcome == CORRECT

    @property
    def wrong_answer(self) -> str | None:
        """The text of an answer that was read and is not right."""
        if self.correct or self.outcome in NO_VOTE or self.extracted is None:
            return None
        return self.extracted.strip()


@dataclass(frozen=True, slots=True)
class Record:
    """A problem, its greedy completion and its k samples."""

    problem: Problem
    greedy: Judged
    samples: tuple[Judged, ...] = ()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    ci95: Interval


@dataclass(frozen=True, slots=True)
class Slice:
    """Greedy accuracy of the problems that share a value, for example level = 3."""

    key: str
    value: str
    n: int
    accuracy: float
    ci95: Interval


@dataclass(frozen=True)
class Evaluation:
    """Greedy accuracy and measures of k samples over problems.

    Problems whose reference no verifier reads are left out of ``records`` and counted in ``skipped``; every
    other outcome than "correct" counts as not right, whoever is to blame. Greedy accuracy has a Wilson
    interval; mean@k, pass@k and maj@k have bootstrap intervals over problems.
    """

    name: str
    records: tuple[Record, ...]
    protocol: Mapping[str, Any]  # whatever must be equal for a comparison to be fair
    version: int = 0  # of the policy
    seed: int = 0
    skipped: int = 0
    reused: int = 0  # completions taken over from an interrupted evaluation
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase, of this session
    info: Mapping[str, Any] = field(default_factory=dict)  # model, engine, versions: told, not compared

    @property
    def n(self) -> int:
        return len(self.records)

    @cached_property
    def k(self) -> int:
        """Samples a problem; the fewest where they differ."""
        return min((len(r.samples) for r in self.records), default=0)

    @cached_property
    def num_right(self) -> int:
        return sum(r.greedy.correct for r in self.records)

    @property
    def accuracy(self) -> float:
        return self.num_right / self.n if self.n else 0.0

    @property
    def ci95(self) -> Interval:
        return wilson_interval(self.num_right, self.n)

    @property
    def protocol_hash(self) -> str:
        return protocol_hash(self.protocol)

    @cached_property
    def sample_right(self) -> list[int]:
        """Right samples of each problem."""
        return [sum(s.correct for s in r.samples) for r in self.records]

    @property
    def mean_at_k(self) -> float | None:
        return self._at_k["mean"][self.k].value if self.k else None

    @property
    def mean_at_k_ci95(self) -> Interval | None:
        return self._at_k["mean"][self.k].ci95 if self.k else None

    @property
    def pass_at_k(self) -> dict[int, Estimate]:
        """Chance that one of k samples is right, for k = 1, 2, 4 … up to the samples there are."""
        return self._at_k["pass"] if self.k else {}

    @property
    def maj_at_k(self) -> dict[int, Estimate]:
        """Chance that the majority of k samples is right."""
        return self._at_k["maj"] if self.k else {}

    @cached_property
    def _at_k(self) -> dict[str, dict[int, Estimate]]:
        votes = [votes_of(r.samples) for r in self.records]
        counts = np.array([len(r.samples) for r in self.records])
        right = np.array(self.sample_right)
        sizes = sorted({1 << i for i in range(self.k.bit_length())} | {self.k})
        columns = [("mean", self.k, right / counts)]
        columns += [("pass", size, pass_at_k(counts, right, size)) for size in sizes]
        columns += [("maj", size, np.array([maj_at_k(*v, size) for v in votes])) for size in sizes]
        intervals = cluster_bootstrap(np.stack([values for *_, values in columns], axis=1))
        table: dict[str, dict[int, Estimate]] = {"mean": {}, "pass": {}, "maj": {}}
        for (name, size, values), interval in zip(columns, intervals, strict=True):
            table[name][size] = Estimate(float(values.mean()), interval)
        return table

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """Greedy completions by outcome, most frequent first."""
        return dict(Counter(r.greedy.outcome for r in self.records).most_common())

    @cached_property
    def sample_outcomes(self) -> dict[str, int]:
        return dict(Counter(s.outcome for r in self.records for s in r.samples).most_common())

    @property
    def truncated(self) -> int:
        """Greedy completions that ended at the length limit."""
        return sum(r.greedy.finish_reason == "length" for r in self.records)

    @property
    def ended(self) -> Slice:
        """Greedy accuracy among the completions that ended by themselves: what the length limit hides."""
        by_itself = [r.greedy.finish_reason != "length" for r in self.records]
        return self._slice("finish", "ended by itself", by_itself)

    @property
    def tokens(self) -> int:
        return sum(c.num_tokens for r in self.records for c in (r.greedy, *r.samples))

    def by(self, key: str) -> list[Slice]:
        """Accuracy by a field of meta (num_steps, level, subject …), or by quarters of ``"length"``."""
        if key == "length":
            return self._by_length()
        values = [r.problem.meta.get(key) for r in self.records]
        present = {str(v): v for v in values if v is not None}
        numeric = all(isinstance(v, int | float) for v in present.values())
        names = sorted(present, key=(lambda s: float(present[s])) if numeric else str)
        return [self._slice(key, name, [str(v) == name for v in values]) for name in names]

    def _by_length(self) -> list[Slice]:
        lengths = np.array([r.greedy.num_tokens for r in self.records])
        edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1.0])) if len(lengths) else np.array([])
        slices, low = [], 0
        for edge in edges:
            inside = (lengths >= low) & (lengths <= edge)
            if inside.any():
                slices.append(self._slice("length", f"{lengths[inside].min()}–{int(edge)}", inside.tolist()))
            low = int(edge) + 1
        return slices

    def _slice(self, key: str, value: str, inside: Sequence[bool]) -> Slice:
        right = [r.greedy.correct for r, kept in zip(self.records, inside, strict=True) if kept]
        share = sum(right) / len(right) if right else 0.0
        return Slice(key, value, len(right), share, wilson_interval(sum(right), len(right)))

    @cached_property
    def keys(self) -> list[str]:
        """Meta fields that part the problems into 2 to 20 values of at least 5 problems on average."""
        found = sorted({key for r in self.records for key in r.problem.meta})
        return [key for key in found if 2 <= len(parts := self.by(key)) <= min(20, self.n // 5) and parts]

    def summary(self) -> dict[str, Any]:
        """The few numbers of summary.json."""
        return {
            "accuracy": self.accuracy,
            "ci95": list(self.ci95),
            "n": self.n,
            "mean_at_k": self.mean_at_k,
            "k": self.k,
        }

    def metrics(self, prefix: str = "held_out") -> dict[str, float]:
        """Numbers for a step's metrics; the best checkpoint is chosen by the lower bound."""
        out = {
            f"{prefix}/accuracy": self.accuracy,
            f"{prefix}/accuracy_low": self.ci95.low,
            f"{prefix}/accuracy_high": self.ci95.high,
            f"{prefix}/truncated_frac": self.truncated / self.n if self.n else 0.0,
        }
        if self.mean_at_k is not None:
            out[f"{prefix}/mean_at_k"] = self.mean_at_k
        return out

    def to_dict(self) -> dict[str, Any]:
        """Everything but the texts, as JSON values."""

        def table(estimates: Mapping[int, Estimate]) -> dict[str, Any]:
            return {str(k): {"value": e.value, "ci95": list(e.ci95)} for k, e in estimates.items()}

        return {
            "name": self.name,
            **self.summary(),
            "mean_at_k_ci95": list(self.mean_at_k_ci95) if self.mean_at_k_ci95 else None,
            "pass_at_k": table(self.pass_at_k),
            "maj_at_k": table(self.maj_at_k),
            "outcomes": self.outcomes,
            "sample_outcomes": self.sample_outcomes,
            "truncated": self.truncated,
            "ended": {"n": self.ended.n, "accuracy": self.ended.accuracy, "ci95": list(self.ended.ci95)},
            "skipped": self.skipped,
            "by": {
                key: [
                    {"value": s.value, "n": s.n, "accuracy": s.accuracy, "ci95": list(s.ci95)}
                    for s in self.by(key)
                ]
                for key in [*self.keys, "length"]
            },
            "tokens": self.tokens,
            "seconds": dict(self.seconds),
            "reused": self.reused,
            "version": self.version,
            "seed": self.seed,
            "info": dict(self.info),
            "protocol": dict(self.protocol),
            "protocol_hash": self.protocol_hash,
            "problems": [
                {"id": r.problem.id, "greedy": r.greedy.outcome, "samples_right": right}
                for r, right in zip(self.records, self.sample_right, strict=True)
            ],
        }


def votes_of(samples: Iterable[Judged]) -> tuple[int, list[int], int]:
    """(right, [samples of each wrong answer], abstained); an answer is one however it is written."""
    right, abstained = 0, 0
    wrong: Counter[str] = Counter()
    for sample in samples:
        if sample.correct:
            right += 1
        elif (answer := sample.wrong_answer) is None:
            abstained += 1
        else:
            wrong[sample.vote or answer] += 1
    return right, list(wrong.values()), abstained


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """16 hex digits that change with any value of the protocol."""
    text = json.dumps(protocol, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def problems_hash(problems: Iterable[Problem]) -> str:
    """16 hex digits of ids, questions (with their system prompts) and references, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for problem in problems:
        row: list[Any] = [problem.id, problem.question, problem.answer, problem.answer_type]
        row += problem.lettered_options
        if problem.system_prompt:
            row.append({"system_prompt": problem.system_prompt})
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()
