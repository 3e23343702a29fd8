"""The loss of some rows of a batch, its gradient, and what is measured on the way.

A loss is a sum over rows whose weights were fixed for the whole minibatch, over all ranks, before the first
backward: however the rows are cut into micro-batches, the losses and gradients add up to the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from mathrl.algorithms.losses import (
    AGGREGATIONS,
    CLIPPED,
    KL_ESTIMATORS,
    RATIO_KNEE,
    RATIOS,
    SURROGATES,
    Totals,
    exp_with_knee,
    kl_k3,
    truncated_weights,
)
from mathrl.algorithms.table import Algorithm
from mathrl.config import Config
from mathrl.distributed.agreement import together
from mathrl.distributed.collectives import gather, sum_ranks
from mathrl.distributed.group import alone
from mathrl.errors import NonFiniteError
from mathrl.training.batch import minibatches, places_of
from mathrl.training.micro_batching import MicroBatches
from mathrl.types import Batch, TokenOutputs

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


class KlController:
    """Adapts the KL coefficient to hold a target, arXiv:1909.08593, section 2.2; gain 0.1 a step.

    coef <- coef · (1 + 0.1 · clip(kl / target - 1, ±0.2)); target 0 keeps it fixed.
    """

    def __init__(self, coef: float, target: float):
        self.coef, self.target = coef, target

    def observe(self, kl: float) -> None:
        if self.target > 0:
            self.coef *= 1.0 + 0.1 * min(max(kl / self.target - 1.0, -0.2), 0.2)


class RowLosses(NamedTuple):
    """The losses of the rows (they add up to the loss), and sums over their tokens for the metrics."""

    losses: Tensor  # (B,), with gradient
    sums: dict[str, Tensor]  # scalars without gradient; names that end in "_max" are maxima
    means: dict[str, Tensor]  # (B,) over a row's own tokens, for the median row; NaN of a row without any


class PolicyLoss:
    """-surrogate + kl_coef · KL(policy || reference), weighted by the algorithm's aggregation.

    Args:
        correct: weigh the surrogate (not the KL) by truncated importance weights sampler -> old policy.
    """

    def __init__(self, config: Config, algorithm: Algorithm, *, correct: bool):
        self.config, self.algorithm, self.correct = config, algorithm, correct
        self.micro_batches = MicroBatches(config.update.micro_batch_tokens)
        self.kl = KlController(algorithm.kl_coef, algorithm.kl_target)

    def rows(self, batch: Batch, outputs: TokenOutputs, totals: Totals) -> RowLosses:
        """The loss of every row.

        ``batch.old_logprobs`` None: the policy has not moved since it sampled, so old = current, detached.
        """
        assert batch.advantages is not None, "the batch has no advantages: call algorithm.advantages first"
        algorithm, mask = self.algorithm, batch.loss_mask
        logprobs = torch.where(mask, outputs.logprobs, 0.0)
        current = logprobs.detach()
        old = current if batch.old_logprobs is None else torch.where(mask, batch.old_logprobs, 0.0)
        log_ratio = RATIOS[algorithm.ratio](logprobs, old, mask)
        bounds = (algorithm.clip_low, algorithm.clip_high)
        surrogate = SURROGATES[algorithm.surrogate](log_ratio, logprobs, batch.advantages, *bounds)
        sums = _token_sums(algorithm, batch, log_ratio.detach(), current, old, mask)
        if outputs.entropy is not None:
            sums["entropy"] = _sum(torch.where(mask, outputs.entropy.detach(), 0.0))
        if batch.sampling_logprobs is not None:
            sampled = torch.where(mask, batch.sampling_logprobs, 0.0)
            sums |= _sync_sums(old - sampled, mask)
            if self.correct:
                surrogate = surrogate * truncated_weights(old, sampled, mask, algorithm.correction_cap)
        loss, means = -surrogate, {}
        if batch.ref_logprobs is not None:
            reference = torch.where(mask, batch.ref_logprobs, 0.0)
            kl = kl_k3(current, reference, algorithm.kl_knee).sum(1, dtype=torch.float64)
            sums["kl_ref"] = kl.sum()
            means["kl_ref"] = kl / mask.sum(1)  # one row that runs away can make most of the sum
            sums["kl_knee_frac"] = (reference - current > algorithm.kl_knee).sum()
            if algorithm.kl_place == "loss" and self.kl.coef > 0:
                estimator = KL_ESTIMATORS[algorithm.kl_estimator]
                loss = loss + self.kl.coef * estimator(logprobs, reference, algorithm.kl_knee)
        limit = algorithm.max_completion_tokens
        weights = AGGREGATIONS[algorithm.aggregation](mask, totals, limit, loss.dtype)
        return RowLosses((weights * loss).sum(1), sums, means)

    def backward(self, policy: Policy, batch: Batch, meter: Meter, totals: Totals | None = None) -> Tensor:
        """Add the gradient to the adapter's, a micro-batch at a time; this rank's share of the loss, float64.

        ``totals`` None: those of the batch over all ranks. A micro-batch that runs out of memory is halved;
        the result is the same.

        Raises:
            NonFiniteError: on all ranks, naming the places of the rows whose loss is not finite.
            UserError: on all ranks; not even one completion fits in memory.
        """
        whole = totals or global_totals(batch)
        loss = torch.zeros((), dtype=torch.float64, device=batch.loss_mask.device)

        def add(rows: Tensor, part: Batch) -> None:
            outputs = policy.logprobs(part, entropy=True, temperature=self.config.rollout.temperature)
            losses, sums, means = self.rows(part, outputs, whole)
            total = losses.sum()
            if not torch.isfinite(total):
                bad = (~losses.isfinite()).nonzero().flatten().tolist()
                raise NonFiniteError("the loss is not finite", places_of(part, bad))
            total.backward()
            meter.add(sums, means)
            loss.add_(total.detach())

        with together("the backward pass"):
            self.micro_batches.run(batch, add, policy.trainable_parameters())
        return loss

    def share(self, totals: Totals) -> float:
        """What a loss with totals of 1 is to be multiplied by, to be one with these totals."""
        weigh, one = AGGREGATIONS[self.algorithm.aggregation], torch.ones(1, 1, dtype=torch.bool)
        limit = self.algorithm.max_completion_tokens
        weight, weight_of_one = (weigh(one, t, limit, torch.float64) for t in (totals, Totals(1.0, 1.0)))
        return float(weight / weight_of_one)

    def rows_to_blame(self, policy: Policy, batch: Batch) -> list[int]:
        """Places of the rows, of all ranks, whose own gradient is not finite."""
        return rows_to_blame(
            batch,
            policy.trainable_parameters(),
            lambda own, totals: self.backward(policy, own, Meter(), totals),
        )


def rows_to_blame(
    batch: Batch, parameters: Sequence[Parameter], backward: Callable[[Batch, Totals], object]
) -> list[int]:
    """Places of the rows, of all ranks, whose own gradient is not finite; leaves no gradients behind.

    Takes a backward a row, so it is for a run that is about to stop. ``backward`` adds a batch's gradients to
    those of ``parameters``.
    """
    bad = []
    with together("looking for the rows to blame"), alone():
        for row in range(batch.num_completions):
            _forget_gradients(parameters)
            own = batch.rows([row])
            backward(own, Totals.of(own.loss_mask))
            if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in parameters):
                bad.append(row)
        _forget_gradients(parameters)
    return sorted(place for places in gather(places_of(batch, bad)) for place in places)


def _forget_gradients(parameters: Sequence[Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def global_totals(batch: Batch) -> Totals:
    """Totals of the batch's loss over all ranks."""
    own = Totals.of(batch.loss_mask)
    both = sum_ranks(torch.tensor(own, dtype=torch.float64, device=batch.loss_mask.device))
    return Totals(*both.tolist())


