"""Ratios, surrogates, KL estimators, aggregation, value loss: pure functions of tensors.

Shapes: B completions, T tokens (padded on either side), every (B, T) tensor is per token. Surrogates are
maximised, losses minimised. A masked token must not reach any of them with a non-finite value; its weight
is exactly 0, so its gradient is too. Log-ratios are exponentiated by ``exp_with_knee`` only, so nothing
overflows and no gradient goes silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RATIO_KNEE = 20.0
"""Importance ratios are exact up to e^20 and grow linearly beyond: finite in float32, gradient alive."""


def exp_with_knee(x: Tensor, knee: float) -> Tensor:
    """exp(x) up to ``knee``, its tangent beyond: finite, with a continuous derivative that never vanishes."""
    # chosen, not added up: 1 + e^knee - e^knee, as a sum's gradient would be, is 0 in float32; at the knee
    # itself the tangent, as torch 2.14 has no gradient for what a clamp leaves at its bound
    return torch.where(x < knee, x.clamp(max=knee).exp(), math.exp(knee) * (1.0 + x - knee))


# --- importance ratios: (logprobs, old_logprobs, mask) -> log-ratio (B, T) -----------------------------


def token_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """log pi(t) - log pi_old(t), one ratio a token (PPO, arXiv:1707.06347; GRPO)."""
    return torch.where(mask, logprobs - old_logprobs, 0.0)


def sequence_log_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """The completion's mean log-ratio at each of its tokens: GSPO, arXiv:2507.18071, eq. 7.

    s = (pi(y|x) / pi_old(y|x))^(1/|y|). Equals token_log_ratio for completions of one token.
    """
    total = token_log_ratio(logprobs, old_logprobs, mask).sum(1, keepdim=True)
    return torch.where(mask, total / mask.sum(1, keepdim=True).clamp(min=1), 0.0)


LogRatio = Callable[[Tensor, Tensor, Tensor], Tensor]
RATIOS: dict[str, LogRatio] = {"token": token_log_ratio, "sequence": sequence_log_ratio}


# --- surrogates: (log_ratio, logprobs, advantages, clip_low, clip_high) -> objective (B, T) ------------


def clip(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """min(ratio · A, clip(ratio, 1 - clip_low, 1 + clip_high) · A): PPO, arXiv:1707.06347, eq. 7.

    Different clip_low and clip_high: DAPO's clip-higher, arXiv:2503.14476.
    """
    ratio = exp_with_knee(log_ratio, RATIO_KNEE)
    return torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def weighted_logprob(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """sg(clip(ratio)) · A · log pi: CISPO, arXiv:2506.13585, eq. 4. Clipped tokens keep their gradient."""
    ratio = exp_with_knee(log_ratio.detach(), RATIO_KNEE).clamp(1 - clip_low, 1 + clip_high)
    return ratio * advantages * logprobs


def unclipped(
    log_ratio: Tensor, logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """ratio · A, importance-weighted policy gradient; REINFORCE's A · grad log pi where old = current."""
    return exp_with_knee(log_ratio, RATIO_KNEE) * advantages


Surrogate = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]
SURROGATES: dict[str, Surrogate] = {"clip": clip, "weighted_logprob": weighted_logprob, "none": unclipped}


# --- what the clip changes: (log_ratio, advantages, clip_low, clip_high) -> (B, T) bool ------------------


