"""Drawing tokens: temperature, top-k, top-p and noise that belongs to a completion, not to the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from mathrl.types import Sampling

_BLOCK_ELEMENTS = 1 << 24  # rows x vocabulary handled at once: bounds the float64 CDF to 128 MiB
_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _int64(value: int) -> int:
    """The int64 with the lowest 64 bits of this number."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own is arithmetic on int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(seeds: Tensor, step: int) -> Tensor:
    """Uniform numbers in [0, 1), a pure function of (seed, step).

    SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014) as a
    counter-based generator: state ``seed + (step + 1)·γ``, mixed. A completion's noise therefore depends on
    neither the batch it is drawn in nor the order of its rows.

    Args:
        seeds: (n,) int64.
        step: index of the token in its completion, >= 0.

    Returns:
        (n,) float64.
    """
    z = seeds + _int64((step + 1) * _GOLDEN)
    z = (z ^ _shift(z, 30)) * _int64(_MIX1)
    z = (z ^ _shift(z, 27)) * _int64(_MIX2)
    z = z ^ _shift(z, 31)
    return _shift(z, 11).double() * 2.0**-53


def keep_likeliest(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """Scores with every token outside top-k, then outside the nucleus of what is left, at -inf.

    Top-k keeps ties with the k-th score. The nucleus (Holtzman et al., arXiv:1904.09751, section 3.1) is the
    smallest set of likeliest tokens whose probability reaches ``top_p``; it is never empty.

    Args:
        scores: (n, V) float32 logits, temperature applied.
        top_k: tokens kept; 0 keeps all.
        top_p: probability kept, in (0, 1]; 1 keeps all.
    """
    if 0 < top_k < scores.shape[1]:
        kth = scores.topk(top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if top_p < 1.0:
        ordered, order = scores.softmax(dim=1).sort(dim=1, descending=True)
        outside = ordered.cumsum(dim=1, dtype=torch.float64) - ordered >= top_p
        scores = scores.masked_fill(torch.empty_like(outside).scatter_(1, order, outside), -torch.inf)
    return scores


def draw(logits: Tensor, sampling: Sampling, seeds: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        logits: (n, V), of any float type.
        sampling: temperature 0 takes the likeliest token.
        seeds: (n,) int64, of the rows' completions.
        step: index of the token in its completion.

    Returns:
        tokens (n,) int64 and their logprobs (n,) float32 under the distribution they were drawn from (after
        temperature, top-k and top-p). Greedy tokens have the logprob of temperature 1 without truncation.
    """
    noise, rows = uniforms(seeds, step), max(1, _BLOCK_ELEMENTS // logits.shape[1])
    if len(logits) <= rows:
        return _draw_block(logits, sampling, noise)
    parts = zip(logits.split(rows), noise.split(rows), strict=True)
    blocks = [_draw_block(part, sampling, part_noise) for part, part_noise in parts]
    tokens, logprobs = zip(*blocks, strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _draw_block(logits: Tensor, sampling: Sampling, noise: Tensor) -> tuple[Tensor, Tensor]:
    scores = logits.float()
    if sampling.temperature == 0:
        tokens = scores.argmax(dim=1, keepdim=True)
        logprobs = scores.log_softmax(dim=1)
    else:
        if sampling.temperature != 1.0:
            scores = scores / sampling.temperature
        logprobs = keep_likeliest(scores, sampling.top_k, sampling.top_p).log_softmax(dim=1)
        cdf = logprobs.exp().cumsum(
            dim=1, dtype=torch.float64
        )  # float32 would lose the tail of a large vocabulary
        # the first token whose cumulative probability exceeds the noise: never one of probability 0
        tokens = torch.searchsorted(cdf, noise[:, None] * cdf[:, -1:], right=True)
        tokens = tokens.clamp_(max=logits.shape[1] - 1)
    return tokens[:, 0], logprobs.gather(1, tokens)[:, 0]
