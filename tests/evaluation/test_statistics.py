"""Statistics against closed forms, enumeration, simulation, scipy and statsmodels."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from mathrl.evaluation import statistics as S


@pytest.mark.parametrize(("x", "n"), [(0, 5), (1, 1), (5, 5), (37, 100), (702, 1319), (1134, 1319), (3, 7)])
def test_wilson_agrees_with_statsmodels(x: int, n: int) -> None:
    assert S.wilson_interval(x, n) == pytest.approx(proportion_confint(x, n, method="wilson"), abs=1e-12)
    assert S.wilson_interval(x, n, 0.9) == pytest.approx(
        proportion_confint(x, n, alpha=0.1, method="wilson"), abs=1e-12
    )


def test_wilson_at_the_edges() -> None:
    z2 = 1.959963984540054**2
    assert S.wilson_interval(0, 10) == pytest.approx((0.0, z2 / (10 + z2)), abs=1e-12)  # closed form at 0
    assert S.wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="must lie in"):
        S.wilson_interval(6, 5)


def _mode_is_right(votes: tuple[str, ...]) -> float:
    """Chance that a fair draw among the most frequent answers is "right"; "" is an abstention."""
    given = [v for v in votes if v]
    if not given:
        return 0.0
    most = max(given.count(v) for v in set(given))
    best = {v for v in set(given) if given.count(v) == most}
    return ("right" in best) / len(best)


def _subsets(samples: list[str], k: int) -> list[tuple[str, ...]]:
    return list(itertools.combinations(samples, k))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["right", "a", "b", "c", ""]), min_size=1, max_size=8), st.data())
def test_pass_and_maj_equal_enumeration_of_all_subsets(samples: list[str], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(samples)))
    subsets = _subsets(samples, k)
    correct, abstained = samples.count("right"), samples.count("")
    passed = sum("right" in s for s in subsets) / len(subsets)
    majority = sum(map(_mode_is_right, subsets)) / len(subsets)
    assert float(S.pass_at_k(len(samples), correct, k)) == pytest.approx(passed, abs=1e-12)
    wrong = [samples.count(w) for w in "abc"]
    assert S.maj_at_k(correct, wrong, abstained, k) == pytest.approx(majority, abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples() -> None:
    n, c, k = 10_000, 3, 5_000
    exact = 1 - math.prod((n - k - i) / (n - i) for i in range(c))
    assert float(S.pass_at_k(n, c, k)) == pytest.approx(exact, rel=1e-9)
    # one right sample among a million: k/n, where 1 - C(n-1,k)/C(n,k) in floats would overflow
    assert float(S.pass_at_k(1_000_000, 1, 7)) == pytest.approx(7e-6, rel=1e-4)
    np.testing.assert_allclose(S.pass_at_k([8, 8, 8], [0, 3, 8], 1), [0.0, 3 / 8, 1.0], atol=1e-13)
    with pytest.raises(ValueError, match="1 <= k <= n"):
        S.pass_at_k([8, 4], [1, 1], 5)


def test_maj_at_k_by_hand_and_at_size() -> None:
    assert S.maj_at_k(2, [2], 0, 4) == pytest.approx(0.5)  # a tie is shared
    assert S.maj_at_k(2, [1, 1], 0, 4) == pytest.approx(1.0)
    assert S.maj_at_k(0, [1], 3, 4) == 0.0
    assert S.maj_at_k(1, [], 63, 64) == pytest.approx(1.0)  # abstentions have no vote
    rng = np.random.default_rng(0)
    samples = np.array(["right"] * 20 + ["a"] * 22 + ["b"] * 10 + [""] * 12)
    draws = [_mode_is_right(tuple(rng.permutation(samples)[:16])) for _ in range(4000)]
    assert S.maj_at_k(20, [22, 10], 12, 16) == pytest.approx(
        np.mean(draws), abs=4 * np.std(draws) / 4000**0.5
    )


def test_bootstrap_interval_of_a_mean_matches_its_normal_limit() -> None:
    rng = np.random.default_rng(1)
    values = rng.beta(0.4, 0.6, size=(2000, 2))
    for column, (low, high) in zip(values.T, S.cluster_bootstrap(values, seed=3), strict=True):
        half = 1.96 * column.std() / len(column) ** 0.5
        assert (low, high) == pytest.approx((column.mean() - half, column.mean() + half), abs=0.04 * half)
    assert S.cluster_bootstrap(values, seed=3) == S.cluster_bootstrap(values, seed=3)


def test_bootstrap_counts_problems_not_samples() -> None:
    """Eight copies of a problem's verdict add nothing: the interval is that of the problems."""
    right = np.arange(400) % 4 == 0
    (clustered,) = S.cluster_bootstrap(right[:, None].astype(float))
    wilson = S.wilson_interval(100, 400)
    assert clustered.high - clustered.low == pytest.approx(wilson.high - wilson.low, rel=0.05)


