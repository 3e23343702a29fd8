"""What a policy says of a batch before the update: old and reference log-probabilities, values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mathrl.training.micro_batching import MicroBatches
from mathrl.types import Batch

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


@torch.no_grad()
def annotate(
    policy: Policy,
    batch: Batch,
    parts: MicroBatches,
    *,
    old: bool = False,
    reference: bool = False,
    values: bool = False,
) -> Batch:
    """The batch with old_logprobs, ref_logprobs and values, as far as asked for; all (B, T) float32.

    Args:
        parts: how the batch is cut; it remembers what fitted, so that the next call starts there.

    Raises:
        ValueError: values are asked of a policy without a value model.
        UserError: not even one completion fits in memory.
    """
    if values and policy.value_model is None:
        raise ValueError("annotate(values=True) needs policy.value_model to be set")
    shape = batch.loss_mask.shape
    wanted = {"old_logprobs": old, "ref_logprobs": reference, "values": values}
    found = {
        name: torch.zeros(shape, dtype=torch.float32, device=policy.device)
        for name, asked in wanted.items()
        if asked
    }

    def fill(rows: Tensor, part: Batch) -> None:
        rows, width = rows.to(policy.device), part.loss_mask.shape[1]
        if old:
            found["old_logprobs"][rows, :width] = policy.logprobs(part).logprobs.float()
        if reference:
            found["ref_logprobs"][rows, :width] = policy.logprobs(part, reference=True).logprobs.float()
        if values and policy.value_model is not None:
            found["values"][rows, :width] = policy.value_model(part).float()

    if found:
        parts.run(batch, fill)
    return batch.add(**{name: tensor.to(batch.loss_mask.device) for name, tensor in found.items()})
