"""What a batch is given before the update."""

import pytest
import torch
from policy.conftest import build_batch, build_policy

from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches


def test_annotate_fills_what_is_asked_for():
    policy, batch = build_policy(), build_batch()
    policy.value_model = lambda part: part.completion_ids.float() * part.loss_mask
    got = annotate(policy, batch, MicroBatches(25), old=True, reference=True, values=True)
    torch.testing.assert_close(got.old_logprobs, policy.logprobs(batch).logprobs.detach(), rtol=0, atol=1e-5)
    reference = policy.logprobs(batch, reference=True).logprobs
    torch.testing.assert_close(got.ref_logprobs, reference, rtol=0, atol=1e-5)
    assert torch.equal(got.values, batch.completion_ids.float())
    assert annotate(policy, batch, MicroBatches(25)) == batch
    policy.value_model = None
    with pytest.raises(ValueError, match="value_model"):
        annotate(policy, batch, MicroBatches(25), values=True)
