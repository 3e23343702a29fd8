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
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from mathrl.policy.packing import Segments, spans
from mathrl.policy.varlen import Varlen

IMPLEMENTATION = "mathrl_packed"


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
class Block:
    """Segments padded to one length; padding reads token 0 and is never looked at."""

    query_index: Tensor  # (S, L_q) int64
    key_index: Tensor  # (S, L_k) int64
    mask: Tensor | None  # (S, 1, L_q, L_k) bool; None: causal


@dataclass(frozen=True, slots=True)
class Dense:
    """Attention over padded blocks: any device and type; twice differentiable under math."""

    blocks: tuple[Block, ...]  # one of segments without a prefix, one of segments with one
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
            keys = torch.from_numpy(np.concatenate([before, own], axis=1)).to(device)
            blocks.append(Block(torch.from_numpy(own).to(device), keys, mask))
        return cls(tuple(blocks), torch.from_numpy(places).to(device))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
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
