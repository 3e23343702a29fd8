"""Kernels of a decoding step on a GPU, in Triton; imported where there is one."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _share(joint, b, wide, row, column, rows, last, width, inner, stride, ROWS: tl.constexpr,
           COLUMNS: tl.constexpr, INNER: tl.constexpr):  # fmt: skip
    """Of some columns, up to ``last``: what stands there and the adapter's share, in float32."""
    inside = (row[:, None] < rows) & (column[None, :] < last)
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
            mask=(column[None, :] < last) & (k[:, None] < inner),
            other=0.0,
        )
        total = tl.dot(left, right, acc=total)
    return total


@triton.jit(do_not_specialize=["rows"])
def _expand_kernel(
    joint, b, bias, out, rows, width, inner, stride,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = row[:, None].to(tl.int64)
    total = _share(joint, b, wide, row, column, rows, width, width, inner, stride, ROWS, COLUMNS, INNER)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    inside = (row[:, None] < rows) & (column[None, :] < width)
    tl.store(out + wide * width + column[None, :], total.to(out.dtype.element_ty), mask=inside)


def _tiles(rows: int, inner: int) -> tuple[int, int]:
    """Rows of a program's tile, and columns of the rank that it takes at once."""
    return 64 if rows > 32 else 16, min(64, max(16, triton.next_power_of_2(inner)))


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
    tall, deep = _tiles(rows, inner)
    broad = 64 if 32 < rows <= 2048 else 128
    _expand_kernel[(triton.cdiv(rows, tall), triton.cdiv(width, broad))](
        joint, b, b if bias is None else bias, out, rows, width, inner, joint.stride(0),
        HAS_BIAS=bias is not None, ROWS=tall, COLUMNS=broad, INNER=deep,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])