def held_back(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Of ``clip``: the ratio is out of bounds where the advantage pushes it, so no gradient is left."""
    ratio = exp_with_knee(log_ratio, RATIO_KNEE)
    return ((ratio > 1 + clip_high) & (advantages > 0)) | ((ratio < 1 - clip_low) & (advantages < 0))


def out_of_bounds(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Of ``weighted_logprob``: the weight is a bound instead of the ratio, whatever the advantage's sign."""
    ratio = exp_with_knee(log_ratio, RATIO_KNEE)
    return (ratio > 1 + clip_high) | (ratio < 1 - clip_low)


def nowhere(log_ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """Of ``unclipped``."""
    return torch.zeros_like(log_ratio, dtype=torch.bool)


Clipped = Callable[[Tensor, Tensor, float, float], Tensor]
CLIPPED: dict[str, Clipped] = {"clip": held_back, "weighted_logprob": out_of_bounds, "none": nowhere}


# --- KL estimators: (logprobs, ref_logprobs, knee) -> nats a token (B, T) ------------------------------


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor, knee: float) -> Tensor:
    """log pi - log pi_ref: unbiased value, but an expected gradient of 0 as a loss (use it in the reward)."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor, knee: float) -> Tensor:
    """(log pi - log pi_ref)² / 2: biased value, unbiased gradient of KL(pi || pi_ref) on policy."""
    return (logprobs - ref_logprobs).square() / 2


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, knee: float) -> Tensor:
    """pi_ref/pi - log(pi_ref/pi) - 1 >= 0: arXiv:2402.03300, eq. 4; exact up to ``knee``, then linear.

    Clamping the value at 10, as some do, has no gradient where pi_ref/pi > 13.6, just where pull is wanted.
    Here the slope stays e^knee - 1 in size. expm1 keeps small log-ratios accurate in float32.
    """
    log_ratio = ref_logprobs - logprobs
    below = log_ratio.clamp(max=knee)
    beyond = math.expm1(knee) * (1.0 + log_ratio - knee) - knee
    return torch.where(log_ratio < knee, below.expm1() - below, beyond)


KlEstimator = Callable[[Tensor, Tensor, float], Tensor]
KL_ESTIMATORS: dict[str, KlEstimator] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


# --- aggregation ---------------------------------------------------------------------------------------


class Totals(NamedTuple):
    """What a loss is divided by, over all micro-batches and ranks, fixed before the first backward."""

    completions: float  # rows with at least one token that trains
    tokens: float  # tokens that train

    @classmethod
    def of(cls, mask: Tensor) -> Totals:
        return cls(float(mask.any(1).sum()), float(mask.sum()))


def sequence_mean(mask: Tensor, totals: Totals, max_tokens: int, dtype: torch.dtype) -> Tensor:
    """Mean over a completion's own tokens, then over completions: GRPO, arXiv:2402.03300, eq. 3."""
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    return mask.to(dtype) / (lengths * max(totals.completions, 1.0))


def token_mean(mask: Tensor, totals: Totals, max_tokens: int, dtype: torch.dtype) -> Tensor:
    """Mean over all tokens: DAPO, arXiv:2503.14476, eq. 8."""
    return mask.to(dtype) / max(totals.tokens, 1.0)


def constant(mask: Tensor, totals: Totals, max_tokens: int, dtype: torch.dtype) -> Tensor:
    """Sum over tokens / (completions · max_tokens): Dr. GRPO, arXiv:2503.20783; no length bias."""
    return mask.to(dtype) / (max(totals.completions, 1.0) * max_tokens)


Aggregation = Callable[[Tensor, Totals, int, torch.dtype], Tensor]
"""(mask, totals, max_completion_tokens, dtype) -> weights (B, T); a loss is sum(weights · per_token)."""
AGGREGATIONS: dict[str, Aggregation] = {
    "sequence_mean": sequence_mean,
    "token_mean": token_mean,
    "constant": constant,
}


# --- sampler correction and value loss -----------------------------------------------------------------


def truncated_weights(
    trainer_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, cap: float
) -> Tensor:
    """min(pi_trainer / pi_sampler, cap), no gradient, 1 where masked: truncated importance sampling
    (Ionides 2008) a token. Corrects for kernels of the sampler that round differently from the trainer's."""
    log_weight = torch.where(mask, trainer_logprobs.detach() - sampling_logprobs, 0.0)
    return log_weight.clamp(max=math.log(cap)).exp()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, value_clip: float) -> Tensor:
    """max((V - R)², (V_old + clip(V - V_old, ±value_clip) - R)²) / 2 a token, (B, T).

    PPO's clipped value loss (the reference implementation of arXiv:1707.06347; not in the paper's text).
    """
    clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2
