"""ALGORITHMS: each is a row of the pure functions of advantages.py and losses.py, and an update rule.

A knob left unset in the recipe takes the row's value; any can be set by itself. ``resolve_algorithm`` joins
the two and refuses, before a model is loaded, combinations that cannot mean what they say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mathrl.algorithms.advantages import COMPLETION_ADVANTAGES, GROUP_ADVANTAGES
from mathrl.algorithms.algorithm import FIELD, KNOBS, Algorithm
from mathrl.config import AlgorithmConfig, RolloutConfig, UpdateConfig
from mathrl.errors import UserError, did_you_mean

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
            kl_coef=0.05,  # the paper's differs by data set; TRL's default, of PPO too
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
        **{FIELD.get(knob, knob): value for knob, value in given.items()},
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


Refusals = list[tuple[bool, str]]
"""(whether it is the case, why it cannot be and what to do)."""


def _impossible(
    a: Algorithm, given: dict[str, Any], rollout: RolloutConfig, update: UpdateConfig
) -> Refusals:
    return [*_in_groups(a, rollout), *_in_the_loss(a, given), *_in_the_trust_region(a, update)]


def _in_groups(a: Algorithm, rollout: RolloutConfig) -> Refusals:
    alone = rollout.group_size < 2
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
            a.advantage == "gae" and a.selection == "rewards_differ",
            "select rewards_differ would train the value model on mixed groups only: use select all",
        ),
        (
            bool(a.overlong_buffer) and (a.overlong_buffer or 0) >= rollout.max_completion_tokens,
            f"overlong_buffer {a.overlong_buffer} must be less than rollout.max_completion_tokens "
            f"{rollout.max_completion_tokens}",
        ),
    ]


def _in_the_loss(a: Algorithm, given: dict[str, Any]) -> Refusals:
    return [
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
    ]


def _in_the_trust_region(a: Algorithm, update: UpdateConfig) -> Refusals:
    if a.update_rule != "trust_region":
        return []
    return [
        (
            a.surrogate != "none",
            f"the trust region replaces clipping, so surrogate {a.surrogate} cannot be used: leave it unset",
        ),
        (
            a.ratio == "sequence",
            "the trust region's surrogate is a token's ratio: use ratio token",
        ),
        (
            a.updates_per_rollout > 1,
            "a trust-region step uses the whole rollout once: set update.num_epochs and num_minibatches to 1",
        ),
        (
            update.compile is True,
            "a trust-region step differentiates twice, compiled layers only once: set update.compile auto",
        ),
    ]
