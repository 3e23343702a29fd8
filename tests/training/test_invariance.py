"""Loss and gradient do not depend on how the work is cut: float64, 1e-10, over the whole policy."""

from dataclasses import fields

import pytest
import torch
from double_policy import NAMES, annotated, configured, double_policy
from torch.testing import assert_close

from mathrl.algorithms.losses import Totals
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.types import Batch, TokenOutputs

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def loss_and_gradient(name: str, change=lambda batch: batch, parts=None, **update):
    """(loss, gradient of all adapter weights, metrics) of a batch after ``change``, which must not matter."""
    config, algorithm = configured(name, **{f"update__{k}": v for k, v in update.items()})
    policy = double_policy(**update)
    batch = change(annotated(double_policy(), algorithm))
    loss, meter = PolicyLoss(config, algorithm, correct=True), Meter()
    pieces = [batch] if parts is None else [batch.rows(rows) for rows in parts]
    totals = Totals.of(batch.loss_mask)
    total = sum(loss.backward(policy, piece, meter, totals).item() for piece in pieces)
    gradient = torch.cat([p.grad.flatten() for p in policy.trainable_parameters()])
    return total, gradient, meter.metrics()


@pytest.fixture(scope="module")
def expected():
    return {name: loss_and_gradient(name) for name in NAMES}


def assert_same(got, wanted):
    assert wanted[1].abs().max() > 1e-3  # there is a gradient
    assert_close(got[0], wanted[0], **CLOSE)
    assert_close(got[1], wanted[1], **CLOSE)
    assert_close(got[2], wanted[2], **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches(name, expected):
    for tokens in (16, 40):  # rows by themselves, groups by themselves
        assert_same(loss_and_gradient(name, micro_batch_tokens=tokens), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_gradient_accumulation(name, expected):
    """Parts of any rows, with totals fixed before: their gradients add up."""
    assert_same(loss_and_gradient(name, parts=[[0, 8, 4], [1, 2], [3, 5, 6, 7]]), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_packing(name, expected):
    assert_same(loss_and_gradient(name, share_prompts=False), expected[name])
    assert_same(loss_and_gradient(name, fused_lora=False), expected[name])
    assert_same(loss_and_gradient(name, gradient_checkpointing=True), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_order_of_completions(name, expected):
    assert_same(
        loss_and_gradient(name, lambda batch: batch.rows([7, 2, 0, 8, 5, 3, 1, 6, 4])), expected[name]
    )


def padded(batch: Batch) -> Batch:
    """Five more columns of padding that hold junk, and a completion without any token."""
    changes = {}
    for field in fields(batch):
        tensor = getattr(batch, field.name)
        if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.dtype != torch.bool:
            junk = 17 if field.name == "completion_ids" else float("nan") if "logprobs" in field.name else 3.0
            wide = torch.nn.functional.pad(tensor, (0, 5), value=junk)
            changes[field.name] = torch.cat([wide, torch.zeros_like(wide[:1])])
    mask = torch.nn.functional.pad(batch.loss_mask, (0, 5))
    changes["loss_mask"] = torch.cat([mask, torch.zeros_like(mask[:1])])
    changes["group_ids"] = torch.cat([batch.group_ids, batch.group_ids[:1]])
    changes["rewards"] = torch.cat([batch.rewards, batch.rewards[:1]])
    changes["truncated"] = torch.cat([batch.truncated, batch.truncated[:1]])
    return batch.add(**changes)


@pytest.mark.parametrize("name", NAMES)
def test_amount_of_padding_and_empty_rows(name, expected):
    assert_same(loss_and_gradient(name, padded), expected[name])


@pytest.mark.parametrize("name", NAMES)
def test_side_of_padding(name):
    """The loss of rows whose tokens stand at the right end is that of rows whose tokens stand at the left."""
    _, algorithm = configured(name)
    policy = double_policy()
    batch = annotated(policy, algorithm)
    logprobs = policy.logprobs(batch).logprobs.detach()
    lengths, width = batch.lengths, batch.loss_mask.shape[1]
    shifted = (torch.arange(width) + lengths[:, None]) % width  # left-aligned rows moved to the right end

    def right(tensor):
        return None if tensor is None else tensor.gather(1, shifted)

    other = batch.add(
        **{
            field: right(getattr(batch, field))
            for field in ("loss_mask", "sampling_logprobs", "old_logprobs", "ref_logprobs", "values")
        }
    )
    other = algorithm.advantages(other)
    assert other.loss_mask[:, -1].all()
    found = []
    for b, x in ((batch, logprobs), (other, right(logprobs))):
        x = x.clone().requires_grad_()
        rows = PolicyLoss(configured(name)[0], algorithm, correct=True).rows(
            b, TokenOutputs(x), Totals.of(b.loss_mask)
        )
        rows.losses.sum().backward()
        found.append((rows.losses, x.grad))
    assert_close(found[1][0], found[0][0], **CLOSE)
    assert_close(found[1][1], right(found[0][1]), **CLOSE)
