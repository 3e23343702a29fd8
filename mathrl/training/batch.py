"""Groups -> Batch, and the ways a batch is cut: minibatches (optimiser steps) and micro-batches (memory)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mathrl.types import Batch, Group


class Sized(Protocol):
    """Something that costs tokens."""

    @property
    def num_tokens(self) -> int: ...


SizedT = TypeVar("SizedT", bound=Sized)


def collate(groups: Sequence[Group], pad_id: int) -> Batch:
    """Scored groups as one Batch, rows in the order of groups and their completions.

    No group gives a batch of no rows: another rank's groups were selected and none of this one's.

    Raises:
        ValueError: a group without scores.
    """
    completions = [c for group in groups for c in group.completions]
    completion_ids, loss_mask = padded([c.token_ids for c in completions], pad_id)
    logprobs = [c.sampling_logprobs for c in completions if c.sampling_logprobs is not None]
    sampling_logprobs = None
    if len(logprobs) == len(completions):
        sampling_logprobs = torch.zeros(loss_mask.shape, dtype=torch.float32)
        sampling_logprobs[loss_mask] = _end_to_end(logprobs, np.float32)
    for group in groups:
        if len(group.scores) != len(group.completions):
            raise ValueError(
                f"problem {group.problem.id}: {len(group.scores)} scores for {len(group.completions)}"
            )
    return Batch(
        prompts=tuple(torch.tensor(group.prompt_ids) for group in groups),
        group_ids=torch.tensor(
            [g for g, group in enumerate(groups) for _ in group.completions], dtype=torch.long
        ),
        completion_ids=completion_ids,
        loss_mask=loss_mask,
        rewards=torch.tensor([r for group in groups for r in group.rewards], dtype=torch.float32),
        truncated=torch.tensor([c.finish_reason == "length" for c in completions], dtype=torch.bool),
        sampling_logprobs=sampling_logprobs,
    )


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as (B, T) int64, filled up on the right, and (B, T) bool, True where a row's own are."""
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.long)
    valid = torch.arange(int(lengths.max()) if len(rows) else 0) < lengths[:, None]
    ids = torch.full(valid.shape, pad_id, dtype=torch.long)
    ids[valid] = _end_to_end(rows, np.int64)
    return ids, valid


def _end_to_end(rows: Sequence[Sequence[float]], kind: type) -> Tensor:
    """The rows' numbers one after the other; a tensor a row would take four times as long to make."""
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=kind, count=sum(map(len, rows))))


def collate_share(groups: Sequence[Group], own: Sequence[bool], pad_id: int) -> Batch:
    """The step's groups that are this rank's own, as a batch that knows where its rows stand in the step.

    Args:
        groups: all that train in this step, the same list on every rank.
        own: of each group whether it is this rank's.
    """
    sizes = [len(group.completions) for group in groups]
    first = [sum(sizes[:g]) for g in range(len(groups))]
    places = [first[g] + i for g, mine in enumerate(own) if mine for i in range(sizes[g])]
    batch = collate([group for group, mine in zip(groups, own, strict=True) if mine], pad_id)
    return replace(batch, places=torch.tensor(places, dtype=torch.long), num_places=sum(sizes))


def merge_shares(shares: Sequence[Batch]) -> Batch:
    """The batch of which these are the ranks' shares, with its rows in their places; all on one device."""
    width = max(share.loss_mask.shape[1] for share in shares)
    order = torch.cat([share.places for share in shares if share.places is not None]).argsort()
    changes: dict[str, Any] = {"places": None, "num_places": 0}
    for f in fields(Batch):
        values = [getattr(share, f.name) for share in shares if share.num_completions]
        if f.name not in ("places", "group_ids") and isinstance(values[0], Tensor):
            wide = [F.pad(v, (0, width - v.shape[1])) if v.dim() == 2 else v for v in values]
            changes[f.name] = torch.cat(wide)[order]
    prompts = [prompt for share in shares for prompt in share.prompts]
    before = [sum(len(share.prompts) for share in shares[:r]) for r in range(len(shares))]
    group_ids = torch.cat([share.group_ids + first for share, first in zip(shares, before, strict=True)])[
        order
    ]
    changes["group_ids"] = torch.unique_consecutive(group_ids, return_inverse=True)[1]
    changes["prompts"] = tuple(prompts[int(g)] for g in torch.unique_consecutive(group_ids))
    return replace(shares[0], **changes)


