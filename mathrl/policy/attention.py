"""Attention over a packed stream: FlashAttention on CUDA (varlen.py), padded blocks elsewhere.

Registered with transformers as the attention implementation ``mathrl_packed``; a forward that carries no
packed plan (an engine that samples, say) gets transformers' own sdpa attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mathrl.policy.packing import Segments, spans
from mathrl.policy.varlen import Varlen

IMPLEMENTATION = "mathrl_packed"
SHORT = 256  # keys of a query on a CPU: up to here whole products beat torch's attention kernel


def differentiable_once() -> bool:
    """Whether one derivative is enough: not inside torch's math attention, where second ones are taken."""
    return torch.backends.cuda.flash_sdp_enabled()


class _Gather(torch.autograd.Function):
    """Rows of ``x``; the gradients of a row that was read often are summed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        wide = grad if grad.dtype == torch.float64 else grad.float()
        zeros = wide.new_zeros((ctx.rows, *grad.shape[1:]))
        return zeros.index_add(0, index, wide).to(grad.dtype), None


def gather(x: Tensor, index: Tensor) -> Tensor:
    """``x[index]`` along dim 0 with gradients summed in float32; differentiable twice."""
    return _Gather.apply(x, index)


class PackedAttention(Protocol):
    """(N, H, d), (N, H_kv, d), (N, H_kv, d), scale -> (N, H, d) over the segments it was built for."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Block:
    """Segments padded to one length; padding reads token 0 and is never looked at."""

    query_index: Tensor  # (S, L_q) int64
    key_index: Tensor  # (S, L_k) int64
    padding: Tensor  # (p,) int64: places of the S·L_q that are padding
    mask: Tensor | None  # (S, 1, L_q, L_k) bool; None: causal
    hiding: Tensor | None  # (S, 1, L_q, L_k) or (L_q, L_k) float32, added to the scores; None: not short

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
class Dense:
    """Attention over padded blocks: any device and type; twice differentiable under math."""

    blocks: tuple[_Block, ...]  # one of segments without a prefix, one of segments with one
    where: Tensor  # (N,) int64: the stream's tokens among the blocks' padded outputs

    @classmethod
    def build(cls, segments: Segments, device: torch.device) -> Dense:
        blocks, places, padded = [], np.zeros(int(segments.length.sum()), dtype=np.int64), 0
        for chosen in (segments.prefix_length == 0, segments.prefix_length > 0):
            if not chosen.any():
                continue
            start, length = segments.start[chosen], segments.length[chosen]
            prefix_start, prefix = segments.prefix_start[chosen], segments.prefix_length[chosen]
            own, own_valid = _padded(start, length)
            before, before_valid = _padded(prefix_start, prefix)
            places[spans(start, length)] = padded + np.flatnonzero(own_valid)
            padded += own.size
            mask = None
            if prefix.any():
                causal = np.tri(own.shape[1], dtype=bool)[None] & own_valid[:, None, :]
                seen = np.broadcast_to(before_valid[:, None, :], (*own.shape, before.shape[1]))
                mask = torch.from_numpy(np.concatenate([seen, causal], axis=2)[:, None]).to(device)
            keys = np.concatenate([before, own], axis=1)
            hiding = None
            if device.type == "cpu" and keys.shape[1] <= SHORT:
                visible = torch.ones(own.shape[1], keys.shape[1]).tril_().bool() if mask is None else mask
                hiding = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
            query_index, key_index, padding = (
                torch.from_numpy(x).to(device) for x in (own, keys, np.flatnonzero(~own_valid))
            )
            blocks.append(_Block(query_index, key_index, padding, mask, hiding))
        return cls(tuple(blocks), torch.from_numpy(places).to(device))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if self._short(query):
            return _Short.apply(self, scale, query, key, value)
        repeats = query.shape[1] // key.shape[1]
        outputs = []
        for block in self.blocks:
            q = gather(query, block.query_index.flatten()).unflatten(0, block.query_index.shape)
            k, v = (
                gather(x, block.key_index.flatten())
                .unflatten(0, block.key_index.shape)
                .repeat_interleave(repeats, 2)
                for x in (key, value)
            )
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                attn_mask=block.mask, is_causal=block.mask is None, scale=scale,
            )  # fmt: skip
            outputs.append(out.transpose(1, 2).flatten(0, 1))
        return gather(torch.cat(outputs), self.where)

    def _short(self, query: Tensor) -> bool:
        full = query.dtype in (torch.float32, torch.float64)
        return full and differentiable_once() and all(block.hiding is not None for block in self.blocks)


class _Short(torch.autograd.Function):
    """Dense where keys are few: the probabilities are kept for the backward; once differentiable.

    The queries that share a head of keys lie together, so that nothing is repeated for them.
    """

    @staticmethod
    def forward(ctx: Any, plan: Dense, scale: float, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, outputs, saved = key.shape[1], [], []
        for block in plan.blocks:
            scores = torch.bmm(block.queries(query * scale, heads), block.keys(key).transpose(1, 2))
            size = block.query_index.shape[1], block.key_index.shape[1]
            assert block.hiding is not None
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


def _padded(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spans as a rectangle: indices (S, L) with 0 where padded, and which of them are real."""
    steps = np.arange(int(length.max(initial=0)))[None]
    valid = steps < length[:, None]
    return np.where(valid, start[:, None] + steps, 0), valid


def plan_attention(segments: Segments, device: torch.device, dtype: torch.dtype) -> PackedAttention:
    """The fast way where it applies: half precision on CUDA, and not inside torch's math attention."""
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and differentiable_once():
        return Varlen.build(segments, device)
    return Dense.build(segments, device)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    packed: PackedAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: (1, H, N, d) -> (1, N, H, d)."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed(q, k, v, scaling)[None], None


AttentionInterface.register(IMPLEMENTATION, packed_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