def test_bootstrap_does_not_claim_certainty() -> None:
    assert S.cluster_bootstrap(np.zeros((50, 1))) == [S.wilson_interval(0, 50)]
    assert S.cluster_bootstrap(np.ones((50, 1))) == [S.wilson_interval(50, 50)]


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (12, 3), (3, 12), (40, 40), (200, 150), (1, 0)])
def test_mcnemar_agrees_with_statsmodels(b: int, c: int) -> None:
    expected = mcnemar([[10, c], [b, 10]], exact=True).pvalue if b + c else 1.0
    assert S.mcnemar_exact(b, c) == pytest.approx(min(1.0, expected), abs=1e-12)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.25), (0.75, 0.5), (0.25, 0.25)])
def test_paired_interval_without_correlation_is_the_independent_one(p: float, q: float) -> None:
    n = 160
    cells = [round(n * p * q), round(n * p * (1 - q)), round(n * (1 - p) * q), round(n * (1 - p) * (1 - q))]
    assert sum(cells) == n
    expected = confint_proportions_2indep(n * p, n, n * q, n, compare="diff", method="newcomb")
    assert S.paired_interval(*cells) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("both", "right", "wrong"), [(0.3, 0.15, 0.05), (0.85, 0.05, 0.04), (0.1, 0.4, 0.01)]
)
def test_paired_interval_covers_the_truth(both: float, right: float, wrong: float) -> None:
    rng = np.random.default_rng(7)
    cells = rng.multinomial(200, [both, right, wrong, 1 - both - right - wrong], size=4000)
    intervals = np.array([S.paired_interval(*row) for row in cells])
    covered = np.mean((intervals[:, 0] <= right - wrong) & (right - wrong <= intervals[:, 1]))
    assert 0.935 <= covered <= 0.975


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998, table II; phi < 0
        (
            (1, 1, 7, 12),
            -0.507,
            -0.026,
        ),  # airway responsiveness, in Fagerland, Lydersen & Laake 2014; phi > 0
    ],
)
def test_paired_interval_as_published(cells: tuple[int, ...], low: float, high: float) -> None:
    interval = S.paired_interval(*cells)
    assert interval.low == pytest.approx(low, abs=6e-4 if abs(low) > 0.4 else 6e-5)
    assert interval.high == pytest.approx(high, abs=6e-4 if low < 0 else 6e-5)


@pytest.mark.parametrize(
    ("both", "right", "wrong", "neither"),
    [
        (50, 30, 8, 12),
        (3, 20, 15, 4),
        (400, 31, 12, 300),
        (10, 2, 1, 11),
        (0, 5, 0, 0),
        (5, 0, 0, 5),
        (9, 1, 1, 9),
    ],
)
def test_paired_interval_from_the_paper_and_wilson_of_statsmodels(
    both: int, right: int, wrong: int, neither: int
) -> None:
    """Method 10 written out: Wilson's distances of the margins, and phi with its continuity correction."""
    n = both + right + wrong + neither
    margins = (both + right, both + wrong)
    (l2, u2), (l3, u3) = (proportion_confint(x, n, method="wilson") for x in margins)
    p2, p3 = (x / n for x in margins)
    a = (both + right) * (wrong + neither) * (both + wrong) * (right + neither)
    b = both * neither - right * wrong
    c = b - n / 2 if b > n / 2 else 0.0 if b >= 0 else b
    phi = c / math.sqrt(a) if a else 0.0
    below = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u3 - p3) + (u3 - p3) ** 2
    above = (u2 - p2) ** 2 - 2 * phi * (u2 - p2) * (p3 - l3) + (p3 - l3) ** 2
    expected = (p2 - p3 - math.sqrt(below), p2 - p3 + math.sqrt(above))
    assert S.paired_interval(both, right, wrong, neither) == pytest.approx(
        (max(expected[0], -1.0), min(expected[1], 1.0)), abs=1e-12
    )