def training_minibatches(
    batch: Batch, num: int, generator: torch.Generator
) -> Iterator[tuple[Batch, Totals]]:
    """Those of ``minibatches`` in which any token trains on any rank, and the totals of each."""
    for rows in minibatches(batch, num, generator):
        part = batch.rows(rows)
        totals = global_totals(part)
        if totals.tokens:
            yield part, totals


def _token_sums(
    algorithm: Algorithm, batch: Batch, log_ratio: Tensor, current: Tensor, old: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    assert batch.advantages is not None
    bounds = (algorithm.clip_low, algorithm.clip_high)
    clipped = CLIPPED[algorithm.surrogate](log_ratio, batch.advantages, *bounds)
    return {
        "tokens": mask.sum(),
        "kl_old": _sum(kl_k3(old, current, algorithm.kl_knee)),  # KL(old || current)
        "clip_frac": clipped.sum(),  # a masked token's ratio is 1
        "ratio_max": exp_with_knee(log_ratio, RATIO_KNEE).max(),
    }


def _sum(values: Tensor) -> Tensor:
    """In float64: float32 sums would show how the rows are spread over micro-batches and ranks."""
    return values.sum(dtype=torch.float64)


def _sync_sums(gap: Tensor, mask: Tensor) -> dict[str, Tensor]:
    weights = torch.where(mask, exp_with_knee(gap, RATIO_KNEE), 0.0)
    return {
        "gap_mean": _sum(gap.abs()),
        "gap_max": gap.abs().max(),
        "weight": _sum(weights),
        "weight_square": _sum(weights.square()),
    }


class Meter:
    """Adds up the sums of micro-batches, then turns them into metrics over all tokens and ranks.

    Of what is told a row, the median over all rows, as ``<name>_median``.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, list[Tensor]] = {}

    def add(self, sums: dict[str, Tensor], rows: Mapping[str, Tensor]) -> None:
        for name, values in rows.items():
            self._rows.setdefault(name, []).append(values)
        for name, value in sums.items():
            value = value.double()
            so_far = self._sums.get(name)
            if so_far is None:
                self._sums[name] = value
            else:
                self._sums[name] = torch.maximum(so_far, value) if name.endswith("_max") else so_far + value

    def metrics(self) -> dict[str, float]:
        """Means a token (policy/…, sync/…), maxima, and the effective sample size sync/ess in (0, 1].

        A rank without rows has measured nothing, and knows the others' all the same.
        """
        names = sorted(self._sums)
        own = torch.stack([self._sums[n] for n in names]).tolist() if names else []
        found = gather(dict(zip(names, own, strict=True)))
        rows = gather({name: torch.cat(values).tolist() for name, values in self._rows.items()})
        everywhere = {name: [part[name] for part in found if name in part] for part in found for name in part}
        totals = {
            name: max(values) if name.endswith("_max") else sum(values) for name, values in everywhere.items()
        }
        tokens = max(totals.pop("tokens", 0.0), 1.0)
        weight, square = totals.pop("weight", 0.0), totals.pop("weight_square", 0.0)
        metrics = {"sync/ess": weight * weight / (tokens * square)} if square else {}
        for name in sorted(totals):
            area = "sync" if name.startswith("gap") else "policy"
            metrics[f"{area}/{name}"] = totals[name] if name.endswith("_max") else totals[name] / tokens
        for name in sorted({name for part in rows for name in part}):
            values = [v for part in rows for v in part.get(name, []) if not math.isnan(v)]
            if values:
                metrics[f"policy/{name}_median"] = median(values)
        return metrics
