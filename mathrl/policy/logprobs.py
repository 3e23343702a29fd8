"""Log-probabilities and entropy of chosen tokens without ever holding all logits.

The logits z = h Wᵀ / τ exist for one chunk of tokens at a time. Where gradients are wanted, the forward also
keeps each token's derivative ∂ log p(y) / ∂h = (W_y − Σ_v p_v W_v) / τ, a row as wide as h: the backward is
then a product with the incoming gradient and the head is never multiplied a third time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
    compiled: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """log softmax(hidden weightᵀ / temperature)[target], and the entropy of that distribution.

    Args:
        hidden: (n, D), the head's compute type.
        weight: (V, D), frozen.
        target: (n,) int64.
        temperature: > 0.
        entropy: whether the entropy is wanted; it carries no gradient.
        compiled: whether what is not a matrix product is compiled: it then passes over the logits twice.

    Returns:
        (n,) log-probabilities, differentiable in ``hidden`` (once), and (n,) entropy in nats or None;
        float32, or float64 where ``hidden`` is.
    """
    logprobs, nats = _TokenLogprobs.apply(hidden, weight, target, temperature, entropy, compiled)
    return logprobs, nats if entropy else None


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        target: Tensor,
        temperature: float,
        entropy: bool,
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        count = hidden.shape[0]
        logprobs = torch.empty(count, dtype=wide, device=hidden.device)
        nats = torch.empty_like(logprobs)
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = chunk_rows(weight.shape[0], hidden.device)
        summary = _compiled_summary() if compiled else _summary
        for begin in range(0, count, rows):
            part = slice(begin, begin + rows)
            scores = _matmul(hidden[part], weight.t(), wide)
            if temperature != 1.0:
                scores.div_(temperature)
            chosen = target[part]
            if compiled:  # the last chunk is shorter: the same code serves it
                torch._dynamo.maybe_mark_dynamic(scores, 0)
                torch._dynamo.maybe_mark_dynamic(chosen, 0)
            wanted = hidden.dtype if slope is not None else None
            logprobs[part], found, probs = summary(scores, chosen, entropy, wanted)
            if found is not None:
                nats[part] = found
            if slope is not None and probs is not None:
                mean = _matmul(probs, weight, wide)
                slope[part] = (weight[chosen] - mean).div_(temperature)
        if slope is not None:
            ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(nats)
        return logprobs, nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None, None, None, None


Summary = tuple[Tensor, Tensor | None, Tensor | None]


def _summary(scores: Tensor, target: Tensor, entropy: bool, probs: torch.dtype | None) -> Summary:
    """(m, V) scores, overwritten: log p(target) (m,), entropy (m,), and p (m, V) in the type ``probs``."""
    scores.sub_(torch.logsumexp(scores, dim=-1, keepdim=True))  # log p
    chosen = scores.gather(1, target[:, None])[:, 0]
    if probs is None and not entropy:
        return chosen, None, None
    p = scores.exp()
    nats = -torch.linalg.vecdot(p, scores) if entropy else None
    return chosen, nats, p.to(probs) if probs is not None else None


def _pure_summary(scores: Tensor, target: Tensor, entropy: bool, probs: torch.dtype | None) -> Summary:
    """The same without writing to the scores, for a compiler to fuse."""
    log_p = scores - torch.logsumexp(scores, dim=-1, keepdim=True)
    p = log_p.exp()
    nats = -(p * log_p).sum(-1) if entropy else None
    return log_p.gather(1, target[:, None])[:, 0], nats, p.to(probs) if probs is not None else None


@cache
def _compiled_summary() -> Callable[..., Summary]:
    return torch.compile(_pure_summary)


def _matmul(left: Tensor, right: Tensor, wide: torch.dtype) -> Tensor:
    """left right in the wide type; CUDA writes it without rounding to the inputs' type first."""
    if left.dtype == wide:
        return left @ right
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=wide)
    return (left @ right).to(wide)


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Tokens of a chunk: its logits take 2 GiB on CUDA, 16 MiB (the cache) elsewhere, there 512 at most."""
    if device.type == "cuda":
        return max(16, (1 << 29) // vocabulary)
    return max(16, min(512, (1 << 22) // vocabulary))
