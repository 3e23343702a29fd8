"""One algorithm from one seed, until each of several budgets is spent: what it reached and what it cost."""

from __future__ import annotations

import resource
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mathrl.algorithms.table import resolve_algorithm
from mathrl.algorithms.trust_region import compare_tokens
from mathrl.commands.prepare import HELD_OUT
from mathrl.config import Config
from mathrl.data.problems import extract_rule, load_problems
from mathrl.data.prompts import make_template
from mathrl.data.stream import make_stream
from mathrl.evaluation.evaluate import EvaluationSettings, evaluate_problems
from mathrl.policy.model import Policy
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.rollout.engine_choice import make_engine
from mathrl.training.batch import collate
from mathrl.training.trainer import Hooks, Metrics, Trainer
from mathrl.training.update import Update, make_update
from mathrl.types import Group, Problem, Sampling, Score, derive_seed

KL_PROBLEMS = 64
"""Held-out problems on whose sampled completions the KL to the reference is measured."""


@dataclass(frozen=True)
class Budget:
    """What a trial may spend; 0: without limit. The evaluation is not counted."""

    tokens: int = 0  # sampled
    seconds: float = 0.0  # of steps

    def spent(self, tokens: int, seconds: float) -> bool:
        return bool((self.tokens and tokens >= self.tokens) or (self.seconds and seconds >= self.seconds))


@dataclass
class Ledger:
    """What a trial has spent and measured so far."""

    steps: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by phase
    accepted: int = 0  # trust-region steps
    refused: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def add(self, metrics: Mapping[str, float]) -> None:
        self.steps += 1
        self.tokens += int(metrics["tokens/sampled"])
        for name, value in metrics.items():
            if name.startswith("time/") and name != "time/step_s":
                self.seconds[name.removeprefix("time/").removesuffix("_s")] += value
        if "trust_region/accepted" in metrics:
            self.accepted += int(metrics["trust_region/accepted"])
            self.refused += 1 - int(metrics["trust_region/accepted"])
        kept = ("reward/mean", "policy/kl_ref", "policy/entropy", "value/explained_variance")
        own = {name: metrics[name] for name in kept if name in metrics}
        self.curve.append({"tokens": self.tokens, "seconds": self.total_seconds, **own})

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


def run_trial(
    config: Config, problem_seed: int, budgets: Mapping[str, Budget], num_problems: int
) -> dict[str, Any]:
    """Train from the reference at ``model.path`` until every budget is spent; evaluate as each one is.

    Args:
        config: of the trial; ``run.seed`` decides adapter, problem order and samples.
        problem_seed: of the problem sets, the same for all trials.
        budgets: by name.
        num_problems: held-out problems.

    Returns:
        JSON values: "reached" (by budget), "curve", "memory_mib".
    """
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    policy = Policy.from_pretrained(config.model.path, config)
    template = make_template(config, policy.tokenizer)
    train = load_problems(config.data, "train", problem_seed)
    held_out = load_problems(config.data, HELD_OUT, problem_seed)
    assert train is not None
    assert held_out is not None
    engine, _ = make_engine(config, policy, template.encode)
    scorer = RewardScorer(config.reward, extract_rule(config.data))
    scorer.prompt_text = template.text
    update = make_update(config, algorithm, policy, engine_exact=engine.exact_logprobs)
    ledger, left, reached = Ledger(), dict(budgets), {}

    def look() -> dict[str, Any]:
        return _look(config, policy, engine, scorer, held_out.problems[:num_problems])

    def after_step(done: int, metrics: Metrics, groups: Sequence[Group]) -> None:
        ledger.add(metrics)
        for name, budget in list(left.items()):
            if budget.spent(ledger.tokens, ledger.total_seconds):
                del left[name]
                reached[name] = _account(ledger) | look()

    try:
        engine.load(policy.adapter(), version=0)
        hooks = Hooks(after_step=after_step, should_stop=lambda done: not left)
        problems = make_stream(train, config.run.seed)
        Trainer(config, algorithm, problems, engine, scorer, policy, update, hooks).run()
        for name in left:  # train.num_steps or max_seconds came first
            reached[name] = _account(ledger) | look()
    finally:
        scorer.close()
        engine.close()
    return {
        "algorithm": algorithm.name,
        "seed": config.run.seed,
        "reached": reached,
        "curve": ledger.curve,
        "memory_mib": memory_of(policy, update),
    }


def look_at_reference(config: Config, problem_seed: int, num_problems: int) -> dict[str, Any]:
    """The reference's own accuracy, measured as the trials' is: a trial that makes no step."""
    none = config.model_copy(update={"train": config.train.model_copy(update={"num_steps": 0})})
    return run_trial(none, problem_seed, {"start": Budget()}, num_problems)["reached"]["start"]


def _account(ledger: Ledger) -> dict[str, Any]:
    return {
        "steps": ledger.steps,
        "tokens": ledger.tokens,
        "seconds": {name: round(value, 3) for name, value in ledger.seconds.items()},
        "accepted": ledger.accepted,
        "refused": ledger.refused,
        "explained_variance": _last(ledger.curve, "value/explained_variance"),
    }


def _last(curve: Sequence[Mapping[str, float]], name: str) -> float | None:
    values = [row[name] for row in curve if name in row][-5:]
    return fmean(values) if values else None


def _look(
    config: Config, policy: Policy, engine: Engine, scorer: RewardScorer, problems: Sequence[Problem]
) -> dict[str, Any]:
    """Greedy accuracy on the problems, and how far the policy is from the reference."""
    settings = EvaluationSettings(config.rollout.max_completion_tokens)
    found = evaluate_problems(engine, problems, scorer, settings, name=HELD_OUT)
    sampling = Sampling(max_completion_tokens=config.rollout.max_completion_tokens, logprobs=False)
    seed = derive_seed(config.run.seed, "kl")
    groups = engine.sample(problems[:KL_PROBLEMS], 1, sampling, seed=seed)
    return {
        "accuracy": found.accuracy,
        "ci95": list(found.ci95),
        "right": [int(record.greedy.correct) for record in found.records],
        "kl": kl_to_reference(policy, groups, config),
    }


@torch.no_grad()
def kl_to_reference(policy: Policy, groups: Sequence[Group], config: Config) -> float:
    """Mean KL(policy || reference) a token on these completions, exact over the vocabulary, in nats."""
    scored = [
        Group(g.problem, g.prompt_ids, g.completions, scores=(Score(0.0, ""),) * len(g.completions))
        for g in groups
    ]
    batch = collate(scored, policy.pad_id).to(policy.device)
    mask = batch.loss_mask
    own, reference = (policy.hidden_states(batch, reference=r)[mask] for r in (False, True))
    targets = batch.completion_ids[mask]
    return float(compare_tokens(own, reference, policy.head_weight(), targets, 1.0).kl.double().mean())


def memory_of(policy: Policy, update: Update) -> dict[str, float]:
    """Peak memory of the process, and the parts that algorithms differ in; MiB."""
    critic = getattr(update, "critic", None)
    parts = {
        "adapter": _mib(policy.trainable_parameters()),
        "optimizer": _mib(_state(getattr(update, "optimizer", None))),
        "critic": _mib([*critic.model.parameters, *_state(critic.optimizer)]) if critic else 0.0,
    }
    if policy.device.type == "cuda":
        return parts | {"peak": torch.cuda.max_memory_allocated() / 2**20}
    return parts | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def _state(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    if optimizer is None:
        return []
    return [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]


def _mib(tensors: Sequence[Tensor]) -> float:
    return sum(t.numel() * t.element_size() for t in tensors) / 2**20
