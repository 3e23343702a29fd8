"""Statistics of evaluations: intervals, pass@k, maj@k, paired tests, sample sizes, several comparisons.

Problems are the units that were drawn; the n completions of one problem are a cluster and never counted as
independent draws. Everything here is a pure function of numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_RESAMPLES = 10_000
_MAX_VOTES = 1000  # C(n, k) still fits a float64
_CHUNK_CELLS = 4_000_000  # cells of a bootstrap chunk: 32 MB of counts


class Interval(NamedTuple):
    """A confidence interval; unpacks to (low, high)."""

    low: float
    high: float


class PairedTest(NamedTuple):
    """A paired difference after - before, its 95 % interval, and the two-sided p-value of "no difference"."""

    value: float
    ci95: Interval
    p_value: float


@functools.cache
def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = ``probability`` for a standard normal Z."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927), without continuity correction.

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n). Never leaves [0, 1], and is not a single point at
    0 or n successes. ``n`` 0 says nothing: (0, 1).

    Raises:
        ValueError: successes outside [0, n].
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in [0, {n}], got {successes}")
    if n == 0:
        return Interval(0.0, 1.0)
    from scipy.stats import binomtest  # takes a second: those who only print help do without

    found = binomtest(int(successes), n).proportion_ci(confidence, method="wilson")
    return Interval(float(found.low), float(found.high))


def pass_at_k(n: ArrayLike, correct: ArrayLike, k: int) -> Array:
    """Unbiased chance that at least one of k samples is right, from ``correct`` right ones among n.

    1 - C(n-c, k) / C(n, k), eq. 1 of Chen et al. (arXiv:2107.03374), in logarithms of gamma functions so that
    large binomials neither overflow nor cancel. With k = 1 it is c / n.

    Args:
        n, correct: any equal shapes, counts a problem.

    Returns:
        float64 of that shape, in [0, 1].

    Raises:
        ValueError: k outside [1, n], or correct outside [0, n].
    """
    from scipy.special import gammaln

    total, right = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(correct, dtype=np.float64))
    if total.size and not (1 <= k <= total.min()):
        raise ValueError(f"pass@k needs 1 <= k <= n = {int(total.min())}, got k = {k}")
    if np.any(right < 0) or np.any(right > total):
        raise ValueError("the number of correct samples must lie in [0, n]")
    wrong = total - right
    log_none = np.where(
        wrong >= k,
        gammaln(wrong + 1)
        - gammaln(np.maximum(wrong - k, 0) + 1)
        - gammaln(total + 1)
        + gammaln(total - k + 1),
        -np.inf,
    )
    return np.where(right == 0, 0.0, -np.expm1(np.minimum(log_none, 0.0)))


def maj_at_k(correct: int, wrong: Sequence[int], abstained: int, k: int) -> float:
    """Exact chance that the most frequent answer of k of the n samples is right (arXiv:2203.11171).

    The expectation over all subsets of k samples, and over a fair draw among answers that tie for the most
    votes: unbiased as pass@k is, and free of simulation noise. Samples without an answer have no vote; a
    subset without any vote is wrong. With k = 1 it is correct / n.

    Args:
        correct: samples that gave the right answer.
        wrong: samples of each distinct wrong answer.
        abstained: samples that gave no answer.
        k: votes; 1 <= k <= n = correct + sum(wrong) + abstained.
    """
    n = correct + sum(wrong) + abstained
    if not 1 <= k <= n <= _MAX_VOTES:
        raise ValueError(f"maj@k needs 1 <= k <= n <= {_MAX_VOTES}, got k = {k} and n = {n}")
    if min(correct, abstained, *wrong, 0) < 0:
        raise ValueError("counts must be >= 0")
    chance = 0.0
    for votes in range(1, min(correct, k) + 1):  # of the right answer, and no other has more
        rest = k - votes
        # answers too rare to tie are told apart no more than abstentions are
        free = abstained + sum(count for count in wrong if count < votes)
        tied = np.zeros(
            (rest // votes + 1, rest + 1)
        )  # [s, r]: ways to fill r places with s answers that tie
        tied[0] = _binomials(free, rest)
        for count in wrong:
            if count >= votes:
                tied = _add_answer(tied, _binomials(count, min(votes, rest)), votes)
        shared = float((tied[:, rest] / np.arange(1, len(tied) + 1)).sum())
        chance += math.comb(correct, votes) * shared / math.comb(n, k)
    return min(chance, 1.0)


def _binomials(count: int, most: int) -> Array:
    """(most + 1,) C(count, 0) … C(count, most)."""
    return np.array([math.comb(count, taken) for taken in range(most + 1)], dtype=np.float64)


def _add_answer(tied: Array, ways: Array, votes: int) -> Array:
    """One more wrong answer, given 0 … ``votes`` places; all terms are >= 0, so nothing cancels."""
    added = np.zeros_like(tied)
    width = tied.shape[1]
    for given, choices in enumerate(ways):
        if given < votes:
            added[:, given:] += choices * tied[:, : width - given]
        else:
            added[1:, given:] += choices * tied[:-1, : width - given]
    return added


def cluster_bootstrap(
    values: ArrayLike, *, confidence: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Percentile interval of the mean over problems (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: (n, m) one row a problem, one column a measure; the columns share the resamples.
        seed: equal seeds give equal intervals.

    Returns:
        m intervals. A column that is 0 (or 1) for every problem cannot be resampled into anything else, which
        would claim certainty: it gets the Wilson interval of n problems.
    """
    table = np.asarray(values, dtype=np.float64)
    n, _ = table.shape
    if n == 0:
        return [Interval(0.0, 1.0)] * table.shape[1]
    means = _resampled_means(table, resamples, seed)
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(means, [tail, 1 - tail], axis=0)
    intervals = []
    for column, low, high in zip(table.T, lows, highs, strict=True):
        if np.all(column == column[0]) and column[0] in (0.0, 1.0):
            intervals.append(wilson_interval(int(column.sum()), n, confidence))
        else:
            intervals.append(Interval(float(low), float(high)))
    return intervals


