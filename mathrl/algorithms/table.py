"""ALGORITHMS: each is a row of the pure functions of advantages.py and losses.py, and an update rule.

A knob left unset in the recipe takes the row's value; any can be set by itself. ``resolve_algorithm`` joins
the two and refuses, before a model is loaded, combinations that cannot mean what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mathrl.algorithms.advantages import (
    COMPLETION_ADVANTAGES,
    at_tokens,
    gae,
    last_token,
    overlong_penalty,
    whiten,
)
from mathrl.algorithms.losses import KL_ESTIMATORS
from mathrl.config import AlgorithmConfig, RolloutConfig, UpdateConfig
from mathrl.distributed.collectives import sum_ranks
from mathrl.errors import UserError, did_you_mean
from mathrl.types import Batch, Group

GROUP_ADVANTAGES = ("group_norm", "group_centre", "group_ratio", "leave_one_out")
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
    def refills(self) -> bool:
        """Whether dropped groups are made up for by further rollouts."""
        return self.selection == "rewards_differ"

    @property
    def knobs(self) -> dict[str, Any]:
        """The resolved knobs by the names a recipe uses."""
        return {knob: getattr(self, _FIELD.get(knob, knob)) for knob in KNOBS}

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that train; ``rewards_differ`` drops those whose rewards are all equal (DAPO, eq. 8)."""
        if self.selection == "all":
            return list(groups)
        return [g for g in groups if len(set(g.rewards)) > 1]

    def advantages(self, batch: Batch, kl_coef: float | None = None) -> Batch:
        """The batch with ``advantages`` (and, for gae, ``returns``): (B, T), 0 where masked.

        ``kl_coef`` replaces the row's where the coefficient adapts.
        """
        mask = batch.loss_mask
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
            return torch.zeros(batch.loss_mask.shape, dtype=batch.rewards.dtype, device=batch.rewards.device)
        assert batch.old_logprobs is not None
        assert batch.ref_logprobs is not None
        kl = KL_ESTIMATORS[self.kl_estimator](batch.old_logprobs, batch.ref_logprobs, self.kl_knee)
        return torch.where(batch.loss_mask, kl_coef * kl, 0.0).to(batch.rewards.dtype)

    def reward_metrics(self, batch: Batch, kl_coef: float) -> dict[str, float]:
        """Means a completion, over all ranks, of what the algorithm itself adds to the rewards."""
        added = {}
        if self.overlong_buffer:
            added["reward/overlong"] = self.overlong(batch)
        if self.kl_place == "reward" and kl_coef > 0:
            added["reward/kl"] = -self.kl_penalty(batch, kl_coef).sum(1)
        if not added:
            return {}
        sums = torch.stack([torch.ones_like(batch.rewards), *added.values()]).sum(1)
        count, *totals = sum_ranks(sums.double()).tolist()
        return {name: total / count for name, total in zip(added, totals, strict=True)}

    def _whitened(self, advantages: Tensor, mask: Tensor) -> Tensor:
        return whiten(advantages, mask, sum_ranks) if self.whiten_advantages else advantages


_FIELD = {"select": "selection"}  # the recipe's word, where a method has it already

ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm("grpo", "arXiv:2402.03300", kl_coef=0.04),
        Algorithm("dr_grpo", "arXiv:2503.20783", advantage="group_centre", aggregation="constant"),
        Algorithm(
            "dapo",
            "arXiv:2503.14476",
            clip_high=0.28,
            aggregation="token_mean",
            selection="rewards_differ",
            overlong_buffer=None,
        ),
        Algorithm(
            "rloo",
            "arXiv:2402.14740",
            advantage="leave_one_out",
            surrogate="none",
            aggregation="constant",
            kl_coef=0.05,
            kl_estimator="k1",
            kl_place="reward",
        ),
        Algorithm("maxrl", "arXiv:2602.02710", advantage="group_ratio", aggregation="constant"),
        Algorithm("gspo", "arXiv:2507.18071", ratio="sequence", clip_low=3e-4, clip_high=4e-4),
        Algorithm(
            "cispo",
            "arXiv:2506.13585",
            surrogate="weighted_logprob",
            clip_low=1.0,  # weights are clipped above only
            clip_high=4.0,  # the paper leaves it open; a weight of 5 follows arXiv:2510.13786
            aggregation="token_mean",
        ),
        Algorithm(
            "reinforce",
            "Williams 1992, doi:10.1007/BF00992696",
            advantage="batch_centre",
            surrogate="none",
            aggregation="constant",
        ),
        Algorithm(
            "ppo",
            "arXiv:1707.06347",
            advantage="gae",
            aggregation="token_mean",
            kl_coef=0.05,
            kl_estimator="k1",
            kl_place="reward",
            whiten_advantages=True,
        ),
        Algorithm(
            "trpo",
            "arXiv:1502.05477",
            advantage="group_centre",
            surrogate="none",
            aggregation="token_mean",
            update_rule="trust_region",
        ),
    )
}


