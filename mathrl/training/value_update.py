"""How the value model learns beside the policy: clipped squared error to the returns, its own AdamW."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mathrl.algorithms.losses import Totals, token_mean, value_loss
from mathrl.config import Config
from mathrl.distributed.agreement import together
from mathrl.distributed.collectives import sum_gradients, sum_ranks
from mathrl.errors import NonFiniteError
from mathrl.policy.value import ValueModel
from mathrl.training.batch import places_of
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import rows_to_blame, training_minibatches
from mathrl.types import Batch, derive_seed


class ValueUpdate:
    """The value model's share of an update: value_epochs passes over a rollout, in as many minibatches."""

    def __init__(self, config: Config, model: ValueModel):
        self.config, self.model = config, model
        self.num_calls = 0
        self.micro_batches = MicroBatches(config.update.micro_batch_tokens)
        self.optimizer = torch.optim.AdamW(
            model.parameters, lr=config.algorithm.value_learning_rate, weight_decay=0.0
        )

    @property
    def alone(self) -> bool:
        """Whether the latest step was one of value_warmup_steps: the policy waits for a useful baseline."""
        return self.num_calls <= self.config.algorithm.value_warmup_steps

    def learn(self, batch: Batch) -> dict[str, float]:
        """Fit the batch's returns; value/… metrics. ``batch.values`` are from before this.

        Raises:
            NonFiniteError: before the offending optimiser step.
        """
        assert batch.values is not None
        assert batch.returns is not None
        explained = explained_variance(batch.values, batch.returns, batch.loss_mask)
        seed = derive_seed(self.config.run.seed, "value minibatches", self.num_calls)
        shuffle = torch.Generator().manual_seed(seed)
        self.num_calls += 1
        steps = []
        for _ in range(self.config.algorithm.value_epochs):
            for part, totals in training_minibatches(batch, self.config.update.num_minibatches, shuffle):
                steps.append(self._step(part, totals))
        means = {name: sum(s[name] for s in steps) / len(steps) for name in steps[0]}
        return means | {"value/explained_variance": explained}

    def _step(self, batch: Batch, totals: Totals) -> dict[str, float]:
        """One optimiser step on the clipped squared error, its mean over the minibatch's tokens."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(batch, totals)
        sum_gradients(self.model.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters, self.config.update.max_grad_norm)
        if not math.isfinite(float(norm)):
            bad = rows_to_blame(batch, self.model.parameters, self._backward)
            raise NonFiniteError("the value model's gradient is not finite", bad)
        self.optimizer.step()
        return {"value/loss": float(sum_ranks(loss)), "value/grad_norm": float(norm)}

    def _backward(self, batch: Batch, totals: Totals) -> Tensor:
        """Add the gradient, a micro-batch at a time; this rank's share of the loss, float64."""
        loss = torch.zeros((), dtype=torch.float64, device=batch.loss_mask.device)

        def add(rows: Tensor, part: Batch) -> None:
            assert part.values is not None
            assert part.returns is not None
            values = self.model(part)
            per_token = value_loss(values, part.values, part.returns, self.config.algorithm.value_clip)
            row_losses = (token_mean(part.loss_mask, totals, 0, per_token.dtype) * per_token).sum(1)
            if not bool(row_losses.isfinite().all()):
                bad = (~row_losses.isfinite()).nonzero().flatten().tolist()
                raise NonFiniteError("the value loss is not finite", places_of(part, bad))
            row_losses.sum().backward()
            loss.add_(row_losses.detach().sum())

        with together("the value model's backward pass"):
            self.micro_batches.run(batch, add, self.model.parameters)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_calls": self.num_calls,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_calls = state["num_calls"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the tokens of all ranks; 0 where returns do not vary.

    1: values predict the returns; 0: no better than their mean; below 0: worse than it.
    """
    target, error = returns[mask].double(), (returns - values)[mask].double()
    count = target.new_tensor(float(target.numel()))
    moments = (count, target.sum(), target.square().sum(), error.sum(), error.square().sum())
    n, t1, t2, e1, e2 = sum_ranks(torch.stack(moments)).tolist()
    if n == 0:
        return 0.0
    total = t2 / n - (t1 / n) ** 2
    return 1.0 - (e2 / n - (e1 / n) ** 2) / total if total > 1e-12 else 0.0
