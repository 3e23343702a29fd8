"""What ranks tell each other of a step: every rank ends up with all groups, in the problems' order.

A group trains on the rank that sampled it. Selection, metrics and samples come from the whole list, by the
same code on every rank, and so do not depend on how many ranks there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import torch

from mathrl.distributed.collectives import gather, interleaved, rank, world_size
from mathrl.errors import UserError
from mathrl.training.batch import collate
from mathrl.types import Adapter, Batch, Group, Problem

_HASH_BITS = 52  # of an adapter's hash as a metric: numbers of JSON and of charts hold so many exactly


class DivergedError(UserError):
    """Ranks hold different adapters."""


def all_groups(problems: Sequence[Problem], own: Sequence[Group]) -> list[Group]:
    """The groups of these problems on all ranks, ``own`` being those of ``own_share(problems)``.

    The problems are the same objects everywhere else, so they are not sent.
    """
    if world_size() == 1:
        return list(own)
    told = [(g.prompt_ids, g.completions, g.policy_version, g.scores) for g in own]
    groups = [
        [Group(problem, *rest) for problem, rest in zip(problems[r :: world_size()], part, strict=True)]
        for r, part in enumerate(gather(told))
    ]
    groups[rank()] = list(own)
    return interleaved(groups)


def whole_batch(own: Batch, groups: Sequence[Group], pad_id: int) -> Batch:
    """The step's batch of all ranks, on the CPU: all groups, and what each rank computed for its own.

    Every rank must call it.

    Args:
        own: this rank's rows.
        groups: all that train in this step.
    """
    if world_size() == 1:
        return replace(own, places=None, num_places=0)
    whole = collate(groups, pad_id)
    for part in gather(own.to("cpu")):
        assert part.places is not None
        width = part.loss_mask.shape[1]
        for name, tensor in _computed(part).items():
            if getattr(whole, name) is None:
                whole = whole.add(**{name: torch.zeros(whole.loss_mask.shape, dtype=tensor.dtype)})
            getattr(whole, name)[part.places, :width] = tensor
    return whole


def _computed(batch: Batch) -> dict[str, torch.Tensor]:
    """Its tensors of tokens that do not come from the groups."""
    given = ("completion_ids", "loss_mask", "sampling_logprobs")
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and value.dim() == 2 and name not in given
    }


def adapter_hash(adapter: Adapter) -> int:
    """64 bits that change with any bit of the adapter."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(adapter.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


def agree_on_adapter(adapter: Adapter, when: str) -> dict[str, float]:
    """Compare the adapters of all ranks; ``ranks/adapter_hash``, its lowest 52 bits.

    Args:
        when: for the sentence, such as "step 40".

    Raises:
        DivergedError: on all ranks; they hold different weights.
    """
    own = adapter_hash(adapter)
    found = gather(own)
    for other, value in enumerate(found):
        if value != found[0]:
            raise DivergedError(
                f"{when}: the adapter of rank {other} is no longer that of rank 0, so their gradients are of "
                "different policies: the last checkpoint is good, go on with --resume; if this comes again, "
                "look at that GPU"
            )
    return {"ranks/adapter_hash": float(own & ((1 << _HASH_BITS) - 1))}


def worst(ranks: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What each rank measured of its own engine, as one: the highest of each.

    Of ``sync/arrived`` it is the lowest, with the standard error that belongs to it.
    """
    names = dict.fromkeys(name for measured in ranks for name in measured)
    metrics = {name: max(r[name] for r in ranks if name in r) for name in names}
    arrived = [r for r in ranks if "sync/arrived" in r]
    if arrived:
        lowest = min(arrived, key=lambda r: r["sync/arrived"])
        metrics |= {name: lowest[name] for name in ("sync/arrived", "sync/arrived_error")}
    return metrics