def test_paired_interval_swaps_sign_with_the_runs() -> None:
    low, high = S.paired_interval(50, 30, 8, 12)
    assert S.paired_interval(50, 8, 30, 12) == pytest.approx((-high, -low), abs=1e-12)


def test_paired_proportions_from_verdicts() -> None:
    before = [True] * 40 + [False] * 60
    after = [True] * 36 + [False] * 4 + [True] * 20 + [False] * 40
    test = S.paired_proportions(before, after)
    assert test.value == pytest.approx(0.16)
    assert test.p_value == pytest.approx(stats.binomtest(4, 24, 0.5).pvalue, abs=1e-12)
    assert test.ci95 == S.paired_interval(36, 20, 4, 40)
    assert S.paired_proportions(before, before).p_value == 1.0
    with pytest.raises(ValueError, match="same problems"):
        S.paired_proportions(before, after[:-1])


def test_paired_bootstrap_matches_the_paired_t_test_on_many_problems() -> None:
    rng = np.random.default_rng(5)
    before = rng.binomial(8, 0.4, size=1500) / 8
    after = np.clip(before + rng.normal(0.01, 0.2, size=1500), 0, 1)
    ours, theirs = S.paired_bootstrap(before, after, resamples=40_000), stats.ttest_rel(after, before)
    assert ours.value == pytest.approx((after - before).mean())
    interval = theirs.confidence_interval(0.95)
    assert ours.ci95 == pytest.approx((interval.low, interval.high), abs=4e-4)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.01)


def test_paired_bootstrap_is_not_fooled_by_equal_or_certain_runs() -> None:
    same = S.paired_bootstrap([0.5] * 20, [0.5] * 20)
    assert same.p_value == 1.0
    assert same.ci95.low < 0 < same.ci95.high
    assert S.paired_bootstrap([0.0] * 20, [1.0] * 20, resamples=1000).p_value == pytest.approx(2 / 1001)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.9, 0.8, 0.02], []])
def test_holm_agrees_with_statsmodels(p_values: list[float]) -> None:
    expected = list(multipletests(p_values, method="holm")[1]) if p_values else []
    assert S.holm(p_values) == pytest.approx(expected, abs=1e-12)


def test_sample_size_gives_the_power_it_promises() -> None:
    gain, changed = 0.06, 0.2
    n = S.sample_size_paired(gain, changed, power=0.8)
    rng = np.random.default_rng(11)
    right, wrong = (changed + gain) / 2, (changed - gain) / 2
    cells = rng.multinomial(n, [right, wrong, 1 - changed], size=3000)
    power = np.mean([S.mcnemar_exact(int(b), int(c)) < 0.05 for b, c, _ in cells])
    assert power == pytest.approx(0.8, abs=0.04)  # the exact test is a little conservative
    assert S.sample_size_paired(gain, 0.1) < n < S.sample_size_paired(gain, 0.4)
    with pytest.raises(ValueError, match="gain"):
        S.sample_size_paired(0.3, 0.2)


@pytest.mark.parametrize(
    ("gain", "changed", "power", "alpha", "n"),
    [
        # by hand, z = 1.959964 and 0.841621: (1.959964 √0.3 + 0.841621 √0.29)² / 0.01 = 233.09
        (0.1, 0.3, 0.8, 0.05, 234),
        # one way alone: (1.959964 √0.02 + 0.841621 √0.0196)² / 0.0004 = 390.1
        (0.02, 0.02, 0.8, 0.05, 391),
        # z = 2.575829 and 1.281552: (2.575829 √0.3 + 1.281552 √0.29)² / 0.01 = 441.5
        (0.1, 0.3, 0.9, 0.01, 442),
    ],
)
def test_sample_size_by_connors_formula(
    gain: float, changed: float, power: float, alpha: float, n: int
) -> None:
    assert S.sample_size_paired(gain, changed, power=power, alpha=alpha) == n
    z_alpha, z_power = stats.norm.ppf(1 - alpha / 2), stats.norm.ppf(power)
    root = z_alpha * math.sqrt(changed) + z_power * math.sqrt(changed - gain**2)
    assert math.ceil(root**2 / gain**2) == n