def _gate_kernel(
    joint, b, bias, out, rows, half, inner, stride,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = row[:, None].to(tl.int64)
    width = 2 * half
    gate = _share(joint, b, wide, row, column, rows, half, width, inner, stride, ROWS, COLUMNS, INNER)
    up = _share(joint, b, wide, row, column + half, rows, width, width, inner, stride, ROWS, COLUMNS, INNER)
    if HAS_BIAS:
        gate += tl.load(bias + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
        up += tl.load(bias + half + column, mask=column < half, other=0.0).to(tl.float32)[None, :]
    kind = out.dtype.element_ty
    gate, up = gate.to(kind).to(tl.float32), up.to(kind).to(tl.float32)  # as where the layer ends here
    gated = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32) * up
    inside = (row[:, None] < rows) & (column[None, :] < half)
    tl.store(out + wide * half + column[None, :], gated.to(kind), mask=inside)


def expand_and_gate(joint: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """silu(left half) · right half of ``expand``: (tokens, out / 2), without writing what is between."""
    (rows, _), (width, inner) = joint.shape, b.shape
    half = width // 2
    out = torch.empty(rows, half, device=joint.device, dtype=joint.dtype)
    tall, deep = _tiles(rows, inner)
    _gate_kernel[(triton.cdiv(rows, tall), triton.cdiv(half, 64))](
        joint, b, b if bias is None else bias, out, rows, half, inner, joint.stride(0),
        HAS_BIAS=bias is not None, ROWS=tall, COLUMNS=64, INNER=deep,
    )  # fmt: skip
    return out


@triton.jit
def _attend_kernel(
    query, key, value, out, table, lengths, scale,
    query_stride, out_stride, page_stride, token_stride, head_stride, table_stride,
    DIM: tl.constexpr, SHARED: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(lengths + sequence)
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIM)
    places = (head * SHARED + row[:, None]) * DIM + dim[None, :]
    asked = tl.load(query + sequence * query_stride + places, mask=row[:, None] < SHARED, other=0.0)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, DIM), tl.float32)
    for begin in range(0, length, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        there = token < length
        page = tl.load(table + sequence * table_stride + token // PAGE, mask=there, other=0).to(tl.int64)
        where = page * page_stride + (token % PAGE) * token_stride + head * head_stride
        keys = tl.load(key + where[None, :] + dim[:, None], mask=there[None, :], other=0.0)
        values = tl.load(value + where[:, None] + dim[None, :], mask=there[:, None], other=0.0)
        scores = tl.where(there[None, :], tl.dot(asked, keys) * scale, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        share = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(most - higher)
        weight = weight * fade + tl.sum(share, 1)
        total = tl.dot(share.to(values.dtype), values, total * fade[:, None])
        most = higher
    total = total / tl.where(weight > 0, weight, 1.0)[:, None]  # nothing to attend to: 0
    tl.store(out + sequence * out_stride + places, total.to(out.dtype.element_ty), mask=row[:, None] < SHARED)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> None:
    """Attention of one token a sequence to all that its cache holds, one program a sequence and key head.

    The softmax is made block by block as in FlashAttention (arXiv:2205.14135, algorithm 1), the heads that
    share a key head together.

    Args:
        query: (sequences, heads, dim), rows contiguous.
        key: (pages, tokens a page, key heads, dim), the last contiguous; ``value`` has the same strides.
        out: (sequences, heads, dim), rows contiguous, written.
        table: (sequences or more, pages of the longest) int32, pages of a sequence in order.
        lengths: (sequences,) int32; 0 gives zeros.
        scale: of the scores, before the softmax.
    """
    sequences, heads, dim = query.shape
    _, page, key_heads, _ = key.shape
    tokens, warps = (64, 2) if dim <= 64 else (32, 1)
    _attend_kernel[(sequences, key_heads)](
        query, key, value, out, table, lengths, scale * 1.4426950408889634,  # of powers of 2
        query.stride(0), out.stride(0), key.stride(0), key.stride(1), key.stride(2), table.stride(0),
        DIM=dim, SHARED=heads // key_heads, PAGE=page, ROWS=16, TOKENS=tokens, num_warps=warps, num_stages=3,
    )  # fmt: skip


@triton.jit
def _blocks_kernel(logits, most, mass, first, stride, size, blocks, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    token = block * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(logits + row * stride + token, mask=token < size, other=float("-inf")).to(tl.float32)
    highest, index = tl.max(score, 0, return_indices=True)
    level = tl.where(highest == float("-inf"), 0.0, highest)
    tl.store(most + row * blocks + block, highest)
    tl.store(mass + row * blocks + block, tl.sum(tl.exp(score - level), 0))
    tl.store(first + row * blocks + block, block * BLOCK + index)


@triton.jit
def _draw_kernel(
    logits, most, mass, first, temperature, seeds, positions, places, tokens, logprobs,
    stride, size, blocks, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    heat = tl.load(temperature + place, mask=place >= 0, other=1.0).to(tl.float32)
    seed = tl.load(seeds + place, mask=place >= 0, other=0)
    key = tl.randint(seed, tl.load(positions + row))
    block = tl.arange(0, BLOCKS)
    top = tl.load(most + row * blocks + block, mask=block < blocks, other=float("-inf"))
    sums = tl.load(mass + row * blocks + block, mask=block < blocks, other=0.0)
    level = tl.max(top, 0)
    sums = sums * tl.exp(top - level)
    whole = tl.sum(sums, 0)
    # a block by its share of all, then a token of it by Gumbel noise, which a rounded logit hardly moves
    pair = tl.arange(0, 2)
    goal = tl.sum(tl.where(pair == 0, tl.rand(key, BLOCK + pair), 0.0), 0) * whole
    chosen = tl.min(tl.where((tl.cumsum(sums, 0) > goal) & (sums > 0), block, BLOCKS), 0)
    chosen = tl.where(chosen < BLOCKS, chosen, tl.max(tl.where(sums > 0, block, 0), 0))
    chosen = tl.where(heat == 0.0, tl.argmax(top, 0), chosen)
    best, index = float("-inf"), 0
    for begin in range(0, BLOCK, CHUNK):
        place_in = begin + tl.arange(0, CHUNK)
        token = chosen * BLOCK + place_in
        score = tl.load(logits + row * stride + token, mask=token < size, other=float("-inf")).to(tl.float32)
        noise = tl.maximum(tl.rand(key, place_in), 1e-12)  # 0 would forbid a token
        highest, at = tl.max(score - tl.log(-tl.log(noise)), 0, return_indices=True)
        index = tl.where(highest > best, begin + at, index)
        best = tl.maximum(highest, best)
    index = tl.where(heat == 0.0, tl.load(first + row * blocks + chosen) - chosen * BLOCK, index)
    drawn = (chosen * BLOCK + index).to(tl.int64)
    tl.store(tokens + row, drawn)
    own = tl.load(logits + row * stride + drawn).to(tl.float32)
    tl.store(logprobs + row, own - level - tl.log(whole))


def draw(
    logits: torch.Tensor,
    places: torch.Tensor,
    temperature: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A token a row from softmax(logits), and its log-probability; the highest where the temperature is 0.

    The same seed and position draw the same token from the same logits, in whatever batch. One pass over
    the logits sums blocks of them, a block is drawn by the inverse of their cumulative distribution, and a
    token of it by Gumbel noise: a random number for each logit of a block, where it would be of all.

    Args:
        logits: (rows, vocabulary), divided by the temperature already; −inf is never drawn.
        places: (rows,) a row's index in ``temperature`` and ``seeds``; negative: temperature 1, seed 0.
        temperature: (states,).
        seeds: (states,) int64.
        positions: (rows,) int64.

    Returns:
        (rows,) int64 tokens; (rows,) float32 log-probabilities.
    """
    rows, size = logits.shape
    block = 4096
    blocks = triton.cdiv(size, block)
    most = torch.empty(rows, blocks, device=logits.device)
    mass, first = torch.empty_like(most), torch.empty_like(most, dtype=torch.int32)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, device=logits.device)
    _blocks_kernel[(rows, blocks)](logits, most, mass, first, logits.stride(0), size, blocks, BLOCK=block)
    _draw_kernel[(rows,)](
        logits, most, mass, first, temperature, seeds, positions, places, tokens, logprobs,
        logits.stride(0), size, blocks, BLOCK=block, BLOCKS=triton.next_power_of_2(blocks), CHUNK=1024,
    )  # fmt: skip
    return tokens, logprobs
