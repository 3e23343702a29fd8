"""Right against wrong, balanced: what length alone could tell is bounded, and no problem fills the set."""

import math
import random
from collections import Counter

import pytest

from mathrl.evaluation.result import Judged, Record
from mathrl.evaluation.verdict_pairs import length_bin, make_pairs
from mathrl.types import Problem


def records(num=80, seed=0):
    """Right answers are mostly long and wrong ones mostly short, as of a model that must work to be right."""
    rng = random.Random(seed)
    found = []
    for i in range(num):
        samples = []
        for j in range(8):
            right = rng.random() < (0.9 if i < 20 else 0.4)
            long = rng.random() < (0.8 if right else 0.2)
            tokens = rng.randint(20, 60) if long else rng.randint(3, 6)
            outcome = "correct" if right else rng.choice(["wrong", "wrong", "no_answer"])
            samples.append(Judged(f"{i} {j} {right}", outcome, None, "stop", tokens))
        found.append(Record(Problem(f"p{i}", f"question {i}", "1"), samples[0], tuple(samples[1:])))
    return found


@pytest.mark.parametrize("ratio", [1.0, 2.0, math.inf])
def test_every_pair_is_right_against_wrong_of_one_problem(ratio):
    balance = make_pairs(records(), per_problem=5, length_ratio=ratio)
    known = {(r.problem.id, s.text): s.outcome for r in records() for s in (r.greedy, *r.samples)}
    assert len(balance.pairs) > 60
    for pair in balance.pairs:
        assert known[pair.problem.id, pair.right.text] == "correct"
        assert known[pair.problem.id, pair.wrong.text] in ("wrong", "no_answer")
    assert len({(p.right.text, p.wrong.text) for p in balance.pairs}) == len(balance.pairs)
    assert max(Counter(p.problem.id for p in balance.pairs).values()) <= 5


def test_at_ratio_one_no_rule_of_length_beats_a_coin():
    """Any rule from the bins of two lengths, for to each pair of bins there are as many pairs reversed."""
    balance = make_pairs(records(), per_problem=6, length_ratio=1.0)
    cells = Counter(pair.cell for pair in balance.pairs)
    assert all(cells[i, j] == cells[j, i] for i, j in cells)
    assert balance.ranked_by_length == 0.5
    rule = {b: random.Random(b).random() for b in range(30)}
    won = sum((rule[p.cell[0]] > rule[p.cell[1]]) + 0.5 * (p.cell[0] == p.cell[1]) for p in balance.pairs)
    assert won == len(balance.pairs) / 2
    longer, shorter, equal = make_pairs(records(), per_problem=6, length_ratio=math.inf).longer
    assert longer > 2 * (shorter + equal)  # as it happens, length would tell


@pytest.mark.parametrize("ratio", [1.5, 3.0])
def test_a_ratio_bounds_what_length_tells(ratio):
    cells = Counter(p.cell for p in make_pairs(records(), per_problem=6, length_ratio=ratio).pairs)
    apart = {c: n for c, n in cells.items() if c[0] != c[1]}
    assert all(n <= ratio * cells[j, i] for (i, j), n in apart.items())
    best = sum(max(n, cells[j, i]) for (i, j), n in apart.items()) / 2
    assert best / sum(apart.values()) <= ratio / (ratio + 1)


def test_answers_share_the_pairs_of_a_problem():
    """Six pairs of 3 right and 4 wrong answers: none is used much more than others."""
    judged = [Judged(f"r{i}", "correct", "1", "stop", 10) for i in range(3)]
    judged += [Judged(f"w{i}", "wrong", "2", "stop", 10) for i in range(4)]
    record = Record(Problem("p", "q", "1"), judged[0], tuple(judged[1:]))
    balance = make_pairs([record], per_problem=6, length_ratio=1.0)
    assert (len(balance.pairs), balance.num_candidates) == (6, 12)
    assert set(Counter(p.right.text for p in balance.pairs).values()) == {2}
    assert set(Counter(p.wrong.text for p in balance.pairs).values()) <= {1, 2}


def test_what_the_verifier_does_not_know_is_no_side_and_equal_texts_are_one():
    right = Judged("same", "correct", "1", "stop", 4)
    unsure = [Judged(f"u{o}", o, None, "stop", 4) for o in ("timeout", "error")]
    empty = Judged(" ", "no_answer", None, "stop", 1)
    record = Record(Problem("p", "q", "1"), right, (right, *unsure, empty))
    assert make_pairs([record], per_problem=4, length_ratio=math.inf).pairs == ()
    record = Record(Problem("p", "q", "1"), right, (right, Judged("w", "wrong", "2", "stop", 4)))
    assert len(make_pairs([record], per_problem=4, length_ratio=math.inf).pairs) == 1


def test_a_seed_decides_which_pairs():
    first = make_pairs(records(), per_problem=2, length_ratio=2.0, seed=1)
    assert make_pairs(records(), per_problem=2, length_ratio=2.0, seed=1) == first
    assert make_pairs(records(), per_problem=2, length_ratio=2.0, seed=2).pairs != first.pairs


def test_a_row_asks_as_the_answers_were_asked():
    right, wrong = Judged("a", "correct", "A", "stop", 2), Judged("b", "wrong", "B", "stop", 3)
    record = Record(Problem("p", "Which?", "A", options=("one", "two")), right, (wrong,))
    (pair,) = make_pairs([record], per_problem=1, length_ratio=math.inf).pairs
    assert pair.to_row() == {
        "problem_id": "p", "question": "Which?\nA) one\nB) two", "chosen": "a", "rejected": "b",
        "chosen_tokens": 2, "rejected_tokens": 3,
    }  # fmt: skip


def test_bins_hold_lengths_within_a_quarter_of_each_other():
    for tokens in range(1, 3000):
        assert length_bin(tokens) <= length_bin(tokens + 1)
        assert length_bin(math.ceil(1.25 * tokens) + 1) > length_bin(tokens)
