"""Groups -> Batch, and the ways a batch is cut: minibatches (optimiser steps) and micro-batches (memory)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mathrl.types import Batch, Group


def collate(groups: Sequence[Group], pad_id: int) -> Batch:
    """Scored groups as one Batch, rows in the order of groups and their completions.

    Raises:
        ValueError: no group, or a group without scores.
    """
    if not groups:
        raise ValueError("collate needs at least one group")
    completions = [c for group in groups for c in group.completions]
    width = max(len(c.token_ids) for c in completions)
    completion_ids = torch.full((len(completions), width), pad_id, dtype=torch.long)
    loss_mask = torch.zeros((len(completions), width), dtype=torch.bool)
    recorded = all(c.sampling_logprobs is not None for c in completions)
    sampling_logprobs = torch.zeros((len(completions), width), dtype=torch.float32) if recorded else None
    for row, completion in enumerate(completions):
        length = len(completion.token_ids)
        completion_ids[row, :length] = torch.tensor(completion.token_ids)
        loss_mask[row, :length] = True
        if sampling_logprobs is not None:
            sampling_logprobs[row, :length] = torch.tensor(completion.sampling_logprobs)
    for group in groups:
        if len(group.scores) != len(group.completions):
            raise ValueError(
                f"problem {group.problem.id}: {len(group.scores)} scores for {len(group.completions)}"
            )
    return Batch(
        prompts=tuple(torch.tensor(group.prompt_ids) for group in groups),
        group_ids=torch.tensor([g for g, group in enumerate(groups) for _ in group.completions]),
        completion_ids=completion_ids,
        loss_mask=loss_mask,
        rewards=torch.tensor([r for group in groups for r in group.rewards], dtype=torch.float32),
        truncated=torch.tensor([c.finish_reason == "length" for c in completions]),
        sampling_logprobs=sampling_logprobs,
    )


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[Tensor]:
    """Row indices of micro-batches of at most ``max_tokens`` tokens; a prompt counts once a group.

    Rows of a group stay together as far as they fit, so that they can share their prompt; one row that is
    longer than ``max_tokens`` is a micro-batch by itself.
    """
    order = torch.argsort(batch.group_ids, stable=True)
    places = torch.arange(1, batch.loss_mask.shape[1] + 1, device=batch.loss_mask.device)
    lengths = (batch.loss_mask * places).amax(dim=1).tolist()  # up to the last token that trains
    groups = batch.group_ids.tolist()
    chosen: list[int] = []
    used, group = 0, -1
    for row in order.tolist():
        own_group, cost = groups[row], lengths[row]
        prompt = len(batch.prompts[own_group])
        if chosen and used + cost + (prompt if own_group != group else 0) > max_tokens:
            yield torch.tensor(chosen)
            chosen, used, group = [], 0, -1
        used += cost + (prompt if own_group != group else 0)
        group = own_group
        chosen.append(row)
    if chosen:
        yield torch.tensor(chosen)


def minibatches(batch: Batch, num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row indices of ``num`` random minibatches of (nearly) equal size; every row is in exactly one."""
    order = torch.randperm(batch.num_completions, generator=generator)
    yield from (part.sort().values for part in order.tensor_split(num) if len(part))
