"""The stage that trains a reward model: pairs -> steps of AdamW, held-out looks, the best weights kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mathrl.config import Config
from mathrl.errors import NonFiniteError
from mathrl.training.micro_batching import fits
from mathrl.training.reward_model_data import EncodedPair, PairSets, balanced_batches
from mathrl.training.reward_model_files import RewardModel
from mathrl.training.reward_model_loss import PairScores, RankingLoss
from mathrl.training.sft_optimizer import warmup_cosine
from mathrl.types import derive_seed

Metrics = dict[str, float]
AfterStep = Callable[[int, Metrics, bool], None]
"""Called as (steps done, metrics, whether the weights are the best so far)."""


@dataclass
class Best:
    """The look at the held-out pairs with the lowest loss."""

    step: int = 0
    loss: float = math.inf
    accuracy: float = math.nan


class RewardModelFit:
    """Trains a reward model on pairs; ``run`` goes from ``steps_done`` to the last step.

    Equal seeds give equal weights, with interruptions (``state``, ``restore``) or without.
    """

    def __init__(self, config: Config, model: RewardModel, pairs: PairSets) -> None:
        self.config, self.model, self.pairs = config, model, pairs
        own, update = config.reward_model, config.update
        scores = PairScores(
            model.classifier,
            model.head,
            gradient_checkpointing=update.gradient_checkpointing,
            compile_layers=update.compile is True and model.head.device.type == "cuda",
        )
        self.loss = RankingLoss(scores, own.center_coef, update.micro_batch_tokens)
        self.optimizer = torch.optim.AdamW(
            model.parameters, lr=own.learning_rate, weight_decay=own.weight_decay, fused=True
        )
        self.lengths = [pair.num_tokens for pair in pairs.train]
        self.steps_done, self.tokens = 0, 0
        self.best = Best()
        self.best_weights: dict[str, Tensor] = {}
        self._epoch, self._batches = -1, list[list[int]]()

    @property
    def steps_an_epoch(self) -> int:
        return max(1, round(len(self.lengths) / self.config.reward_model.batch_pairs))

    @property
    def num_steps(self) -> int:
        return self.steps_an_epoch * self.config.reward_model.num_epochs

    def run(self, after_step: AfterStep, should_stop: Callable[[], bool]) -> None:
        """Step until the last step, or until ``should_stop`` says so after one.

        Raises:
            NonFiniteError: a loss or gradient is not finite; nothing was changed by that step.
        """
        every = self.config.reward_model.eval_every_steps
        while self.steps_done < self.num_steps and not should_stop():
            start = time.perf_counter()
            metrics = self.step()
            metrics["time/step_s"] = time.perf_counter() - start
            improved = False
            if self.steps_done % every == 0 or self.steps_done == self.num_steps:
                improved = self._look(metrics)
            after_step(self.steps_done, metrics, improved)

    def step(self) -> Metrics:
        """One optimiser step on the next batch."""
        own = self.config.reward_model
        batch = self._batch(self.steps_done)
        # dropout is LoRA's alone where the recipe has it; else training and scoring are the same function
        self.model.model.train(self.config.lora.dropout > 0)
        loss, scores = self._gradient(batch)
        self.model.model.eval()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters, own.max_grad_norm))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise NonFiniteError(
                f"the reward model's {'gradient' if math.isfinite(loss) else 'loss'} is not finite at step "
                f"{self.steps_done + 1}: lower reward_model.learning_rate"
            )
        rate = own.learning_rate * warmup_cosine(self.steps_done, self.num_steps, own.warmup_fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        self.tokens += sum(pair.num_tokens for pair in batch)
        gaps = scores[:, 0] - scores[:, 1]
        return {
            "ranking/loss": loss,
            "ranking/accuracy": share_ranked(scores),
            "ranking/margin": float(gaps.mean()),
            "ranking/grad_norm": norm,
            "ranking/learning_rate": rate,
            "tokens/trained": float(self.tokens),
        }

    def _gradient(self, batch: Sequence[EncodedPair]) -> tuple[float, Tensor]:
        """Loss and scores of a step; one that does not fit in memory is done anew in smaller parts.

        Raises:
            UserError: a single pair does not fit.
        """
        found: list[tuple[float, Tensor]] = []
        while not fits(lambda: found.append(self.loss.backward(batch))):
            self.optimizer.zero_grad(set_to_none=True)
            self.loss.halve(batch)
        return found[0]

    def scores(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """(n, 2) scores of chosen and rejected with the weights of now."""
        return self.loss.evaluate(pairs)[1]

    def use_best(self) -> None:
        """Go back to the weights of the best look."""
        self.model.restore(self.best_weights)

    def _look(self, metrics: Metrics) -> bool:
        """Add the held-out numbers to the metrics; whether they are the best so far."""
        loss, scores = self.loss.evaluate(self.pairs.held_out)
        metrics |= {"ranking/held_out_loss": loss, "ranking/held_out_accuracy": share_ranked(scores)}
        if not loss < self.best.loss:
            return False
        self.best = Best(self.steps_done, loss, share_ranked(scores))
        self.best_weights = self.model.state()
        return True

    def _batch(self, index: int) -> list[EncodedPair]:
        epoch, place = divmod(index, self.steps_an_epoch)
        if epoch != self._epoch:
            seed = derive_seed(self.config.run.seed, "pairs", epoch)
            self._batches = balanced_batches(self.lengths, self.config.reward_model.batch_pairs, seed)
            self._epoch = epoch
        return [self.pairs.train[i] for i in self._batches[place]]

    def state(self) -> dict[str, Any]:
        """All that the next step and the result depend on, besides configuration and pairs."""
        return {
            "steps_done": self.steps_done,
            "tokens": self.tokens,
            "weights": self.model.state(),
            "optimizer": self.optimizer.state_dict(),
            "best": {"step": self.best.step, "loss": self.best.loss, "accuracy": self.best.accuracy},
            "best_weights": self.best_weights,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        self.steps_done, self.tokens = state["steps_done"], state["tokens"]
        self.model.restore(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = Best(**state["best"])
        self.best_weights = state["best_weights"]


def share_ranked(scores: Tensor) -> float:
    """(n, 2) -> share of pairs whose chosen side scores higher; equal scores count half."""
    gaps = scores[:, 0] - scores[:, 1]
    return float((gaps > 0).double().mean() + 0.5 * (gaps == 0).double().mean())
