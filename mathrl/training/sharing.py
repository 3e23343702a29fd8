"""What ranks tell each other of a step: every rank ends up with all groups, in the problems' order.

A group trains on the rank that sampled it; the others are told what selection and metrics ask for, lengths
and scores, and of the first groups the completions themselves, for whoever reads them. These come from the
whole list, by the same code on every rank, and so do not depend on how many ranks there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from mathrl.distributed.collectives import gather, interleaved, rank, world_size
from mathrl.errors import UserError
from mathrl.training.batch import merge_shares
from mathrl.types import Adapter, Batch, Completion, Group, Problem, Score

_HASH_BITS = 52  # of an adapter's hash as a metric: numbers of JSON and of charts hold so many exactly


class DivergedError(UserError):
    """Ranks hold different adapters."""


class Elsewhere(Sequence[int]):
    """Tokens that another rank has: how many they are is known, and nothing else."""

    def __init__(self, num: int) -> None:
        self._num = num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: Any) -> Any:
        raise TypeError(f"these {self._num} tokens are on the rank that sampled them")


Told = tuple[Any, Any, int, tuple[Score, ...]]
"""A group without its problem: prompt and completions, or their lengths and reasons alone."""


def all_groups(problems: Sequence[Problem], own: Sequence[Group], whole: int | None = None) -> list[Group]:
    """The groups of these problems on all ranks, ``own`` being those of ``own_share(problems)``.

    The problems are the same objects everywhere else, so they are not sent.

    Args:
        whole: of how many groups, the first ones, every rank gets the completions; None: of all. Those of the
            others have no text, and their tokens are ``Elsewhere``.
    """
    num = world_size()
    if num == 1:
        return list(own)
    told = [tell(group, whole is None or n * num + rank() < whole) for n, group in enumerate(own)]
    groups = [
        [_heard(problem, *rest) for problem, rest in zip(problems[r::num], part, strict=True)]
        for r, part in enumerate(gather(told))
    ]
    groups[rank()] = list(own)
    return interleaved(groups)


def tell(group: Group, whole: bool) -> Told:
    """What another rank is told of a group."""
    if whole:
        return group.prompt_ids, group.completions, group.policy_version, group.scores
    ends = [(len(c.token_ids), c.finish_reason) for c in group.completions]
    return len(group.prompt_ids), ends, group.policy_version, group.scores


def _heard(problem: Problem, prompt: Any, completions: Any, version: int, scores: tuple[Score, ...]) -> Group:
    if isinstance(prompt, int):
        prompt = Elsewhere(prompt)
        completions = tuple(Completion(Elsewhere(num), "", reason) for num, reason in completions)  # type: ignore[arg-type]
    return Group(problem, prompt, completions, version, scores)


def whole_batch(own: Batch) -> Batch:
    """The step's batch of all ranks; on the CPU where there are several. Every rank must call it."""
    if world_size() == 1:
        return replace(own, places=None, num_places=0)
    return merge_shares(gather(own.to("cpu")))


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
    if world_size() == 1:
        return {}
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
