"""Update rules: (policy, batch) -> metrics. First order (AdamW) here; the trust region is in natural.py.

The loss is divided by totals of the whole minibatch over all ranks, so micro-batches are only about memory.
A loss or gradient that is not finite stops the run before the optimiser moves anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mathrl.algorithms import Algorithm
from mathrl.batch import micro_batches, minibatches
from mathrl.config import Config
from mathrl.distributed import sum_gradients, sum_ranks
from mathrl.errors import NonFiniteError
from mathrl.losses import Totals
from mathrl.objective import Meter, objective
from mathrl.types import Batch, derive_seed

if TYPE_CHECKING:
    from mathrl.policy import Policy


class Update(Protocol):
    """One training step's change of the policy."""

    kl_coef: float  # in force: adapted where algorithm.kl_target is set

    def __call__(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """Change the policy once (or several times) on the batch.

        Raises:
            NonFiniteError: before anything was changed by the offending optimiser step.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class KlController:
    """Adapts the KL coefficient to hold a target, arXiv:1909.08593, section 2.2; gain 0.1 a step.

    coef <- coef · (1 + 0.1 · clip(kl / target - 1, ±0.2)); target 0 keeps it fixed.
    """

    def __init__(self, coef: float, target: float):
        self.coef, self.target = coef, target

    def observe(self, kl: float) -> None:
        if self.target > 0:
            self.coef *= 1.0 + 0.1 * min(max(kl / self.target - 1.0, -0.2), 0.2)


def learning_rate(config: Config, step: int) -> float:
    """Learning rate of a step (0-based): linear warm-up, then constant, or down to 0 at train.num_steps."""
    cfg = config.update
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    rest = config.train.num_steps - cfg.warmup_steps
    done = min((step - cfg.warmup_steps) / rest, 1.0) if rest > 0 else 0.0
    if cfg.schedule == "linear":
        return cfg.learning_rate * (1.0 - done)
    if cfg.schedule == "cosine":
        return cfg.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
    return cfg.learning_rate


def make_update(config: Config, algorithm: Algorithm, policy: Policy, *, engine_exact: bool = True) -> Update:
    """The algorithm's update rule with its optimiser on the policy's adapter.

    ``engine_exact``: the engine's logprobs are the trainer's own, so by default nothing is corrected.
    """
    correct = not engine_exact if algorithm.correction is None else algorithm.correction
    return FirstOrder(config, algorithm, policy, correct=correct)


class FirstOrder:
    """AdamW on the adapter: num_epochs passes of num_minibatches steps, gradients clipped by their norm."""

    def __init__(self, config: Config, algorithm: Algorithm, policy: Policy, *, correct: bool):
        cfg = config.update
        self.config, self.algorithm, self.correct = config, algorithm, correct
        self.kl = KlController(algorithm.kl_coef, algorithm.kl_target)
        self.parameters = list(policy.trainable_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=cfg.learning_rate,
            betas=(cfg.beta1, cfg.beta2),
            weight_decay=cfg.weight_decay,
            fused=self.parameters[0].is_cuda,
        )
        self.num_calls = 0

    @property
    def kl_coef(self) -> float:
        return self.kl.coef

    def __call__(self, policy: Policy, batch: Batch) -> dict[str, float]:
        cfg = self.config.update
        rate = learning_rate(self.config, self.num_calls)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        shuffle = torch.Generator().manual_seed(
            derive_seed(self.config.run.seed, "minibatches", self.num_calls)
        )
        meter, losses, norms = Meter(), [], []
        for _ in range(cfg.num_epochs):
            for rows in minibatches(batch, cfg.num_minibatches, shuffle):
                loss, norm = self._step(policy, batch, rows, meter)
                losses.append(loss)
                norms.append(norm)
        self.num_calls += 1
        metrics = meter.metrics()
        metrics["policy/loss"] = sum(losses) / len(losses)
        metrics["policy/grad_norm"] = sum(norms) / len(norms)
        metrics["policy/learning_rate"] = rate
        if self.algorithm.kl_coef > 0:
            metrics["policy/kl_coef"] = self.kl.coef
            self.kl.observe(metrics["policy/kl_ref"])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "num_calls": self.num_calls,
            "kl_coef": self.kl.coef,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_calls = state["num_calls"]
        self.kl.coef = state["kl_coef"]

    def _step(self, policy: Policy, batch: Batch, rows: Tensor, meter: Meter) -> tuple[float, float]:
        """One optimiser step on these rows: their loss, and the gradient's norm before clipping."""
        minibatch = batch.rows(rows)
        self.optimizer.zero_grad(set_to_none=True)
        loss = accumulate_gradient(
            policy,
            minibatch,
            self.algorithm,
            self.config,
            kl_coef=self.kl.coef,
            correct=self.correct,
            meter=meter,
            row_names=rows,
        )
        sum_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.update.max_grad_norm))
        if not math.isfinite(norm):
            bad = self._rows_to_blame(policy, minibatch)
            self.optimizer.zero_grad(set_to_none=True)
            raise NonFiniteError("the gradient is not finite", [int(rows[r]) for r in bad])
        self.optimizer.step()
        return loss, norm

    def _rows_to_blame(self, policy: Policy, batch: Batch) -> list[int]:
        """Rows whose own gradient is not finite; one backward each, paid only when a run is about to stop."""
        bad = []
        for row in range(batch.num_completions):
            self.optimizer.zero_grad(set_to_none=True)
            accumulate_gradient(
                policy,
                batch.rows([row]),
                self.algorithm,
                self.config,
                kl_coef=self.kl.coef,
                correct=self.correct,
                meter=Meter(),
                row_names=torch.tensor([row]),
                totals=Totals(1.0, float(batch.lengths[row])),
            )
            if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in self.parameters):
                bad.append(row)
        return bad


def accumulate_gradient(
    policy: Policy,
    batch: Batch,
    algorithm: Algorithm,
    config: Config,
    *,
    kl_coef: float,
    correct: bool,
    meter: Meter,
    row_names: Tensor,
    totals: Totals | None = None,
) -> float:
    """Add the gradient of the batch's loss to the adapter's, a micro-batch at a time; the loss of all ranks.

    Raises:
        NonFiniteError: with the ``row_names`` of rows whose loss is not finite.
    """
    totals = totals or global_totals(batch)
    loss = torch.zeros((), dtype=torch.float64, device=batch.loss_mask.device)
    for rows in micro_batches(batch, config.update.micro_batch_tokens):
        part = batch.rows(rows)
        outputs = policy.logprobs(part, entropy=True, temperature=config.rollout.temperature)
        row_losses, sums = objective(algorithm, part, outputs, totals, kl_coef, correct)
        total = row_losses.sum()
        if not torch.isfinite(total):
            bad = (~row_losses.isfinite()).nonzero().flatten().tolist()
            raise NonFiniteError("the loss is not finite", [int(row_names[rows[r]]) for r in bad])
        total.backward()  # type: ignore[no-untyped-call]
        meter.add(sums)
        loss += total.detach()
    return float(sum_ranks(loss))


def global_totals(batch: Batch) -> Totals:
    """Totals of the batch's loss over all ranks."""
    own = Totals.of(batch.loss_mask)
    both = sum_ranks(torch.tensor(own, dtype=torch.float64, device=batch.loss_mask.device))
    return Totals(*both.tolist())