def _resampled_means(table: Array, resamples: int, seed: int) -> Array:
    """(resamples, m) means of rows drawn with replacement; counts in chunks, so memory stays bounded."""
    n = len(table)
    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // n)
    means = []
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + np.arange(rows)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        means.append(counts @ table / n)
    return np.concatenate(means)


def mcnemar_exact(newly_right: int, newly_wrong: int) -> float:
    """Two-sided exact p-value of McNemar's test: only problems whose verdict changed say anything.

    Under "no difference" the newly right are Binomial(newly_right + newly_wrong, 1/2).
    """
    changed = newly_right + newly_wrong
    if changed == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(newly_right, changed, 0.5).pvalue)


def paired_interval(
    both: int, newly_right: int, newly_wrong: int, neither: int, confidence: float = 0.95
) -> Interval:
    """Interval of the difference of two paired proportions.

    Hybrid score interval, method 10 of Newcombe 1998 (Statistics in Medicine 17). Each margin's Wilson
    distances are combined with the correlation phi of the pairs; with phi 0 it is the hybrid score interval
    of two independent proportions. It can miss 0 where the exact McNemar p is a little above 0.05, and the
    other way round, for the two answer by different routes.

    Args:
        both, newly_right, newly_wrong, neither: problems right twice, only after, only before, never.
    """
    n = both + newly_right + newly_wrong + neither
    if n == 0:
        return Interval(-1.0, 1.0)
    after, before = both + newly_right, both + newly_wrong
    p, q = after / n, before / n
    p_low, p_high = wilson_interval(after, n, confidence)
    q_low, q_high = wilson_interval(before, n, confidence)
    margins = math.sqrt(after * (n - after) * before * (n - before))
    cross = float(both * neither - newly_right * newly_wrong)
    if cross > 0:  # Newcombe's continuity-corrected phi, so that few changes do not look like none
        cross = max(cross - n / 2, 0.0)
    phi = cross / margins if margins else 0.0

    def distance(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    value = p - q
    low = value - distance(p - p_low, q_high - q)
    high = value + distance(p_high - p, q - q_low)
    return Interval(max(low, -1.0), min(high, 1.0))


def paired_proportions(before: ArrayLike, after: ArrayLike) -> PairedTest:
    """Greedy accuracy of two runs on the same problems: exact McNemar p, Newcombe's paired interval.

    Args:
        before, after: (n,) bool, the same problem at the same place.
    """
    old, new = np.asarray(before, dtype=bool), np.asarray(after, dtype=bool)
    _same_length(old, new)
    right, wrong = int((new & ~old).sum()), int((old & ~new).sum())
    both, neither = int((new & old).sum()), int((~new & ~old).sum())
    value = (right - wrong) / len(new) if len(new) else 0.0
    return PairedTest(value, paired_interval(both, right, wrong, neither), mcnemar_exact(right, wrong))


def paired_bootstrap(
    before: ArrayLike, after: ArrayLike, *, resamples: int = _RESAMPLES, seed: int = 0
) -> PairedTest:
    """Difference of two means over the same problems: percentile interval and p from resampled problems.

    p is twice the smaller share of resampled differences at or beyond 0, with one added to each count, so
    it is never below 2 / (resamples + 1). Where no problem differs, p = 1.

    Args:
        before, after: (n,) per-problem values, for example the share of right samples (avg@k).
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    _same_length(old, new)
    difference = new - old
    value = float(difference.mean()) if len(difference) else 0.0
    if not np.any(difference):
        half = wilson_interval(0, len(difference)).high if len(difference) else 1.0
        return PairedTest(value, Interval(-half, half), 1.0)
    means = _resampled_means(difference[:, None], resamples, seed)[:, 0]
    low, high = np.quantile(means, [0.025, 0.975])
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return PairedTest(
        value, Interval(float(low), float(high)), min(1.0, 2.0 * (beyond + 1) / (resamples + 1))
    )


def _same_length(before: NDArray[np.generic], after: NDArray[np.generic]) -> None:
    if before.shape != after.shape or before.ndim != 1:
        raise ValueError(f"paired values need the same problems, got shapes {before.shape} and {after.shape}")


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): below alpha together they keep the family's error below alpha."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def sample_size_paired(gain: float, changed: float, *, power: float = 0.8, alpha: float = 0.05) -> int:
    """Problems needed for McNemar's test to see ``gain`` (Connor 1987, Biometrics 43, eq. 1).

    n = (z_{1-α/2}·sqrt(d) + z_power·sqrt(d - gain²))² / gain²

    Args:
        gain: difference of the accuracies, in (0, 1].
        changed: d, share of problems whose verdict differs between the runs; gain <= d <= 1. The smaller it
            is, the fewer problems are needed; two runs that are independent have p(1-q) + q(1-p).
    """
    if not 0 < gain <= changed <= 1:
        raise ValueError(f"need 0 < gain <= changed <= 1, got gain {gain} and changed {changed}")
    z_alpha, z_power = normal_quantile(1 - alpha / 2), normal_quantile(power)
    root = z_alpha * math.sqrt(changed) + z_power * math.sqrt(max(changed - gain * gain, 0.0))
    return math.ceil((root / gain) ** 2)
