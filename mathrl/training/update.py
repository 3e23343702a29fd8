"""Update rules: (policy, batch) -> metrics. First order (AdamW) here, TRPO in trust_region_update.py.

The loss is divided by totals of the whole minibatch over all ranks, so micro-batches are only about memory.
A loss or gradient that is not finite stops the run before the optimiser moves anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mathrl.algorithms.table import Algorithm
from mathrl.config import Config
from mathrl.distributed import sum_gradients, sum_ranks
from mathrl.errors import NonFiniteError
from mathrl.policy.value import ValueModel
from mathrl.training.batch import minibatches
from mathrl.training.objective import Meter, PolicyLoss, naming_rows
from mathrl.training.trust_region_update import TrustRegion
from mathrl.training.value_update import ValueUpdate
from mathrl.types import Batch, derive_seed

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


class Update(Protocol):
    """One training step's change of the policy."""

    @property
    def kl_coef(self) -> float:
        """The KL coefficient in force: it adapts where algorithm.kl_target is set."""
        ...

    def __call__(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """Change the policy once (or several times) on the batch.

        Raises:
            NonFiniteError: before anything was changed by the offending optimiser step.
        """
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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


class FirstOrder:
    """AdamW on the adapter: num_epochs passes of num_minibatches steps, gradients clipped by their norm."""

    def __init__(self, config: Config, loss: PolicyLoss, policy: Policy, critic: ValueUpdate | None = None):
        cfg = config.update
        self.config, self.loss, self.critic = config, loss, critic
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
        return self.loss.kl.coef

    def __call__(self, policy: Policy, batch: Batch) -> dict[str, float]:
        cfg = self.config.update
        metrics = self.loss.algorithm.reward_metrics(batch, self.kl_coef)
        if self.critic:
            metrics |= self.critic.learn(batch)
        self.num_calls += 1
        if self.critic and self.critic.alone:
            return metrics
        rate = learning_rate(self.config, self.num_calls - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed = derive_seed(self.config.run.seed, "minibatches", self.num_calls)
        shuffle = torch.Generator().manual_seed(seed)
        meter, steps = Meter(), []
        for _ in range(cfg.num_epochs):
            for rows in minibatches(batch, cfg.num_minibatches, shuffle):
                with naming_rows(rows):
                    steps.append(self._step(policy, batch.rows(rows), meter))
        metrics |= meter.metrics() | {n: sum(s[n] for s in steps) / len(steps) for n in steps[0]}
        metrics["policy/learning_rate"] = rate
        if self.loss.algorithm.kl_coef > 0:
            metrics["policy/kl_coef"] = self.kl_coef
            self.loss.kl.observe(metrics["policy/kl_ref"])
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "num_calls": self.num_calls,
            "kl_coef": self.kl_coef,
            "critic": self.critic.state_dict() if self.critic else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_calls = state["num_calls"]
        self.loss.kl.coef = state["kl_coef"]
        if self.critic:
            self.critic.load_state_dict(state["critic"])

    def _step(self, policy: Policy, batch: Batch, meter: Meter) -> dict[str, float]:
        """One optimiser step on a minibatch."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss.backward(policy, batch, meter)
        sum_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.update.max_grad_norm))
        if not math.isfinite(norm):
            raise NonFiniteError("the gradient is not finite", self.loss.rows_to_blame(policy, batch))
        self.optimizer.step()
        return {"policy/loss": float(sum_ranks(loss)), "policy/grad_norm": norm}
