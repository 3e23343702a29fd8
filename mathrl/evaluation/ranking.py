"""Samples ranked by a reward model: best-of-k and score-weighted majority beside mean@k and maj@k.

All measures are of the same completions; like pass@k and maj@k they are means over all subsets of k of the n
samples, so that they are free of the order in which the samples came.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mathrl.evaluation.result import Estimate, Evaluation, Judged, votes_of
from mathrl.evaluation.statistics import PairedTest, cluster_bootstrap, maj_at_k, paired_bootstrap
from mathrl.rewards.scorer import RewardModel
from mathrl.types import Completion

_RIGHT = "right"
_MAX_SUBSETS = 1000  # of one problem's samples; beyond, as many are drawn
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """What a reward model makes of an evaluation's samples; intervals and tests are over problems."""

    model: str
    scores: tuple[tuple[float, ...], ...]  # of each problem's samples
    best_at_k: Mapping[int, Estimate]  # the sample with the highest score of k is right
    weighted_at_k: Mapping[int, Estimate]  # the answer with most weight of k is right
    pair_accuracy: Estimate | None  # a right sample scores higher than a wrong one; None: no problem has both
    num_mixed: int  # problems that have both, which pair_accuracy is over
    tests: Mapping[str, PairedTest]  # at the largest k, as "best against mean"

    def to_dict(self) -> dict[str, Any]:
        """JSON values, but for the scores."""

        def told(e: Estimate) -> dict[str, Any]:
            return {"value": e.value, "ci95": list(e.ci95)}

        return {
            "model": self.model,
            "best_at_k": {str(k): told(e) for k, e in self.best_at_k.items()},
            "weighted_at_k": {str(k): told(e) for k, e in self.weighted_at_k.items()},
            "pair_accuracy": (told(self.pair_accuracy) if self.pair_accuracy else {"value": None})
            | {"n": self.num_mixed},
            "tests": {
                name: {"value": t.value, "ci95": list(t.ci95), "p_value": t.p_value}
                for name, t in self.tests.items()
            },
        }


def score_samples(evaluation: Evaluation, reward_model: RewardModel) -> list[tuple[float, ...]]:
    """The reward model's score of every sample; equal texts of a problem are scored once."""
    keys = list(dict.fromkeys((i, s.text) for i, r in enumerate(evaluation.records) for s in r.samples))
    problems = [evaluation.records[i].problem for i, _ in keys]
    completions = [Completion((0,), text, "stop") for _, text in keys]
    found = dict(zip(keys, reward_model(problems, completions), strict=True))
    return [tuple(found[i, s.text] for s in r.samples) for i, r in enumerate(evaluation.records)]


def measure_ranking(evaluation: Evaluation, scores: Sequence[Sequence[float]], model: str = "") -> Ranking:
    """Measures of the samples with these scores; ``evaluation.k`` must be at least 1.

    The weight of a sample is exp(score), its strength in the Bradley–Terry model, where the odds of one
    answer against another are the ratio of strengths; a constant added to a problem's scores changes nothing.
    """
    records = evaluation.records
    sizes = sorted({1 << i for i in range(evaluation.k.bit_length())} | {evaluation.k})
    best, weighted = np.empty((len(records), len(sizes))), np.empty((len(records), len(sizes)))
    for row, (record, own) in enumerate(zip(records, scores, strict=True)):
        right = np.array([s.correct for s in record.samples], dtype=np.float64)
        values = np.array(own, dtype=np.float64)
        for column, k in enumerate(sizes):
            best[row, column] = best_of_k(values, right, k)
            weighted[row, column] = weighted_majority(record.samples, values, k)
    mixed = [pair_share(r.samples, own) for r, own in zip(records, scores, strict=True)]
    ranked = np.array([share for share in mixed if share is not None])
    k, count = evaluation.k, np.array([len(r.samples) for r in records])
    mean = np.array(evaluation.sample_right) / count
    majority = np.array([maj_at_k(*votes_of(r.samples), k) for r in records])
    tests = {
        f"best@{k} against mean@{k}": paired_bootstrap(mean, best[:, -1]),
        f"best@{k} against maj@{k}": paired_bootstrap(majority, best[:, -1]),
        f"weighted maj@{k} against maj@{k}": paired_bootstrap(majority, weighted[:, -1]),
    }
    return Ranking(
        model,
        tuple(tuple(own) for own in scores),
        _estimates(sizes, best),
        _estimates(sizes, weighted),
        Estimate(float(ranked.mean()), *cluster_bootstrap(ranked[:, None])) if len(ranked) else None,
        len(ranked),
        tests,
    )


