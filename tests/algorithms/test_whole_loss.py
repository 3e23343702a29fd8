"""The whole loss of every algorithm: against loops, gradcheck, extremes, identities."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from loop_reference import loss_and_gradient
from torch import tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from mathrl.algorithms.losses import (
    AGGREGATIONS,
    CLIPPED,
    KL_ESTIMATORS,
    Totals,
    truncated_weights,
)
from mathrl.algorithms.table import ALGORITHMS
from mathrl.config import Config
from mathrl.training.objective import PolicyLoss
from mathrl.types import Batch, TokenOutputs

F64 = torch.float64
EXTREMES = (0.0, 1e-8, -1e-8, 0.3, -0.3, 5.0, -5.0, 9.99, 10.01, 30.0, -30.0, 80.0, -80.0, 700.0, -700.0)


def numbers(*values):
    return tensor(values, dtype=F64)


def made(spread, seed=0, lengths=(4, 1, 0, 6)):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1])[None] < tensor(lengths)[:, None]
    old, sampled, ref, advantages = (torch.randn(shape, dtype=F64, generator=generator) for _ in range(4))
    old = -old.abs() - 0.1
    extremes = tensor(EXTREMES, dtype=F64)
    picks = torch.randint(len(EXTREMES), shape, generator=generator)
    offset = extremes[picks] if spread == "extreme" else 0.3 * ref
    logprobs, ref = old + offset, old + 0.4 * sampled if spread == "near" else old - offset * 0.7
    sampled = old + 0.3 * sampled
    return logprobs, old, sampled, ref, advantages, mask


def batch_of(old, sampled, ref, advantages, mask):
    rows = len(mask)
    return Batch(
        prompts=(tensor([1]),),
        group_ids=torch.zeros(rows, dtype=torch.long),
        completion_ids=torch.zeros(mask.shape, dtype=torch.long),
        loss_mask=mask,
        rewards=torch.zeros(rows, dtype=F64),
        truncated=torch.zeros(rows, dtype=torch.bool),
        sampling_logprobs=sampled,
        old_logprobs=old,
        ref_logprobs=ref,
        advantages=advantages,
    )


ROWS = [
    *(replace(row, max_completion_tokens=8) for row in ALGORITHMS.values()),
    replace(ALGORITHMS["grpo"], name="k2", kl_estimator="k2", kl_coef=0.3, max_completion_tokens=8),
    replace(ALGORITHMS["gspo"], name="wide gspo", clip_low=0.3, clip_high=0.3, max_completion_tokens=8),
    replace(
        ALGORITHMS["gspo"],
        name="gspo, token mean",
        aggregation="token_mean",
        clip_low=0.3,
        clip_high=0.3,
        max_completion_tokens=8,
    ),
]


def loss_of(row, correct):
    loss = PolicyLoss(Config(), row, correct=correct)
    loss.kl.coef = 0.3 if row.kl_coef else 0.0
    return loss


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("spread", ["near", "extreme"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_loss_and_gradient_agree_with_loops(row, spread, correct):
    logprobs, old, sampled, ref, advantages, mask = made(spread)
    logprobs.requires_grad_()
    loss = loss_of(row, correct)
    rows = loss.rows(batch_of(old, sampled, ref, advantages, mask), TokenOutputs(logprobs), Totals.of(mask))
    total = rows.losses.sum()
    (gradient,) = torch.autograd.grad(total, logprobs)
    expected, slope = loss_and_gradient(
        row,
        logprobs.detach().numpy(),
        old.numpy(),
        mask.numpy(),
        advantages.numpy(),
        ref=ref.numpy() if row.kl_coef else None,
        kl_coef=loss.kl.coef,
        sampled=sampled.numpy() if correct else None,
        max_tokens=row.max_completion_tokens,
    )
    scale = np.abs(slope).max()
    assert_close(total.item(), expected, rtol=1e-11, atol=1e-12)
    assert_close(gradient.numpy(), slope, rtol=1e-11, atol=1e-14 * max(scale, 1.0))
    assert torch.equal(gradient[~mask], torch.zeros(int((~mask).sum()), dtype=F64))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_gradcheck(row):
    """Finite differences agree, away from the kinks of the clip."""
    logprobs, old, sampled, ref, advantages, mask = made("near", seed=3)
    batch = batch_of(old, sampled, ref, advantages, mask)
    loss, totals = loss_of(row, True), Totals.of(mask)
    if row.surrogate == "weighted_logprob":  # its weight is a constant by definition: hold the ratio still
        batch = batch.add(old_logprobs=None)

    def total(x):
        return loss.rows(batch, TokenOutputs(x), totals).losses.sum()

    if row.surrogate == "weighted_logprob":
        x = logprobs.requires_grad_()
        (gradient,) = torch.autograd.grad(total(x), x)
        weights = truncated_weights(x, sampled, mask, 2.0) * AGGREGATIONS[row.aggregation](
            mask, totals, 8, F64
        )
        assert_close(gradient, -(weights * advantages))
    else:
        assert gradcheck(total, logprobs.requires_grad_(), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", list(KL_ESTIMATORS))
def test_gradcheck_of_kl(name):
    ref = torch.zeros(6, dtype=F64)
    logprobs = numbers(-12.5, -8.0, -1.0, 0.0, 0.7, 3.0).requires_grad_()
    assert gradcheck(lambda x: KL_ESTIMATORS[name](x, ref, 10.0), logprobs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_float32_stays_finite_at_every_extreme(row):
    """Log-ratios up to ±700 in float32, where exp(89) is infinity already."""
    tensors = [t.float() if t.dtype == F64 else t for t in made("extreme", seed=5, lengths=(9, 12, 12, 3))]
    logprobs, old, sampled, ref, advantages, mask = tensors
    logprobs.requires_grad_()
    batch = batch_of(old, sampled, ref, advantages, mask)
    rows = loss_of(row, True).rows(batch, TokenOutputs(logprobs), Totals.of(mask))
    (gradient,) = torch.autograd.grad(rows.losses.sum(), logprobs)
    assert rows.losses.isfinite().all()
    assert gradient.isfinite().all()
    assert all(bool(value.isfinite()) for value in rows.sums.values())


def test_junk_behind_the_mask_reaches_neither_loss_nor_gradient():
    logprobs, old, sampled, ref, advantages, mask = made("near")
    row = replace(ALGORITHMS["grpo"], max_completion_tokens=8)
    clean = batch_of(old, sampled, ref, advantages, mask)
    nan = float("nan")
    junk = clean.add(
        old_logprobs=torch.where(mask, old, nan),
        ref_logprobs=torch.where(mask, ref, nan),
        sampling_logprobs=torch.where(mask, sampled, nan),
    )
    x = logprobs.clone().requires_grad_()
    y = torch.where(mask, logprobs, nan).requires_grad_()
    loss = loss_of(row, True)
    first = loss.rows(clean, TokenOutputs(x), Totals.of(mask)).losses.sum()
    second = loss.rows(junk, TokenOutputs(y), Totals.of(mask)).losses.sum()
    assert first.item() == second.item()
    assert torch.equal(torch.autograd.grad(first, x)[0], torch.autograd.grad(second, y)[0])


def test_no_token_at_all_is_a_loss_of_zero():
    mask = torch.zeros(2, 3, dtype=torch.bool)
    logprobs = torch.zeros(2, 3, dtype=F64, requires_grad=True)
    batch = batch_of(*(torch.zeros(2, 3, dtype=F64) for _ in range(4)), mask)
    for row in ROWS:
        losses = loss_of(row, True).rows(batch, TokenOutputs(logprobs), Totals.of(mask)).losses
        (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
        assert losses.sum().item() == 0.0
        assert not gradient.any()


# --- identities -------------------------------------------------------------------------------------------


def total_and_gradient(row, logprobs, batch):
    x = logprobs.detach().clone().requires_grad_()
    total = loss_of(row, False).rows(batch, TokenOutputs(x), Totals.of(batch.loss_mask)).losses.sum()
    return total.detach(), torch.autograd.grad(total, x)[0]


def test_infinite_clip_removes_clipping():
    logprobs, old, sampled, ref, advantages, mask = made("near")
    logprobs = old + 3 * (logprobs - old)  # well outside the clip
    batch = batch_of(old, sampled, ref, advantages, mask)
    base = replace(ALGORITHMS["grpo"], kl_coef=0.0)
    wide = replace(base, clip_low=1.0, clip_high=math.inf)
    assert_close(
        total_and_gradient(wide, logprobs, batch),
        total_and_gradient(replace(base, surrogate="none"), logprobs, batch),
        rtol=0,
        atol=0,
    )
    assert not torch.equal(*(total_and_gradient(row, logprobs, batch)[1] for row in (base, wide)))


def test_gspo_equals_grpo_on_completions_of_one_token():
    logprobs, old, sampled, ref, advantages, mask = made("near", lengths=(1, 1, 1))
    batch = batch_of(old, sampled, ref, advantages, mask)
    grpo = replace(ALGORITHMS["grpo"], kl_coef=0.0)
    gspo = replace(ALGORITHMS["gspo"], clip_low=0.2, clip_high=0.2)
    assert_close(total_and_gradient(gspo, logprobs, batch), total_and_gradient(grpo, logprobs, batch))


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_first_on_policy_gradient_is_reinforce_with_the_same_advantages(name):
    """At ratio 1 every surrogate's gradient is -weight · A; its value is 0 only in mean."""
    logprobs, _, sampled, _, advantages, mask = made("near")
    row = replace(ALGORITHMS[name], kl_coef=0.0, max_completion_tokens=8)
    batch = batch_of(None, sampled, None, advantages, mask)
    if row.ratio == "sequence":  # one ratio for all tokens: their mean advantage is what counts
        advantages = torch.where(mask, advantages.mean(1, keepdim=True), 0.0)
        batch = batch.add(advantages=advantages)
    _, gradient = total_and_gradient(row, logprobs, batch)
    weights = AGGREGATIONS[row.aggregation](mask, Totals.of(mask), 8, F64)
    assert_close(gradient, -(weights * advantages), rtol=1e-12, atol=1e-15)


def test_clipped_tokens_are_those_without_gradient():
    logprobs, old, sampled, ref, advantages, mask = made("near")
    logprobs = old + 2 * (logprobs - old)
    row = replace(ALGORITHMS["grpo"], kl_coef=0.0)
    _, gradient = total_and_gradient(row, logprobs, batch_of(old, sampled, ref, advantages, mask))
    clipped = CLIPPED["clip"](logprobs - old, advantages, 0.2, 0.2) & mask
    assert clipped.any()
    assert torch.equal((gradient == 0) & mask, clipped)
