"""Advantages: hand-worked numbers, an independent reference, identities, extremes."""

import math
from fractions import Fraction
from statistics import mean, pvariance

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor
from torch.testing import assert_close

from mathrl.algorithms.advantages import (
    COMPLETION_ADVANTAGES,
    STD_EPS,
    at_tokens,
    batch_centre,
    batch_norm,
    gae,
    group_centre,
    group_norm,
    group_ratio,
    last_token,
    leave_one_out,
    overlong_penalty,
    whiten,
)

F64 = torch.float64


def numbers(*values):
    return tensor(values, dtype=F64)


def test_group_norm_of_two_binary_rewards_is_plus_and_minus_one():
    """G = 2, rewards 1 and 0: mean 1/2, population std 1/2 (the unbiased one would give ±0.7071)."""
    got = group_norm(numbers(1.0, 0.0), tensor([0, 0]))
    expected = 0.5 / (0.5 + STD_EPS)
    assert_close(got, numbers(expected, -expected), rtol=0, atol=1e-15)


def test_group_norm_by_hand():
    """Rewards 1 0 0 0: mean 1/4, std sqrt(3)/4: (√3, -1/√3, …)."""
    got = group_norm(numbers(1, 0, 0, 0), tensor([0, 0, 0, 0]))
    assert_close(got[0].item(), math.sqrt(3), rtol=1e-5, atol=0)
    assert_close(got[1].item(), -1 / math.sqrt(3), rtol=1e-5, atol=0)


def test_group_centre_and_leave_one_out_by_hand():
    rewards, groups = numbers(1, 0, 0, 3), tensor([0, 0, 0, 0])
    assert_close(group_centre(rewards, groups), numbers(0, -1, -1, 2))
    assert_close(leave_one_out(rewards, groups), numbers(0, -4 / 3, -4 / 3, 8 / 3))


def test_batch_baselines_by_hand():
    rewards, groups = numbers(1, 0, 0, 3), tensor([0, 0, 1, 1])
    assert_close(batch_centre(rewards, groups), numbers(0, -1, -1, 2))
    std = math.sqrt((0 + 1 + 1 + 4) / 4)
    assert_close(batch_norm(rewards, groups), numbers(0, -1, -1, 2) / (std + STD_EPS))


