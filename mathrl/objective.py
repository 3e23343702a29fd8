"""The first-order loss of some rows of a batch, and what is measured on the way.

A loss is a sum over rows whose weights were fixed for the whole minibatch, over all ranks, before the first
backward: however the rows are cut into micro-batches, the losses and gradients add up to the same numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mathrl.algorithms import Algorithm
from mathrl.distributed import max_ranks, sum_ranks
from mathrl.losses import (
    AGGREGATIONS,
    KL_ESTIMATORS,
    RATIO_KNEE,
    RATIOS,
    SURROGATES,
    Totals,
    clipped_tokens,
    exp_with_knee,
    kl_k3,
    truncated_weights,
)
from mathrl.types import Batch, TokenOutputs


class Objective(NamedTuple):
    """The losses of the rows (they add up to the loss), and sums over their tokens for the metrics."""

    row_losses: Tensor  # (B,), with gradient
    sums: dict[str, Tensor]  # scalars without gradient; names that end in "_max" are maxima


def objective(
    algorithm: Algorithm, batch: Batch, outputs: TokenOutputs, totals: Totals, kl_coef: float, correct: bool
) -> Objective:
    """-surrogate + kl_coef · KL(policy || reference), weighted by the algorithm's aggregation.

    ``batch.old_logprobs`` None: the policy has not moved since it sampled, so old = current, no gradient.
    ``correct`` weighs the surrogate (not the KL) by truncated importance weights sampler -> old policy.
    """
    assert batch.advantages is not None, "the batch has no advantages: call algorithm.advantages first"
    mask = batch.loss_mask
    logprobs = torch.where(mask, outputs.logprobs, 0.0)
    current = logprobs.detach()
    old = current if batch.old_logprobs is None else torch.where(mask, batch.old_logprobs, 0.0)
    log_ratio = RATIOS[algorithm.ratio](logprobs, old, mask)
    bounds = (algorithm.clip_low, algorithm.clip_high)
    surrogate = SURROGATES[algorithm.surrogate](log_ratio, logprobs, batch.advantages, *bounds)
    sums = _token_sums(algorithm, batch, log_ratio.detach(), current, old, mask)
    if outputs.entropy is not None:
        sums["entropy"] = torch.where(mask, outputs.entropy.detach(), 0.0).sum()
    if batch.sampling_logprobs is not None:
        sampled = torch.where(mask, batch.sampling_logprobs, 0.0)
        sums |= _sync_sums(old - sampled, mask)
        if correct:
            surrogate = surrogate * truncated_weights(old, sampled, mask, algorithm.correction_cap)
    loss = -surrogate
    if batch.ref_logprobs is not None:
        reference = torch.where(mask, batch.ref_logprobs, 0.0)
        sums["kl_ref"] = kl_k3(current, reference, algorithm.kl_knee).sum()
        sums["kl_knee_frac"] = (reference - current > algorithm.kl_knee).sum()
        if algorithm.kl_place == "loss" and kl_coef > 0:
            estimator = KL_ESTIMATORS[algorithm.kl_estimator]
            loss = loss + kl_coef * estimator(logprobs, reference, algorithm.kl_knee)
    limit = algorithm.max_completion_tokens
    weights = AGGREGATIONS[algorithm.aggregation](mask, totals, limit, loss.dtype)
    return Objective((weights * loss).sum(1), sums)


def _token_sums(
    algorithm: Algorithm, batch: Batch, log_ratio: Tensor, current: Tensor, old: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    assert batch.advantages is not None
    clipped = clipped_tokens(log_ratio, batch.advantages, algorithm.clip_low, algorithm.clip_high)
    return {
        "tokens": mask.sum(),
        "kl_old": kl_k3(current, old, algorithm.kl_knee).sum(),
        "clip_frac": (clipped & mask).sum() if algorithm.surrogate != "none" else mask.new_zeros(()),
        "ratio_max": exp_with_knee(log_ratio, RATIO_KNEE).max(),
    }


def _sync_sums(gap: Tensor, mask: Tensor) -> dict[str, Tensor]:
    weights = torch.where(mask, exp_with_knee(gap, RATIO_KNEE), 0.0)
    return {
        "gap_mean": gap.abs().sum(),
        "gap_max": gap.abs().max(),
        "weight": weights.sum(),
        "weight_square": weights.square().sum(),
    }


class Meter:
    """Adds up the sums of micro-batches, then turns them into metrics over all tokens and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            value = value.double()
            so_far = self._sums.get(name)
            if so_far is None:
                self._sums[name] = value
            else:
                self._sums[name] = torch.maximum(so_far, value) if name.endswith("_max") else so_far + value

    def metrics(self) -> dict[str, float]:
        """Means a token (policy/…, sync/…), maxima, and the effective sample size sync/ess in (0, 1]."""
        names = sorted(self._sums)
        if not names:
            return {}
        stacked = torch.stack([self._sums[n] for n in names])
        summed = dict(zip(names, sum_ranks(stacked).tolist(), strict=True))
        highest = dict(zip(names, max_ranks(stacked).tolist(), strict=True))
        tokens = max(summed.pop("tokens"), 1.0)
        weight, square = summed.pop("weight", 0.0), summed.pop("weight_square", 0.0)
        metrics = {"sync/ess": weight * weight / (tokens * square)} if square else {}
        for name, value in summed.items():
            area = "sync" if name.startswith("gap") else "policy"
            metrics[f"{area}/{name}"] = highest[name] if name.endswith("_max") else value / tokens
        return metrics
