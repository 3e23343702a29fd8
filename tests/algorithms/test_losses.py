"""Ratios, surrogates, KL estimators, aggregation: by hand, and the knee."""

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from mathrl.algorithms.losses import (
    AGGREGATIONS,
    CLIPPED,
    KL_ESTIMATORS,
    RATIOS,
    SURROGATES,
    Totals,
    exp_with_knee,
    kl_k3,
    truncated_weights,
    value_loss,
)

F64 = torch.float64


def numbers(*values):
    return tensor(values, dtype=F64)


# --- by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "slope"),
    [
        (1.5, 1.0, 1.2, 0.0),  # clipped: no more reward for going further
        (1.5, -1.0, -1.5, -1.5),  # wrong direction: never clipped
        (0.5, 1.0, 0.5, 0.5),
        (0.5, -1.0, -0.8, 0.0),
        (1.1, 2.0, 2.2, 2.2),
        (1.0, -3.0, -3.0, -3.0),
    ],
)
def test_clip_by_hand(ratio, advantage, expected, slope):
    """clip 0.2; the slope is d objective / d logprob = ratio · A where not clipped."""
    log_ratio = numbers(math.log(ratio)).requires_grad_()
    value = SURROGATES["clip"](log_ratio, log_ratio, numbers(advantage), 0.2, 0.2)
    (got,) = torch.autograd.grad(value.sum(), log_ratio)
    assert_close(value.detach(), numbers(expected))
    assert_close(got, numbers(slope))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # ratio       0.7 0.75 0.9 1.1 1.25 1.3  with advantage 1, then with -1
        ("clip", ([0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0])),
        ("weighted_logprob", ([1, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1])),
        ("none", ([0] * 6, [0] * 6)),
    ],
)
def test_what_the_clip_changed_by_hand(name, expected):
    """Bounds 0.8 and 1.28: clipped tokens are those where the surrogate differs from the unclipped one."""
    log_ratio = numbers(0.7, 0.75, 0.9, 1.1, 1.25, 1.3).log()
    wide = (1.0 - 1e-9, 1e9)
    for advantage, wanted in zip((1.0, -1.0), expected, strict=True):
        advantages = torch.full_like(log_ratio, advantage)
        got = CLIPPED[name](log_ratio, advantages, 0.2, 0.28)
        assert got.tolist() == [bool(w) for w in wanted]
        values = [SURROGATES[name](log_ratio, -torch.ones(6), advantages, *b) for b in ((0.2, 0.28), wide)]
        assert got.tolist() == (values[0] != values[1]).tolist()


def test_clip_higher_lets_rare_tokens_grow_further():
    objective = SURROGATES["clip"](numbers(math.log(1.25)), numbers(0), numbers(1.0), 0.2, 0.28)
    assert_close(objective, numbers(1.25))


def test_weighted_logprob_by_hand():
    """Ratio 3 clipped to 2 times A = 0.5 times logprob -1.5; the clipped token keeps its gradient 2 · 0.5."""
    logprob = numbers(-1.5).requires_grad_()
    value = SURROGATES["weighted_logprob"](
        logprob - logprob.detach() + math.log(3), logprob, numbers(0.5), 1, 1
    )
    value.sum().backward()
    assert_close(value.detach(), numbers(-1.5))
    assert_close(logprob.grad, numbers(1.0))