def resolve_algorithm(config: AlgorithmConfig, rollout: RolloutConfig, update: UpdateConfig) -> Algorithm:
    """The row ``config.name`` with the recipe's knobs set.

    Raises:
        UserError: an unknown name, or knobs that cannot be combined.
    """
    if config.name not in ALGORITHMS:
        raise UserError(
            f"algorithm.name: no algorithm {config.name!r}; {did_you_mean(config.name, ALGORITHMS)}"
        )
    known = (*COMPLETION_ADVANTAGES, "gae")
    if config.advantage is not None and config.advantage not in known:
        hint = did_you_mean(config.advantage, known)
        raise UserError(f"algorithm.advantage: no advantage {config.advantage!r}; {hint}")
    row = ALGORITHMS[config.name]
    given = {knob: getattr(config, knob) for knob in KNOBS if getattr(config, knob) is not None}
    limit = rollout.max_completion_tokens
    algorithm = replace(
        row,
        **{_FIELD.get(knob, knob): value for knob, value in given.items()},
        kl_knee=config.kl_knee,
        kl_target=config.kl_target,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        correction=config.correction,
        correction_cap=config.correction_cap,
        max_completion_tokens=limit,
        updates_per_rollout=update.num_epochs * update.num_minibatches,
    )
    if algorithm.overlong_buffer is None:
        algorithm = replace(algorithm, overlong_buffer=limit // 5)
    for refused, why in _impossible(algorithm, given, rollout, update):
        if refused:
            raise UserError(f"algorithm {config.name}: {why}")
    return algorithm


def _impossible(
    a: Algorithm, given: dict[str, Any], rollout: RolloutConfig, update: UpdateConfig
) -> list[tuple[bool, str]]:
    """(whether it is the case, why it cannot be and what to do)."""
    alone = rollout.group_size < 2
    trust_region = a.update_rule == "trust_region"
    return [
        (
            alone and a.advantage in GROUP_ADVANTAGES,
            f"advantage {a.advantage} compares the completions of a group: set rollout.group_size >= 2",
        ),
        (
            alone and a.selection == "rewards_differ",
            "select rewards_differ drops every group of one completion: set rollout.group_size >= 2",
        ),
        (
            a.kl_coef > 0 and a.kl_estimator == "k1" and a.kl_place == "loss",
            "kl_estimator k1 in the loss has an expected gradient of zero: use k2 or k3, or kl_place reward",
        ),
        (
            a.kl_target > 0 and a.kl_coef == 0,
            "kl_target adapts kl_coef by factors, and kl_coef is 0: set kl_coef > 0",
        ),
        (
            a.ratio == "sequence" and a.advantage == "gae",
            "ratio sequence has one ratio a completion but gae an advantage a token: use ratio token",
        ),
        (
            a.surrogate == "none" and ("clip_low" in given or "clip_high" in given),
            "surrogate none never clips: leave clip_low and clip_high unset, or set surrogate clip",
        ),
        (
            a.surrogate != "weighted_logprob" and a.clip_low >= 1.0,
            f"clip_low {a.clip_low} leaves ratios unclipped below: choose less than 1",
        ),
        (
            trust_region and a.surrogate != "none",
            f"the trust region replaces clipping, so surrogate {a.surrogate} cannot be used: leave it unset",
        ),
        (
            trust_region and a.ratio == "sequence",
            "the trust region's surrogate is a token's ratio: use ratio token",
        ),
        (
            trust_region and a.updates_per_rollout > 1,
            "a trust-region step uses the whole rollout once: set update.num_epochs and num_minibatches to 1",
        ),
        (
            trust_region and update.compile,
            "a trust-region step differentiates twice, compiled layers only once: set update.compile false",
        ),
        (
            bool(a.overlong_buffer) and (a.overlong_buffer or 0) >= rollout.max_completion_tokens,
            f"overlong_buffer {a.overlong_buffer} must be less than rollout.max_completion_tokens "
            f"{rollout.max_completion_tokens}",
        ),
        (
            a.advantage == "gae" and a.selection == "rewards_differ",
            "select rewards_differ would train the value model on mixed groups only: use select all",
        ),
    ]
