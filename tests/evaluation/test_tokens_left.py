"""How much of an evaluation is left, guessed from tokens while completions are still being written."""

import random

import pytest

from mathrl.evaluation.tokens_left import TokensLeft


def course(
    lengths: list[int], limit: int, at_once: int, tell_every: int = 5
) -> list[tuple[float, float | None]]:
    """(true share of the tokens, guessed share) after each token of an engine that samples side by side."""
    left, waiting, total = TokensLeft(len(lengths), limit), list(lengths), sum(lengths)
    running: list[list[int]] = []
    shares, sampled, step = [], 0, 0
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append([waiting.pop(), 0])
        for row in running:
            row[1] += 1
        sampled += len(running)
        if step % tell_every == 0:
            left.under_way(sum(done for _, done in running))
        ended = [length for length, done in running if done == length]
        running = [row for row in running if row[0] != row[1]]
        for length in ended:
            left.finished(length)
        shares.append((sampled / total, left.share))
        step += 1
    return shares


def lengths_of(kind: str, num: int = 1000) -> list[int]:
    rng = random.Random(0)
    if kind == "equal":
        return [100] * num
    if kind == "skewed":
        return [min(max(10, round(rng.lognormvariate(5.7, 0.8))), 2048) for _ in range(num)]
    return [min(max(10, round(rng.gauss(200, 60))), 512) for _ in range(num)]


@pytest.mark.parametrize(
    ("kind", "at_once", "within"),
    [("equal", 100, 0.1), ("skewed", 100, 0.04), ("skewed", 1000, 0.2), ("bell", 100, 0.08)],
)
def test_the_share_is_near_the_truth_and_ends_at_one(kind, at_once, within):
    lengths = lengths_of(kind)
    shares = course(lengths, max(lengths), at_once)
    known = [(true, guess) for true, guess in shares if guess is not None and true > 0.15]
    assert max(abs(true - guess) for true, guess in known) <= within
    assert shares[-1] == (1.0, 1.0)


def test_short_completions_that_finish_first_are_no_measure_of_the_others():
    """All side by side, bell-shaped lengths: the guess is late, never early by more than a little."""
    shares = course(lengths_of("bell"), 512, 1000)
    known = [(true, guess) for true, guess in shares if guess is not None]
    assert all(guess <= true + 0.05 for true, guess in known)
    by_finished = 0.02  # of a thousand completions, when a third of the tokens are there
    assert next(guess for true, guess in known if true > 0.33) > 5 * by_finished


def test_nothing_is_guessed_before_anything_has_finished():
    left = TokensLeft(8, 100)
    left.under_way(40)
    assert (left.tokens, left.share) == (40, None)
    left.finished(10)
    assert left.tokens == 40
    assert left.share == pytest.approx(40 / (40 + 7 * 40))  # the next is expected after as many tokens
    left.under_way(390)
    assert left.share == pytest.approx(400 / (400 + 7 * 100)), "no completion goes beyond its limit"


def test_an_engine_that_tells_no_tokens_is_counted_by_what_has_finished():
    left = TokensLeft(10, 1000)
    for n in range(1, 11):
        left.finished(50)
        assert left.share == pytest.approx(n / 10)