def without_truncated(batch: Batch) -> Batch:
    """The batch whose completions that were cut at the length limit give no gradient.

    Their rewards have counted in the advantages of their group: only their own tokens train no more, and are
    no more part of what a loss is divided by (overlong filtering, arXiv:2503.14476, section 3.4).
    """
    return batch.add(loss_mask=batch.sampled & ~batch.truncated[:, None], sampled_mask=batch.sampled)


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[Tensor]:
    """Row indices of micro-batches of at most ``max_tokens`` tokens; a prompt counts once a group.

    There are as few as that allows, and they are as even as the order allows: a small one at the end would
    take a device's launches for as much work as a share of the others. Rows of a group stay together as far
    as they fit, so that they can share their prompt; one row that is longer than ``max_tokens`` is a
    micro-batch by itself.
    """
    order = torch.argsort(batch.group_ids, stable=True)
    places = torch.arange(1, batch.loss_mask.shape[1] + 1, device=batch.loss_mask.device)
    lengths = (batch.loss_mask * places).amax(dim=1).tolist()  # up to the last token that trains
    groups = batch.group_ids.tolist()
    prompts = [len(prompt) for prompt in batch.prompts]
    rows = [(row, groups[row], lengths[row], prompts[groups[row]]) for row in order.tolist()]
    fewest = _parts(rows, max_tokens)
    even = (_parts(rows, max_tokens, len(fewest), whole_groups=whole) for whole in (True, False))
    yield from map(torch.tensor, next((parts for parts in even if 0 < len(parts) <= len(fewest)), fewest))


def _parts(
    rows: Sequence[tuple[int, int, int, int]], most: int, number: int = 0, *, whole_groups: bool = False
) -> list[list[int]]:
    """Runs of rows (index, group, own tokens, prompt's tokens) of at most ``most`` tokens, one row at least.

    ``number`` is how many there should be, if they can: a run ends where it is nearest to its share of what
    is left, with ``whole_groups`` only where a group ends; none at all where one is too large for any run.
    """
    sizes: dict[int, int] = {}
    for _, group, length, prompt in rows:
        sizes[group] = sizes.get(group, prompt) + length
    found: list[list[int]] = []
    if whole_groups and max(sizes.values(), default=0) > most:
        return found
    left, used, share, last = sum(sizes.values()), 0, 0.0, -1
    for row, group, length, prompt in rows:
        cost = length + (prompt if group != last else 0)
        fits = used + cost <= most
        if number and not whole_groups:
            fits = fits and used + cost / 2 <= share
        elif number and group != last:
            fits = used + sizes[group] / 2 <= share and used + sizes[group] <= most
        if found and fits:
            found[-1].append(row)
        else:
            again = 0 if whole_groups else prompt  # a group that is cut computes its prompt once more
            left -= used - (again if group == last else 0)
            others = max(number - len(found) - 1, 0)
            share = (left + again * others) / (1 + others)
            found.append([row])
            used, cost = 0, length + prompt
        used += cost
        last = group
    return found


def by_tokens(items: Sequence[SizedT], most: int) -> Iterator[list[SizedT]]:
    """Runs of items of at most ``most`` tokens, one item at least."""
    part: list[SizedT] = []
    used = 0
    for item in items:
        if part and used + item.num_tokens > most:
            yield part
            part, used = [], 0
        part.append(item)
        used += item.num_tokens
    if part:
        yield part


def minibatches(batch: Batch, num: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row indices of ``num`` random minibatches of (nearly) equal size; every row is in exactly one.

    The rows of the step on all ranks are drawn, so that a minibatch is the same however many ranks there are;
    this rank's rows of it may be none.
    """
    order = torch.randperm(step_rows(batch), generator=generator)
    yield from (rows_at(batch, part.sort().values) for part in order.tensor_split(num) if len(part))


def step_rows(batch: Batch) -> int:
    """Rows of the batch's step on all ranks."""
    return batch.num_completions if batch.places is None else batch.num_places


def rows_at(batch: Batch, places: Tensor) -> Tensor:
    """Indices of the batch's rows that stand at these places of the step, in their order."""
    if batch.places is None:
        return places
    return torch.isin(batch.places.cpu(), places).nonzero()[:, 0]


def places_of(batch: Batch, rows: Sequence[int]) -> list[int]:
    """Where rows of the batch stand in the step."""
    return list(rows) if batch.places is None else [int(batch.places[row]) for row in rows]
