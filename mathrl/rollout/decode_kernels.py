"""Kernels of a decoding step on a GPU, in Triton; imported where there is one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows"])
def _expand_kernel(
    joint, b, bias, out, rows, width, inner, stride,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = row[:, None].to(tl.int64)
    inside = (row[:, None] < rows) & (column[None, :] < width)
    total = tl.load(joint + wide * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    for begin in range(0, inner, INNER):
        k = begin + tl.arange(0, INNER)
        left = tl.load(
            joint + wide * stride + width + k[None, :],
            mask=(row[:, None] < rows) & (k[None, :] < inner),
            other=0.0,
        )
        right = tl.load(
            b + column[None, :] * inner + k[:, None],
            mask=(column[None, :] < width) & (k[:, None] < inner),
            other=0.0,
        )
        total = tl.dot(left, right, acc=total)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(out + wide * width + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def expand(joint: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A layer's output from the product of its input with weights and ``A`` together.

    Args:
        joint: (tokens, out + rank), x [W; A]ᵀ.
        b: (out, rank), contiguous.
        bias: (out,).

    Returns:
        (tokens, out): the left columns + the right ones · bᵀ + bias, summed in float32 and rounded once.
    """
    (rows, _), (width, inner) = joint.shape, b.shape
    out = torch.empty(rows, width, device=joint.device, dtype=joint.dtype)
    tall = 64 if rows > 32 else 16
    deep = min(64, max(16, triton.next_power_of_2(inner)))
    broad = 64 if 32 < rows <= 2048 else 128
    _expand_kernel[(triton.cdiv(rows, tall), triton.cdiv(width, broad))](
        joint, b, b if bias is None else bias, out, rows, width, inner, joint.stride(0),
        HAS_BIAS=bias is not None, ROWS=tall, COLUMNS=broad, INNER=deep,
    )  # fmt: skip
    return out
