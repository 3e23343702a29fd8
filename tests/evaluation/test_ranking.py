"""Best-of-k and weighted majority against all subsets counted one by one, and their identities."""

import itertools
import math
import random

import numpy as np
import pytest

from mathrl.evaluation.ranking import (
    best_of_k,
    measure_ranking,
    pair_share,
    score_samples,
    weighted_majority,
)
from mathrl.evaluation.result import Evaluation, Judged, Record, votes_of
from mathrl.evaluation.statistics import maj_at_k
from mathrl.types import Problem

RIGHT, NONE = Judged("r", "correct", "1"), Judged("n", "no_answer", None)


def wrong(answer):
    return Judged(f"w{answer}", "wrong", answer)


SAMPLES = (RIGHT, wrong("2"), wrong("3"), RIGHT, NONE, wrong("2"), wrong("4"))
SCORES = np.array([0.3, 1.2, 0.3, -2.0, 0.9, 0.3, -0.4])


@pytest.mark.parametrize("k", range(1, 8))
def test_best_of_k_is_the_mean_over_all_subsets(k):
    right = np.array([s.correct for s in SAMPLES], dtype=float)
    chances = []
    for chosen in itertools.combinations(range(7), k):
        top = max(SCORES[i] for i in chosen)
        tied = [i for i in chosen if SCORES[i] == top]
        chances.append(sum(right[i] for i in tied) / len(tied))
    assert best_of_k(SCORES, right, k) == pytest.approx(sum(chances) / len(chances))


@pytest.mark.parametrize("k", range(1, 8))
def test_weighted_majority_is_the_mean_over_all_subsets(k):
    chances = []
    for chosen in itertools.combinations(range(7), k):
        weight: dict[str, float] = {}
        for i in chosen:
            if SAMPLES[i].outcome != "no_answer":
                answer = SAMPLES[i].extracted or ""
                weight[answer] = weight.get(answer, 0.0) + math.exp(SCORES[i])
        top = [a for a, w in weight.items() if math.isclose(w, max(weight.values()), rel_tol=1e-9)]
        chances.append(sum(a == "1" for a in top) / len(top) if top else 0.0)
    assert weighted_majority(SAMPLES, SCORES, k) == pytest.approx(sum(chances) / len(chances))


@pytest.mark.parametrize("k", range(1, 8))
def test_equal_scores_are_no_ranking(k):
    """Best-of-k is then one sample, and the weighted majority the plain one; a shift changes nothing."""
    equal, right = np.full(7, 2.5), np.array([s.correct for s in SAMPLES], dtype=float)
    assert best_of_k(equal, right, k) == pytest.approx(2 / 7)
    assert weighted_majority(SAMPLES, equal, k) == pytest.approx(maj_at_k(*votes_of(SAMPLES), k))
    assert weighted_majority(SAMPLES, SCORES + 700, k) == pytest.approx(weighted_majority(SAMPLES, SCORES, k))


def test_one_answer_in_other_words_is_one_vote():
    said = (RIGHT, Judged("a", "wrong", "1/2", vote="0.5"), Judged("b", "wrong", "0.5", vote="0.5"))
    assert weighted_majority(said, np.array([0.5, 0.0, 0.0]), 3) == 0.0
    apart = (RIGHT, wrong("2"), wrong("3"))
    assert weighted_majority(apart, np.array([0.5, 0.0, 0.0]), 3) == 1.0


def test_pairs_of_right_and_wrong():
    assert pair_share(SAMPLES, SCORES.tolist()) == pytest.approx((1 + 1 / 2 + 1 / 2) / 10)
    assert pair_share((RIGHT, RIGHT), [0.0, 1.0]) is None
    assert pair_share((NONE, wrong("2")), [0.0, 1.0]) is None


def evaluation(num=60, k=4):
    rng = random.Random(0)
    records = []
    for i in range(num):
        samples = tuple(RIGHT if rng.random() < 0.4 else wrong(str(rng.randint(2, 4))) for _ in range(k))
        records.append(Record(Problem(str(i), f"question {i}", "1"), samples[0], samples))
    return Evaluation("e", tuple(records), {})


def test_a_perfect_ranking_finds_what_can_be_found():
    found = evaluation()
    scores = [[float(s.correct) for s in r.samples] for r in found.records]
    ranking = measure_ranking(found, scores, "perfect")
    assert ranking.pair_accuracy.value == 1.0
    assert set(ranking.best_at_k) == {1, 2, 4}
    for k, estimate in ranking.best_at_k.items():
        assert estimate.value == pytest.approx(found.pass_at_k[k].value)
    assert ranking.tests["best@4 against mean@4"].ci95.low > 0
    assert found.mean_at_k is not None
    assert ranking.tests["best@4 against mean@4"].value == pytest.approx(
        found.pass_at_k[4].value - found.mean_at_k
    )
    backwards = measure_ranking(found, [[-s for s in own] for own in scores])
    assert backwards.pair_accuracy.value == 0.0
    assert backwards.tests["best@4 against maj@4"].ci95.high < 0


def test_samples_are_scored_once_each_text_and_told_in_order():
    found = evaluation(num=5)
    asked = []

    def score(problems, completions):
        asked.extend((p.id, c.text) for p, c in zip(problems, completions, strict=True))
        return [len(c.text) + int(p.id) for p, c in zip(problems, completions, strict=True)]

    scores = score_samples(found, score)
    assert len(asked) == len(set(asked)) < 20
    for record, own in zip(found.records, scores, strict=True):
        assert own == tuple(len(s.text) + int(record.problem.id) for s in record.samples)


def test_where_no_problem_is_mixed_there_is_no_pair_accuracy():
    records = (Record(Problem("1", "q", "1"), RIGHT, (RIGHT, RIGHT)),)
    ranking = measure_ranking(Evaluation("e", records, {}), [[0.0, 1.0]])
    assert ranking.num_mixed == 0
    assert ranking.to_dict()["pair_accuracy"]["value"] is None
