"""What data-parallel ranks share: sums of denominators, metrics and gradients. One process: nothing happens.

A run with several processes is started by torchrun and sets up ``torch.distributed`` itself; every rank holds
the same adapter and its own rows. Losses are divided by totals over all ranks before the first backward, so
gradients are summed, never averaged.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_ranks(tensor: Tensor) -> Tensor:
    """Sum over ranks of a tensor that has the same shape everywhere; a new tensor."""
    return _reduced(tensor, dist.ReduceOp.SUM) if world_size() > 1 else tensor


def max_ranks(tensor: Tensor) -> Tensor:
    """Maximum over ranks, elementwise; a new tensor."""
    return _reduced(tensor, dist.ReduceOp.MAX) if world_size() > 1 else tensor


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Add the ranks' gradients, in place and in one message; a missing gradient counts as zero."""
    if world_size() == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def _reduced(tensor: Tensor, op: dist.ReduceOp.RedOpType) -> Tensor:
    result = tensor.clone()
    dist.all_reduce(result, op)
    return result