@pytest.mark.parametrize(("name", "expected"), [("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 1.5)])
def test_kl_by_hand(name, expected):
    """log pi = -1.5, log pi_ref = -1: log-ratio ref/pi = 0.5."""
    assert_close(KL_ESTIMATORS[name](numbers(-1.5), numbers(-1.0), 10.0), numbers(expected))


def test_kl_estimators_average_to_the_kl():
    """E_pi[k1] = E_pi[k3] = KL(pi || ref), summed over a distribution of four tokens."""
    pi, ref = numbers(0.5, 0.2, 0.2, 0.1), numbers(0.1, 0.4, 0.3, 0.2)
    kl = (pi * (pi / ref).log()).sum()
    for name in ("k1", "k3"):
        assert_close((pi * KL_ESTIMATORS[name](pi.log(), ref.log(), 10.0)).sum(), kl)


def test_gradients_of_k2_and_k3_in_expectation():
    """Under pi, k2's mean gradient is that of KL(pi || ref); k1's own averages to 0."""
    logits = numbers(0.3, -0.4, 1.0).requires_grad_()
    ref = numbers(0.1, 0.2, 0.0).log_softmax(0)

    def mean_gradient(name):
        logprobs = logits.log_softmax(0)
        terms = KL_ESTIMATORS[name](logprobs, ref, 10.0)
        (gradient,) = torch.autograd.grad((logprobs.detach().exp() * terms).sum(), logits)
        return gradient

    logprobs = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), logits)
    assert_close(mean_gradient("k2"), exact)
    assert_close(mean_gradient("k1"), torch.zeros_like(exact), rtol=0, atol=1e-15)


def test_aggregations_by_hand():
    """Two completions of 1 and 3 tokens, all losses 1, limit 4."""
    mask = tensor([[1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    totals = Totals.of(mask)
    weights = {name: f(mask, totals, 4, F64) for name, f in AGGREGATIONS.items()}
    assert_close(weights["sequence_mean"], numbers(0.5, 0, 0, 1 / 6, 1 / 6, 1 / 6).view(2, 3))
    assert_close(weights["token_mean"], numbers(0.25, 0, 0, 0.25, 0.25, 0.25).view(2, 3))
    assert_close(weights["constant"], numbers(1 / 8, 0, 0, 1 / 8, 1 / 8, 1 / 8).view(2, 3))


def test_sequence_ratio_by_hand():
    """GSPO eq. 7: the geometric mean of the token ratios, at every token."""
    logprobs, old = numbers(-1, -2, 9).view(1, 3), numbers(-1.5, -2.3, 0).view(1, 3)
    mask = tensor([[True, True, False]])
    got = RATIOS["sequence"](logprobs, old, mask)
    assert_close(got, numbers(0.4, 0.4, 0).view(1, 3))


def test_value_loss_by_hand():
    """V_old 1, R 2, clip 0.2: V = 1.5 would be better, but only 1.2 counts: (0.8)²/2; moving away is free."""
    old, returns = numbers(1, 1), numbers(2, 2)
    assert_close(value_loss(numbers(1.5, 0.5), old, returns, 0.2), numbers(0.32, 1.125))


def test_truncated_weights_by_hand():
    gap = numbers(0, math.log(1.5), math.log(5), -1, 7).view(1, 5)
    mask = tensor([[True, True, True, True, False]])
    got = truncated_weights(gap, torch.zeros_like(gap), mask, 2.0)
    assert_close(got, numbers(1, 1.5, 2, math.exp(-1), 1).view(1, 5))


# --- the knee ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_k3_never_overflows_and_never_goes_silent(dtype):
    logprobs = tensor([-2.0, -12.1, -40.0, -100.0, -1e4], dtype=dtype, requires_grad=True)
    reference = torch.zeros_like(logprobs)
    value = kl_k3(logprobs, reference, 10.0)
    (slope,) = torch.autograd.grad(value.sum(), logprobs)
    assert value.isfinite().all()
    assert (value.diff() > 0).all()
    assert_close(slope[1:], torch.full((4,), 1 - math.exp(10), dtype=dtype))  # full pull at any distance


def test_a_clamp_at_10_kills_the_gradient_and_the_knee_does_not():
    """pi_ref / pi = e^4 = 54.6 > 13.6: exp(4) - 4 - 1 = 49.6 > 10."""
    logprob = numbers(-5.0).requires_grad_()
    naive = (torch.exp(-1 - logprob) - (-1 - logprob) - 1).clamp(max=10)
    (dead,) = torch.autograd.grad(naive.sum(), logprob)
    (alive,) = torch.autograd.grad(kl_k3(logprob, numbers(-1.0), 10.0).sum(), logprob)
    assert dead.item() == 0.0
    assert_close(alive, numbers(1 - math.exp(4)))


def test_exp_with_knee_is_smooth_at_the_knee():
    x = numbers(9.999999, 10.0, 10.000001).requires_grad_()
    value = exp_with_knee(x, 10.0)
    (slope,) = torch.autograd.grad(value.sum(), x)
    assert_close(slope / math.exp(10), numbers(1, 1, 1), rtol=2e-6, atol=0)
    assert_close(value[:2].detach(), x[:2].detach().exp(), rtol=1e-14, atol=0)


def test_k3_is_smooth_at_the_knee():
    reference = numbers(2.999999, 3.0, 3.000001)
    logprobs = torch.zeros_like(reference).requires_grad_()
    value = kl_k3(logprobs, reference, 3.0)
    (slope,) = torch.autograd.grad(value.sum(), logprobs)
    assert_close(slope / -math.expm1(3), numbers(1, 1, 1), rtol=2e-6, atol=0)
    assert_close(value[:2].detach(), reference[:2].expm1() - reference[:2], rtol=1e-14, atol=0)


def test_k3_is_accurate_for_small_log_ratios_in_float32():
    """exp(d) - d - 1 in float32 has no correct digit at d = 1e-4; expm1(d) - d keeps three."""
    d = 1e-4
    got = kl_k3(tensor([0.0]), tensor([d], dtype=torch.float32), 10.0).item()
    assert abs(got / (d * d / 2 + d**3 / 6) - 1) < 2e-3