def _estimates(sizes: Sequence[int], table: Array) -> dict[int, Estimate]:
    intervals = cluster_bootstrap(table)
    return {
        k: Estimate(float(table[:, i].mean()), interval)
        for i, (k, interval) in enumerate(zip(sizes, intervals, strict=True))
    }


def best_of_k(scores: Array, right: Array, k: int) -> float:
    """Chance that the highest of k of the n scores, all subsets alike, is of a right sample.

    Equal scores share it: of a group of equals each is as likely to be taken. The highest of k is in the
    group with b samples below and m in it with probability [C(b + m, k) − C(b, k)] / C(n, k).

    Args:
        scores, right: (n,); ``right`` 1 or 0.
    """
    chance, below = 0.0, 0
    for value in np.unique(scores):
        equal = scores == value
        upto = below + int(equal.sum())
        taken = (math.comb(upto, k) - math.comb(below, k)) / math.comb(len(scores), k)
        chance += taken * float(right[equal].mean())
        below = upto
    return chance


def weighted_majority(samples: Sequence[Judged], scores: Array, k: int) -> float:
    """Chance that the answer with the largest sum of exp(score) among k of the n samples is right.

    Over all subsets, or ``_MAX_SUBSETS`` that are drawn (always the same) where there are more; answers of
    equal weight share it, and a subset without any answer is wrong.
    """
    answers = [_answer(sample) for sample in samples]
    names = list(dict.fromkeys(a for a in answers if a is not None))
    if not names:
        return 0.0
    weights = np.exp(scores - scores.max())
    table = np.array([[w * (a == name) for name in names] for a, w in zip(answers, weights, strict=True)])
    sums = _subsets(len(samples), k) @ table  # (subsets, answers)
    most = sums.max(axis=1, keepdims=True)
    top = (sums >= most * (1 - 1e-12)) & (sums > 0)
    right = np.array([name == _RIGHT for name in names])
    return float(((top & right).sum(axis=1) / np.maximum(top.sum(axis=1), 1)).mean())


def _answer(sample: Judged) -> str | None:
    """What a sample votes for; None: nothing. Right answers are one."""
    if sample.correct:
        return _RIGHT
    answer = sample.wrong_answer
    return None if answer is None else f"wrong: {sample.vote or answer}"


def _subsets(n: int, k: int) -> Array:
    """(subsets, n) 0 or 1: k of n each."""
    if math.comb(n, k) <= _MAX_SUBSETS:
        chosen = np.array(list(itertools.combinations(range(n), k)))
    else:
        rng = np.random.default_rng((n, k))
        chosen = np.argsort(rng.random((_MAX_SUBSETS, n)), axis=1)[:, :k]
    table = np.zeros((len(chosen), n))
    np.put_along_axis(table, chosen, 1.0, axis=1)
    return table


def pair_share(samples: Sequence[Judged], scores: Sequence[float]) -> float | None:
    """Share of pairs of a right and a wrong sample that are ranked right, equal scores half; None: none."""
    right = np.array([v for s, v in zip(samples, scores, strict=True) if s.correct])
    wrong = np.array([v for s, v in zip(samples, scores, strict=True) if not s.correct])
    if not len(right) or not len(wrong):
        return None
    gaps = right[:, None] - wrong[None, :]
    return float((gaps > 0).mean() + 0.5 * (gaps == 0).mean())
