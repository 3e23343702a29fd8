"""Update rules: (policy, batch) -> metrics. First order (AdamW) here, TRPO in trust_region_update.py.

The loss is divided by totals of the whole minibatch over all ranks, so micro-batches are only about memory.
A loss or gradient that is not finite stops the run before the optimiser moves anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mathrl.algorithms.losses import Totals
from mathrl.algorithms.table import Algorithm
from mathrl.config import Config
from mathrl.distributed.collectives import sum_gradients, sum_ranks
from mathrl.errors import NonFiniteError
from mathrl.policy.value import ValueModel
from mathrl.training.objective import Meter, PolicyLoss, global_totals, training_minibatches
from mathrl.training.trust_region_update import TrustRegion
from mathrl.training.update_rule import Made, Update
from mathrl.training.value_update import ValueUpdate
from mathrl.types import Batch, derive_seed

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


def make_update(config: Config, algorithm: Algorithm, policy: Policy, *, engine_exact: bool = True) -> Update:
    """The algorithm's update rule on the policy's adapter, with a value model where it needs one.

    ``engine_exact``: the engine's logprobs are the trainer's own, so by default nothing is corrected, unless
    top_p or top_k make the sampler another distribution than the trainer's.
    """
    exact = engine_exact and config.rollout.top_p == 1.0 and config.rollout.top_k == 0
    correct = not exact if algorithm.correction is None else algorithm.correction
    loss = PolicyLoss(config, algorithm, correct=correct)
    critic = None
    if algorithm.needs_values:
        expected = 0.5 * (config.reward.correct + config.reward.wrong)
        model = ValueModel(policy, config.algorithm.value_rank, config.run.seed, initial=expected)
        critic = ValueUpdate(config, model)
        policy.value_model = model
    if algorithm.update_rule == "trust_region":
        return TrustRegion(config, loss, policy, critic)
    return FirstOrder(config, loss, policy, critic)


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


class FirstOrder(Update):
    """AdamW on the adapter: num_epochs passes of num_minibatches steps, gradients clipped by their norm."""

    def __init__(self, config: Config, loss: PolicyLoss, policy: Policy, critic: ValueUpdate | None = None):
        super().__init__(config, loss, policy, critic)
        cfg = config.update
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=cfg.learning_rate,
            betas=(cfg.beta1, cfg.beta2),
            weight_decay=cfg.weight_decay,
            fused=self.parameters[0].is_cuda,
        )

    def move(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """``num_epochs`` × ``num_minibatches`` optimiser steps; metrics are means over them.

        A minibatch in which no token trains makes none: the optimiser would move along its momentum alone.
        """
        cfg, rate = self.config.update, self._set_learning_rate()
        seed = derive_seed(self.config.run.seed, "minibatches", self.num_calls)
        shuffle = torch.Generator().manual_seed(seed)
        meter, steps = Meter(), []
        for _ in range(cfg.num_epochs):
            for part, totals in training_minibatches(batch, cfg.num_minibatches, shuffle):
                steps.append(self._step(policy, part, meter, totals))
        means = {n: sum(s[n] for s in steps) / len(steps) for n in steps[0]}
        return meter.metrics() | means | {"policy/learning_rate": rate}

    def move_along(self, made: Made) -> dict[str, float]:
        """One optimiser step; the gradient is scaled to what ``move`` would have made."""
        rate, share = self._set_learning_rate(), self.loss.share(global_totals(made.batch))
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(share)
        measured = self._follow(made.policy, made.batch, made.loss * share)
        return made.meter.metrics() | measured | {"policy/learning_rate": rate}

    def state_dict(self) -> dict[str, Any]:
        """With the optimiser's moments."""
        return super().state_dict() | {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])

    def _set_learning_rate(self) -> float:
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _step(self, policy: Policy, batch: Batch, meter: Meter, totals: Totals) -> dict[str, float]:
        """One optimiser step on a minibatch."""
        self.optimizer.zero_grad(set_to_none=True)
        return self._follow(policy, batch, self.loss.backward(policy, batch, meter, totals))

    def _follow(self, policy: Policy, batch: Batch, loss: Tensor) -> dict[str, float]:
        """The optimiser's step along the ranks' gradients."""
        sum_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.update.max_grad_norm))
        if not math.isfinite(norm):
            raise NonFiniteError("the gradient is not finite", self.loss.rows_to_blame(policy, batch))
        self.optimizer.step()
        return {"policy/loss": float(sum_ranks(loss)), "policy/grad_norm": norm}
