"""The loss and its gradient once more: NumPy, float64, loops over completions and tokens, no autograd.

Written from the papers' formulas, sharing no code with mathrl.algorithms.losses; gradients are
derived by hand.
"""

from __future__ import annotations

import math

import numpy as np

KNEE_RATIO = 20.0


def soft_exp(x: float, knee: float) -> tuple[float, float]:
    """exp up to the knee, tangent beyond: (value, slope)."""
    if x <= knee:
        return math.exp(x), math.exp(x)
    return math.exp(knee) * (1 + x - knee), math.exp(knee)


def kl_term(name: str, logp: float, ref: float, knee: float) -> tuple[float, float]:
    """(value, d value / d logp)."""
    d = logp - ref
    if name == "k1":
        return d, 1.0
    if name == "k2":
        return d * d / 2, d
    value, slope = soft_exp(-d, knee)
    return (math.expm1(-d) if -d <= knee else value - 1) + d, 1.0 - slope


def surrogate_term(
    name: str, log_ratio: float, logp: float, adv: float, low: float, high: float
) -> tuple[float, float, float]:
    """(value, d value / d log_ratio, d value / d logp with the ratio held)."""
    ratio, slope = soft_exp(log_ratio, KNEE_RATIO)
    clipped = min(max(ratio, 1 - low), 1 + high)
    if name == "weighted_logprob":
        return clipped * adv * logp, 0.0, clipped * adv
    if name == "none":
        return ratio * adv, slope * adv, 0.0
    if ratio * adv <= clipped * adv:
        return ratio * adv, slope * adv, 0.0
    return clipped * adv, 0.0, 0.0


def loss_and_gradient(
    row, logp, old, mask, adv, *, ref=None, kl_coef=0.0, sampled=None, cap=2.0, max_tokens=1
) -> tuple[float, np.ndarray]:
    """``row``: an Algorithm, read for its names only. Arrays (B, T)."""
    num_rows = sum(bool(m.any()) for m in mask)
    num_tokens = int(mask.sum())
    total, gradient = 0.0, np.zeros_like(logp)
    for b in range(len(logp)):
        places = [t for t in range(logp.shape[1]) if mask[b, t]]
        if not places:
            continue
        n = len(places)
        log_ratios = {t: logp[b, t] - old[b, t] for t in places}
        mean_log_ratio = sum(log_ratios.values()) / n
        for t in places:
            weight = {
                "sequence_mean": 1 / (n * num_rows),
                "token_mean": 1 / num_tokens,
                "constant": 1 / (num_rows * max_tokens),
            }[row.aggregation]
            if sampled is not None:
                correction = min(math.exp(old[b, t] - sampled[b, t]), cap)
            else:
                correction = 1.0
            x = mean_log_ratio if row.ratio == "sequence" else log_ratios[t]
            bounds = (row.clip_low, row.clip_high)
            value, by_ratio, by_logp = surrogate_term(row.surrogate, x, logp[b, t], adv[b, t], *bounds)
            total -= weight * correction * value
            gradient[b, t] -= weight * correction * by_logp
            for s in places if row.ratio == "sequence" else [t]:
                gradient[b, s] -= weight * correction * by_ratio / (n if row.ratio == "sequence" else 1)
            if ref is not None and row.kl_place == "loss":
                kl, slope = kl_term(row.kl_estimator, logp[b, t], ref[b, t], row.kl_knee)
                total += weight * kl_coef * kl
                gradient[b, t] += weight * kl_coef * slope
    return total, gradient
