"""What every update rule is: reward terms measured, the value model taught, the policy moved, KL observed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mathrl.config import Config
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.training.value_update import ValueUpdate
from mathrl.types import Batch

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


@dataclass(frozen=True, slots=True)
class Made:
    """The gradient of this rank's rows, with totals of 1: it lies in ``grad`` of the policy's parameters."""

    policy: Policy
    batch: Batch  # the rows
    loss: Tensor  # float64, with totals of 1
    meter: Meter


class Update(ABC):
    """One training step's change of the policy.

    Args:
        critic: the value model's share, where the algorithm has one; it learns first, and alone for the
            first ``algorithm.value_warmup_steps``.
    """

    def __init__(self, config: Config, loss: PolicyLoss, policy: Policy, critic: ValueUpdate | None = None):
        self.config, self.loss, self.critic = config, loss, critic
        self.parameters = list(policy.trainable_parameters())
        self.num_calls = 0
        self.num_skipped = 0

    @property
    def kl_coef(self) -> float:
        """The KL coefficient in force: it adapts where algorithm.kl_target is set."""
        return self.loss.kl.coef

    def __call__(self, policy: Policy, batch: Batch, made: Made | None = None) -> dict[str, float]:
        """Change the policy once (or several times) on the batch; what was measured on the way.

        Args:
            made: the batch's gradient, where it lies in the parameters already (overlap.py).

        Raises:
            NonFiniteError: before anything was changed by the offending optimiser step.
        """
        metrics = self.loss.algorithm.reward_metrics(batch, self.kl_coef)
        if self.critic:
            metrics |= self.critic.learn(batch)
        self.num_calls += 1
        if self.critic and self.critic.alone:
            return metrics
        metrics |= self.move(policy, batch) if made is None else self.move_along(made)
        if self.loss.algorithm.kl_coef > 0:
            metrics["policy/kl_coef"] = self.kl_coef
            self.loss.kl.observe(metrics["policy/kl_ref"])
        return metrics

    def skip(self) -> None:
        """A step of the run without anything to learn from: the learning rate's schedule goes on."""
        self.num_skipped += 1

    @property
    def step(self) -> int:
        """0-based number of the run's step under way, skipped ones counted."""
        return self.num_calls + self.num_skipped - 1

    @abstractmethod
    def move(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """Move the policy's weights; policy/… metrics."""

    def move_along(self, made: Made) -> dict[str, float]:
        """``move``, where the gradient has been made."""
        raise NotImplementedError(f"{type(self).__name__} makes its gradients itself")

    def state_dict(self) -> dict[str, Any]:
        """All that the next call depends on, besides the weights of the policy."""
        return {
            "num_calls": self.num_calls,
            "num_skipped": self.num_skipped,
            "kl_coef": self.kl_coef,
            "critic": self.critic.state_dict() if self.critic else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``."""
        self.num_calls = state["num_calls"]
        self.num_skipped = state.get("num_skipped", 0)  # states of before did not count them
        self.loss.kl.coef = state["kl_coef"]
        if self.critic:
            self.critic.load_state_dict(state["critic"])
