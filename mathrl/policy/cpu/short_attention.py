"""Attention over a packed stream on a CPU where keys are few: whole products instead of torch's kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mathrl.policy.attention import Block, Dense, PackedAttention, differentiable_once
from mathrl.policy.packing import Segments

SHORT = 256  # keys of a query: up to here whole products beat torch's attention kernel


def plan_attention(segments: Segments, device: torch.device, dtype: torch.dtype) -> PackedAttention:
    """The short way in full precision with at most ``SHORT`` keys a query, else padded blocks."""
    dense = Dense.build(segments, device)
    few = all(block.key_index.shape[1] <= SHORT for block in dense.blocks)
    full = dtype in (torch.float32, torch.float64)
    return ShortAttention.of(dense) if few and full and differentiable_once() else dense


@dataclass(frozen=True, slots=True)
class _ShortBlock:
    """A padded block, and what whole products need to know of it."""

    query_index: Tensor  # (S, L_q) int64
    key_index: Tensor  # (S, L_k) int64
    padding: Tensor  # (p,) int64: places of the S·L_q that are padding
    hiding: Tensor  # (S, 1, L_q, L_k) or (L_q, L_k) float32, added to the scores

    @classmethod
    def of(cls, block: Block, real: Tensor) -> _ShortBlock:
        """``real`` (S·L_q,) bool: the places that are no padding."""
        queries, keys = block.query_index.shape[1], block.key_index.shape[1]
        visible = torch.ones(queries, keys).tril_().bool() if block.mask is None else block.mask
        hiding = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        return cls(block.query_index, block.key_index, (~real).nonzero()[:, 0], hiding)

    def queries(self, x: Tensor, heads: int, *, blank: bool = False) -> Tensor:
        """(N, H, d) -> (S H_kv, H / H_kv · L_q, d), by head of keys; ``blank``: zero where padded."""
        x = x.index_select(0, self.query_index.flatten())
        if blank:
            x.index_fill_(0, self.padding, 0.0)
        x = x.unflatten(0, self.query_index.shape).unflatten(2, (heads, -1))
        return x.permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1, 2)

    def rows(self, x: Tensor, heads: int) -> Tensor:
        """``queries`` undone: -> (S L_q, H, d)."""
        x = x.unflatten(0, (-1, heads)).unflatten(2, (-1, self.query_index.shape[1]))
        return x.permute(0, 3, 1, 2, 4).flatten(2, 3).flatten(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """(N, H_kv, d) -> (S H_kv, L_k, d)."""
        rows = x.flatten(0, 1).index_select(0, self._key_rows(x.shape[1]))
        return rows.unflatten(0, (-1, self.key_index.shape[1]))

    def add_keys(self, grad: Tensor, part: Tensor) -> None:
        """Add the gradients of ``keys`` to those of (N, H_kv, d)."""
        grad.view(-1, grad.shape[2]).index_add_(0, self._key_rows(grad.shape[1]), part.flatten(0, 1))

    def _key_rows(self, heads: int) -> Tensor:
        return (self.key_index[:, None] * heads + torch.arange(heads)[:, None]).flatten()


@dataclass(frozen=True, slots=True)
class ShortAttention:
    """``Dense`` by whole products: the same numbers, once differentiable."""

    blocks: tuple[_ShortBlock, ...]
    where: Tensor  # (N,) int64: the stream's tokens among the blocks' padded outputs

    @classmethod
    def of(cls, dense: Dense) -> ShortAttention:
        sizes = [block.query_index.numel() for block in dense.blocks]
        real = torch.zeros(sum(sizes), dtype=torch.bool).index_fill_(0, dense.where, True).split(sizes)
        return cls(tuple(map(_ShortBlock.of, dense.blocks, real)), dense.where)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        return _Short.apply(self, scale, query, key, value)


class _Short(torch.autograd.Function):
    """The probabilities are kept for the backward.

    The queries that share a head of keys lie together, so that nothing is repeated for them.
    """

    @staticmethod
    def forward(
        ctx: Any, plan: ShortAttention, scale: float, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        heads, outputs, saved = key.shape[1], [], []
        for block in plan.blocks:
            scores = torch.bmm(block.queries(query * scale, heads), block.keys(key).transpose(1, 2))
            size = block.query_index.shape[1], block.key_index.shape[1]
            scores.view(-1, query.shape[1], *size).add_(block.hiding)
            probs = torch.softmax(scores, dim=-1)
            outputs.append(block.rows(torch.bmm(probs, block.keys(value)), heads))
            saved.append(probs)
        ctx.plan, ctx.scale = plan, scale
        ctx.save_for_backward(query, key, value, *saved)
        return torch.cat(outputs).index_select(0, plan.where)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *saved = ctx.saved_tensors
        heads, grads_q, grad_k, grad_v = key.shape[1], [], torch.zeros_like(key), torch.zeros_like(value)
        for block, probs in zip(ctx.plan.blocks, saved, strict=True):
            flow = block.queries(grad, heads, blank=True)
            block.add_keys(grad_v, torch.bmm(probs.transpose(1, 2), flow))
            slope = torch.bmm(flow, block.keys(value).transpose(1, 2))
            slope = torch.ops.aten._softmax_backward_data(slope, probs, -1, slope.dtype)
            grads_q.append(block.rows(torch.bmm(slope, block.keys(key)), heads))
            block.add_keys(grad_k, torch.bmm(slope.transpose(1, 2), block.queries(query * ctx.scale, heads)))
        grad_q = torch.cat(grads_q).index_select(0, ctx.plan.where).mul_(ctx.scale)
        return None, None, grad_q, grad_k, grad_v
