"""Tokens as they are drawn: exact support and frequencies, ties, tails, a completion's own noise."""

import math
from collections import Counter

import pytest
import scipy.stats
import torch
from frequencies import chi_square_p

from mathrl.rollout.sampling import draw, keep_likeliest, uniforms
from mathrl.types import Sampling


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(), 6),
        (Sampling(temperature=0.5), 6),
        (Sampling(top_k=3), 3),
        (Sampling(top_p=0.75), 3),  # 0.40 + 0.25 < 0.75 <= 0.40 + 0.25 + 0.15
        (Sampling(top_k=4, top_p=0.9), 4),  # of 0.90 left: 0.444 + 0.278 + 0.167 < 0.9
        (Sampling(top_p=0.01), 1),
    ],
)
def test_truncated_sampling_has_the_exact_support_and_frequencies(sampling, support):
    probabilities = torch.tensor([0.10, 0.40, 0.06, 0.25, 0.04, 0.15], dtype=torch.float64)
    n = 20_000
    logits = (probabilities.log() + 3.0).float().expand(n, -1)
    tokens, logprobs = draw(logits, sampling, torch.arange(n), step=3)
    exact = probabilities ** (1 / sampling.temperature)
    exact[exact.argsort(descending=True)[support:]] = 0
    exact /= exact.sum()
    counts = Counter(tokens.tolist())
    assert set(counts) == set(exact.nonzero()[:, 0].tolist())
    assert chi_square_p(counts, exact) > 0.01 or support == 1
    torch.testing.assert_close(logprobs.double(), exact[tokens].log(), atol=1e-5, rtol=0)


def test_draw_splits_a_large_vocabulary_into_blocks(monkeypatch):
    logits, seeds = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)), torch.arange(7)
    whole = draw(logits, Sampling(top_p=0.9), seeds, 2)
    monkeypatch.setattr("mathrl.rollout.sampling._BLOCK_ELEMENTS", 100)
    for a, b in zip(whole, draw(logits, Sampling(top_p=0.9), seeds, 2), strict=True):
        assert torch.equal(a, b)


def test_the_tail_of_a_large_vocabulary_is_drawn_token_by_token(monkeypatch):
    """Half a percent over 2¹⁸ tokens, 2e-8 each: where a float32 sum stands still for three."""
    size, head, count = 1 << 18, 0.995, 12
    share = (1 - head) / (size - 1)
    logits = torch.full((1, size), share, dtype=torch.float64)
    logits[0, 0] = head
    noise = head + share * (1000.5 + torch.arange(count, dtype=torch.float64))  # the middle of each
    monkeypatch.setattr("mathrl.rollout.sampling.uniforms", lambda seeds, step: noise)
    tokens, logprobs = draw(logits.log().float().expand(count, -1), Sampling(), torch.arange(count), 0)
    assert torch.equal(tokens.diff(), torch.ones(count - 1, dtype=torch.long))
    assert abs(int(tokens[0]) - 1001) <= 1
    torch.testing.assert_close(logprobs, torch.full((count,), math.log(share)), atol=1e-3, rtol=0)


def test_draw_never_takes_a_token_of_probability_zero(monkeypatch):
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).expand(3, -1)
    noise = torch.tensor([0.0, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    monkeypatch.setattr("mathrl.rollout.sampling.uniforms", lambda seeds, step: noise)
    assert draw(logits, Sampling(), torch.arange(3), 0)[0].tolist() == [1, 3, 3]


def test_uniforms_are_splitmix64():
    """The reference generator's outputs for seed 1234567, as published with its C code."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    ours = [uniforms(torch.tensor([1234567]), step).item() for step in range(4)]
    assert ours == [(value >> 11) * 2.0**-53 for value in published]
    many = torch.cat([uniforms(torch.arange(2000) * 7 - 500, step) for step in range(10)])
    assert scipy.stats.kstest(many.numpy(), "uniform").pvalue > 0.01


def test_ties_at_the_kth_score_stay():
    kept = keep_likeliest(torch.tensor([[1.0, 3.0, 1.0, 0.0]]), top_k=2, top_p=1.0)
    assert kept.tolist() == [[1.0, 3.0, 1.0, -math.inf]]
