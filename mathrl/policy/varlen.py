"""FlashAttention over the segments of a packed stream, on CUDA in half precision.

The kernels are those behind ``torch.nn.attention.varlen``. They are called through operators of our own,
because a completion's keys and values are gathered rows of the stream: gathering again in the backward keeps
them out of the saved tensors, the gradients of a prompt's rows are summed in float32 over its completions,
and a compiled layer sees one opaque call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mathrl.policy.packing import Segments, spans


@dataclass(frozen=True, slots=True)
class Varlen:
    """The segments of a stream as FlashAttention takes them; callable as a PackedAttention."""

    query_offsets: Tensor  # (S + 1,) int32
    key_offsets: Tensor  # (S + 1,) int32
    key_index: (
        Tensor | None
    )  # (sum of key lengths,) int64: prompt + own tokens; None: keys are the stream itself
    max_query: int
    max_key: int

    @classmethod
    def build(cls, segments: Segments, device: torch.device) -> Varlen:
        def offsets(lengths: np.ndarray) -> Tensor:
            return torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)

        index = None
        if segments.prefix_length.any():
            starts = np.stack([segments.prefix_start, segments.start], axis=1).ravel()
            lengths = np.stack([segments.prefix_length, segments.length], axis=1).ravel()
            index = torch.from_numpy(spans(starts, lengths)).to(device)
        return cls(
            offsets(segments.length),
            offsets(segments.key_length),
            index,
            _round_up(int(segments.length.max(initial=1))),
            _round_up(int(segments.key_length.max(initial=1))),
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        out, _ = packed_flash(
            query, key, value, self.query_offsets, self.key_offsets, self.key_index,
            self.max_query, self.max_key, scale,
        )  # fmt: skip
        return out


def _round_up(length: int) -> int:
    """The next power of two, 128 at least: few values, so that compiled code sees few."""
    return max(128, 1 << (length - 1).bit_length())


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    return x.contiguous() if index is None else x.index_select(0, index)


def _sum_rows(grad: Tensor, like: Tensor, index: Tensor | None) -> Tensor:
    if index is None:
        return grad
    total = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return total.index_add_(0, index, grad.float()).to(like.dtype)


@torch.library.custom_op("mathrl::packed_flash", mutates_args=(), device_types="cuda")
def packed_flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    key_index: Tensor | None,
    max_query: int,
    max_key: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """(N, H, d), (N, H_kv, d), (N, H_kv, d) -> output (N, H, d) and log-sum-exp (H, N) float32.

    Causal, aligned at the end of each segment's keys: the first own token sees the whole prompt.
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        query.contiguous(), _rows(key, key_index), _rows(value, key_index), query_offsets, key_offsets,
        max_query, max_key, 0.0, True, False, scale=scale,
    )  # fmt: skip
    return out, lse


@torch.library.custom_op("mathrl::packed_flash_backward", mutates_args=(), device_types="cuda")
def packed_flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    key_index: Tensor | None,
    max_query: int,
    max_key: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=query.device)  # read by dropout alone
    grad_q, grad_k, grad_v = torch.ops.aten._flash_attention_backward(
        grad.contiguous(), query.contiguous(), _rows(key, key_index), _rows(value, key_index), out, lse,
        query_offsets, key_offsets, max_query, max_key, 0.0, True, no_dropout, no_dropout.new_empty(0),
        scale=scale,
    )  # fmt: skip
    return grad_q, _sum_rows(grad_k, key, key_index), _sum_rows(grad_v, value, key_index)


@packed_flash.register_fake
def _(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    lse = query.new_empty((query.shape[1], query.shape[0]), dtype=torch.float32)
    return torch.empty_like(query, memory_format=torch.contiguous_format), lse


@packed_flash_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, query_offsets, key_offsets, key_index, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, value, *output, query_offsets, key_offsets, key_index)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = packed_flash_backward(grad, *ctx.saved_tensors, *ctx.numbers)
    return (*grads, None, None, None, None, None, None)


packed_flash.register_autograd(_differentiate, setup_context=_save)