def test_group_ratio_averages_the_scores_of_the_right_completions():
    # MaxRL's estimator (arXiv:2602.02710): mean score of the K right completions, less the mean of all G
    rewards, groups = numbers(1, 0, 0, 1, 0, 0, 0, 0, 1, 1), tensor([0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    advantages = group_ratio(rewards, groups)
    assert_close(advantages, numbers(1.5, -1, -1, 1.5, -1, 0, 0, 0, 0, 0))
    scores = torch.randn(5, 3, dtype=torch.float64)
    estimate = (advantages[:5, None] * scores).mean(0)
    assert_close(estimate, scores[[0, 3]].mean(0) - scores.mean(0))
    assert_close(group_ratio(10 * rewards, groups), advantages)  # the reward's unit does not matter
    negative = group_ratio(numbers(-1, 1, -1), tensor([0, 0, 0]))
    assert_close(negative, numbers(0, 0, 0))  # nothing to make likelier


@pytest.mark.parametrize(
    "name", ["group_norm", "group_centre", "leave_one_out", "group_ratio", "batch_centre", "batch_norm"]
)
@pytest.mark.parametrize("reward", [0.0, 0.1, 51.344, -1e6, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exactly_zero(name, reward, dtype):
    """0.1 + 0.1 + 0.1 is not 3 · 0.1 in binary: without care the std would be 1e-17, not 0."""
    rewards = torch.full((7,), reward, dtype=dtype)
    got = COMPLETION_ADVANTAGES[name](rewards, torch.zeros(7, dtype=torch.long), lambda t: t)
    assert torch.equal(got, torch.zeros(7, dtype=dtype))


def test_leave_one_out_refuses_a_group_of_one():
    with pytest.raises(ValueError, match="at least 2 completions"):
        leave_one_out(numbers(1, 0, 1), tensor([0, 0, 1]))


def reference(name, rewards, groups):
    """In fractions: a mean of equal floats that is rounded need not be that float."""
    exact = [Fraction(reward) for reward in rewards]
    out = []
    for reward, g in zip(exact, groups, strict=True):
        own = [r for r, h in zip(exact, groups, strict=True) if h == g]
        out.append(
            {
                "group_norm": float(reward - mean(own)) / (math.sqrt(pvariance(own)) + STD_EPS),
                "group_centre": float(reward - mean(own)),
                "group_ratio": float(reward / mean(own) - 1) if mean(own) > 0 else 0.0,
                "leave_one_out": float(reward - (sum(own) - reward) / (len(own) - 1)),
                "batch_centre": float(reward - mean(exact)),
                "batch_norm": float(reward - mean(exact)) / (math.sqrt(pvariance(exact)) + STD_EPS),
                "reward": float(reward),
            }[name]
        )
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("name", list(COMPLETION_ADVANTAGES))
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_agrees_with_fractions_in_any_order_and_group_size(name, data):
    sizes = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    groups = [g for g, size in enumerate(sizes) for _ in range(size)]
    rewards = data.draw(
        st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=len(groups), max_size=len(groups))
    )
    order = data.draw(st.permutations(range(len(groups))))
    rewards, groups = [rewards[i] for i in order], [groups[i] for i in order]
    got = COMPLETION_ADVANTAGES[name](numbers(*rewards), tensor(groups), lambda t: t)
    assert_close(got, reference(name, rewards, groups), rtol=1e-9, atol=1e-9)


# --- GAE ------------------------------------------------------------------------------------------------


def test_gae_by_hand():
    """T = 3, reward 1 at the end, V = (0.5, 0.25, 0.75), gamma 0.9, lambda 0.8.

    delta = (0.9·0.25 - 0.5, 0.9·0.75 - 0.25, 1 - 0.75) = (-0.275, 0.425, 0.25);
    A_2 = 0.25, A_1 = 0.425 + 0.72·0.25 = 0.605, A_0 = -0.275 + 0.72·0.605 = 0.1606.
    """
    advantages, returns = gae(
        numbers(0, 0, 1)[None], numbers(0.5, 0.25, 0.75)[None], torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8
    )
    assert_close(advantages, numbers(0.1606, 0.605, 0.25)[None], rtol=0, atol=1e-15)
    assert_close(returns, numbers(0.6606, 0.855, 1.0)[None], rtol=0, atol=1e-15)


def test_value_target_of_a_prefix_k_tokens_before_the_end_is_gamma_to_the_k_times_r():
    """With lambda = 1, whatever the value model says now."""
    gamma, reward, length = 0.97, 2.5, 9
    values = torch.randn(1, length, dtype=F64, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, length, dtype=torch.bool)
    token_rewards = torch.where(last_token(mask), reward, 0.0).double()
    _, returns = gae(token_rewards, values, mask, gamma, 1.0)
    expected = [reward * gamma**k for k in range(length - 1, -1, -1)]
    assert_close(returns[0], numbers(*expected), rtol=1e-12, atol=1e-14)


def test_lambda_one_is_discounted_return_minus_value_and_lambda_zero_is_the_td_error():
    generator = torch.Generator().manual_seed(1)
    rewards, values = (torch.randn(3, 6, dtype=F64, generator=generator) for _ in range(2))
    mask = torch.arange(6)[None] < tensor([6, 4, 1])[:, None]
    gamma = 0.9
    advantages, _ = gae(rewards, values, mask, gamma, 1.0)
    td, _ = gae(rewards, values, mask, gamma, 0.0)
    for b, length in enumerate((6, 4, 1)):
        for t in range(length):
            discounted = sum(gamma ** (s - t) * rewards[b, s].item() for s in range(t, length))
            assert_close(advantages[b, t].item(), discounted - values[b, t].item(), rtol=1e-10, atol=1e-12)
            after = values[b, t + 1].item() if t + 1 < length else 0.0
            error = rewards[b, t].item() + gamma * after - values[b, t].item()
            assert_close(td[b, t].item(), error, rtol=1e-10, atol=1e-12)
    assert torch.equal(advantages[~mask], torch.zeros((~mask).sum(), dtype=F64))


def test_gae_ignores_where_the_padding_is_and_what_it_holds():
    generator = torch.Generator().manual_seed(2)
    rewards, values = (torch.randn(1, 4, dtype=F64, generator=generator) for _ in range(2))
    plain, plain_returns = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), 0.95, 0.9)
    junk = torch.full((1, 3), 1e9, dtype=F64)
    for left in (True, False):
        join = (lambda x, y: torch.cat([y, x], 1)) if left else (lambda x, y: torch.cat([x, y], 1))
        mask = join(torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool))
        padded, returns = gae(join(rewards, junk), join(values, junk), mask, 0.95, 0.9)
        assert torch.equal(padded[mask], plain[0])
        assert torch.equal(returns[mask], plain_returns[0])
        assert not padded[~mask].any()
        assert not returns[~mask].any()


def test_gae_passes_over_holes():
    """A token that does not train has no value and no reward: what stands beside it is unchanged."""
    generator = torch.Generator().manual_seed(4)
    rewards, values = (torch.randn(1, 4, dtype=F64, generator=generator) for _ in range(2))
    plain, returns = gae(rewards, values, torch.ones(1, 4, dtype=torch.bool), 0.95, 0.9)
    places = [0, 2, 3, 6]
    wide_rewards, wide_values = (torch.full((1, 8), 1e9, dtype=F64) for _ in range(2))
    wide_rewards[:, places], wide_values[:, places] = rewards, values
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[:, places] = True
    got, wide_returns = gae(wide_rewards, wide_values, mask, 0.95, 0.9)
    assert torch.equal(got[mask], plain[0])
    assert torch.equal(wide_returns[mask], returns[0])
    assert not got[~mask].any()


def test_last_token_spread_and_empty_rows():
    mask = tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 1]], dtype=torch.bool)
    expected = tensor([[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 1]], dtype=torch.bool)
    assert torch.equal(last_token(mask), expected)
    assert_close(at_tokens(numbers(1, 2, 3, 4), mask).sum(1), numbers(2, 0, 6, 8))


def test_whiten_by_hand_and_without_tokens():
    mask = tensor([[True, True, False], [True, False, False]])
    got = whiten(numbers(1, 3, 100, 5, 100, 100).view(2, 3), mask)
    std = math.sqrt((4 + 0 + 4) / 3)
    assert_close(got, numbers(-2, 0, 0, 2, 0, 0).view(2, 3) / (std + STD_EPS))
    assert torch.equal(whiten(got, torch.zeros_like(mask)), torch.zeros_like(got))


def test_overlong_penalty_by_hand():
    """Limit 20, buffer 4: free to 16, then -1/4 a token, -1 at 20."""
    lengths = numbers(1, 16, 17, 18, 20, 25)
    assert_close(overlong_penalty(lengths, 20, 4), numbers(0, 0, -0.25, -0.5, -1, -1))
