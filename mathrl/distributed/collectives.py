"""What ranks share and sum. With one process every function returns what it was given.

Losses are divided by totals over all ranks before the first backward, so gradients are summed and never
averaged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from mathrl.distributed.group import Ranks, current

if TYPE_CHECKING:  # one process, which may have no tensor at all, does without torch here
    from torch import Tensor

T = TypeVar("T")

_BUCKET = 1 << 26  # elements of a message: 256 MiB in float32


class LostRankError(RuntimeError):
    """The connection to another rank broke; which one has gone is the lookout's to say."""


def world_size() -> int:
    group = current()
    return group.place.world if group else 1


def rank() -> int:
    group = current()
    return group.place.rank if group else 0


def own_share(items: Sequence[T]) -> list[T]:
    """Every world-th item from this rank's number on; ``interleaved`` puts the shares together again."""
    return list(items[rank() :: world_size()])


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """The inverse of ``own_share`` on all ranks."""
    num = len(parts)
    return [parts[n % num][n // num] for n in range(sum(len(part) for part in parts))]


def sum_ranks(tensor: Tensor) -> Tensor:
    """Sum over ranks of a tensor that has the same shape everywhere; a new tensor."""
    group = current()
    if group is None:
        return tensor
    result = tensor.clone()
    all_reduce(group, result, "SUM")
    return result


def gather(value: T) -> list[T]:
    """Every rank's value, by rank, on all of them. Values are pickled."""
    group = current()
    if group is None:
        return [value]
    import torch.distributed as dist

    found: list[T | None] = [None] * group.place.world
    with measured(group, "gather"):
        dist.all_gather_object(found, value, group=group.waiting)
    return found  # type: ignore[return-value]


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Add the ranks' gradients, in place and in few messages; a missing gradient counts as zero."""
    group = current()
    if group is None:
        return
    import torch

    for bucket in _buckets(parameters):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        all_reduce(group, flat, "SUM")
        for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad = part.view_as(parameter)


@contextmanager
def measured(group: Ranks, what: str) -> Iterator[None]:
    """Count the seconds of a call to other ranks; a broken connection becomes a LostRankError."""
    import torch

    assert not group.local_work, f"{group.local_work} is this rank's own work: it cannot ask other ranks"
    if group.tensors is not None:
        torch.cuda.synchronize()  # what is still under way there is not the call's
    start = time.perf_counter()
    try:
        yield
        if group.tensors is not None:
            torch.cuda.synchronize()
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # this rank's own
        raise
    except RuntimeError as error:  # gloo's, or dist.DistError
        raise LostRankError(str(error)) from error
    finally:
        group.seconds[what] += time.perf_counter() - start


def all_reduce(group: Ranks, tensor: Tensor, op: str, counts_as: str = "reduce") -> None:
    """torch's all_reduce in place: over NCCL where the tensor is on a GPU, else over gloo.

    Args:
        op: of ``torch.distributed.ReduceOp``: SUM, MAX.
        counts_as: the kind of call its seconds are counted under.
    """
    import torch.distributed as dist

    with measured(group, counts_as):
        dist.all_reduce(
            tensor, getattr(dist.ReduceOp, op), group=group.tensors if tensor.is_cuda else group.waiting
        )


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of parameters of at most ``_BUCKET`` elements, one parameter at least."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.numel() > _BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel()
    if bucket:
        yield bucket
