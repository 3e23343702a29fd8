"""What an algorithm is: a row of names of pure functions, and how they make advantages of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mathrl.algorithms.advantages import (
    COMPLETION_ADVANTAGES,
    GROUP_ADVANTAGES,
    at_tokens,
    gae,
    last_token,
    overlong_penalty,
    whiten,
)
from mathrl.algorithms.losses import KL_ESTIMATORS
from mathrl.distributed.collectives import sum_ranks
from mathrl.types import Batch, Group

KNOBS = (
    "advantage",
    "ratio",
    "surrogate",
    "clip_low",
    "clip_high",
    "aggregation",
    "kl_coef",
    "kl_estimator",
    "kl_place",
    "select",
    "overlong_buffer",
    "whiten_advantages",
)
"""Fields that a row sets and a recipe may override one by one."""

FIELD = {"select": "selection"}  # the recipe's word, where a method has it already


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A row. Names refer to the dictionaries of functions in advantages.py and losses.py."""

    name: str
    paper: str
    advantage: str = "group_norm"
    ratio: str = "token"
    surrogate: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: str = "sequence_mean"
    kl_coef: float = 0.0
    kl_estimator: str = "k3"
    kl_place: Literal["loss", "reward"] = "loss"
    selection: Literal["all", "rewards_differ"] = "all"
    overlong_buffer: int | None = 0  # tokens; None: a fifth of the completion limit
    whiten_advantages: bool = False
    update_rule: Literal["first_order", "trust_region"] = "first_order"
    # filled in by resolve_algorithm() from the recipe
    kl_knee: float = 10.0
    kl_target: float = 0.0
    gamma: float = 1.0
    gae_lambda: float = 1.0
    correction: bool | None = None
    correction_cap: float = 2.0
    max_completion_tokens: int = 0
    updates_per_rollout: int = 1

    @property
    def needs_old(self) -> bool:
        """Whether old logprobs take their own pass; with one update a rollout its own forward gives them."""
        return self.updates_per_rollout > 1 or (self.kl_coef > 0 and self.kl_place == "reward")

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    @property
    def needs_values(self) -> bool:
        return self.advantage == "gae"

    @property
    def needs_whole_step(self) -> str:
        """Why no group can train before the last one of its step is sampled; empty where each can."""
        reasons = {
            "a trust-region step is one step of the whole batch": self.update_rule != "first_order",
            "the value model learns first, from the whole batch": self.needs_values,
            "later updates of a rollout follow earlier ones of all of it": self.updates_per_rollout > 1,
            f"advantage {self.advantage} compares all completions of a step": self.advantage
            not in (*GROUP_ADVANTAGES, "reward", "gae"),
            "whitened advantages are those of the whole step": self.whiten_advantages,
        }
        return next((why for why, so in reasons.items() if so), "")

    @property
    def refills(self) -> bool:
        """Whether dropped groups are made up for by further rollouts."""
        return self.selection == "rewards_differ"

    @property
    def knobs(self) -> dict[str, Any]:
        """The resolved knobs by the names a recipe uses."""
        return {knob: getattr(self, FIELD.get(knob, knob)) for knob in KNOBS}

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that train; ``rewards_differ`` drops those whose rewards are all equal (DAPO, eq. 8)."""
        if self.selection == "all":
            return list(groups)
        return [g for g in groups if len(set(g.rewards)) > 1]

    def advantages(self, batch: Batch, kl_coef: float | None = None) -> Batch:
        """The batch with ``advantages`` (and, for gae, ``returns``): (B, T), 0 where nothing was sampled.

        ``kl_coef`` replaces the row's where the coefficient adapts.
        """
        mask = batch.sampled
        rewards = batch.rewards + self.overlong(batch)
        penalty = self.kl_penalty(batch, self.kl_coef if kl_coef is None else kl_coef)
        if self.advantage != "gae":
            advantage = COMPLETION_ADVANTAGES[self.advantage]
            per_completion = advantage(rewards - penalty.sum(1), batch.group_ids, sum_ranks)
            return batch.add(advantages=self._whitened(at_tokens(per_completion, mask), mask))
        assert batch.values is not None, "gae needs values: annotate(…, values=True)"
        token_rewards = torch.where(last_token(mask), rewards[:, None], 0.0) - penalty
        advantages, returns = gae(token_rewards, batch.values, mask, self.gamma, self.gae_lambda)
        return batch.add(advantages=self._whitened(advantages, mask), returns=returns)

    def overlong(self, batch: Batch) -> Tensor:
        """(B,) soft overlong penalty, 0 without one."""
        if not self.overlong_buffer:
            return torch.zeros_like(batch.rewards)
        lengths = batch.lengths.to(batch.rewards.dtype)
        return overlong_penalty(lengths, self.max_completion_tokens, self.overlong_buffer)

    def kl_penalty(self, batch: Batch, kl_coef: float) -> Tensor:
        """(B, T) what KL(old || reference) costs each token's reward; 0 where the KL is in the loss."""
        if self.kl_place == "loss" or kl_coef == 0:
            return torch.zeros(batch.sampled.shape, dtype=batch.rewards.dtype, device=batch.rewards.device)
        assert batch.old_logprobs is not None
        assert batch.ref_logprobs is not None
        kl = KL_ESTIMATORS[self.kl_estimator](batch.old_logprobs, batch.ref_logprobs, self.kl_knee)
        return torch.where(batch.sampled, kl_coef * kl, 0.0).to(batch.rewards.dtype)

    def reward_metrics(self, batch: Batch, kl_coef: float) -> dict[str, float]:
        """Means a completion, over all ranks, of what the algorithm itself adds to the rewards."""
        added = {}
        if self.overlong_buffer:
            added["reward/overlong"] = self.overlong(batch)
        if self.kl_place == "reward" and kl_coef > 0:
            added["reward/kl"] = -self.kl_penalty(batch, kl_coef).sum(1)
        if not added:
            return {}
        sums = torch.stack([torch.ones_like(batch.rewards), *added.values()]).double().sum(1)
        count, *totals = sum_ranks(sums).tolist()
        return {name: total / count for name, total in zip(added, totals, strict=True)}

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        return whiten(advantages, mask, sum_ranks) if self.whiten_advantages else advantages
