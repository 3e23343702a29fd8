"""What a rank computes for test_equality.py: the same cases in one process and in several."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from double_policy import NAMES, annotated, configured, double_policy, widen

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config, ModelConfig
from mathrl.data.prompts import make_template
from mathrl.data.stream import ProblemStream
from mathrl.data.wordproblems import generate_problems
from mathrl.distributed import group
from mathrl.distributed.collectives import rank, sum_gradients, sum_ranks, world_size
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.policy.value import ValueModel
from mathrl.rewards.functions import RewardFunction
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.transformers import TransformersEngine
from mathrl.training.batch import without_truncated
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.training.sharing import agree_on_adapter
from mathrl.training.trainer import Trainer
from mathrl.training.update import make_update
from mathrl.training.value_update import ValueUpdate
from mathrl.types import Batch, Completion, Sampling
from verifiers import Outcome

SHARES = {
    1: [list(range(9))],
    2: [[0, 1, 2], [3, 4, 5, 6, 7, 8]],  # whole groups; one rank has more rows than the other
    3: [[3, 4, 5], [], [0, 1, 2, 6, 7, 8]],  # and one has none
}


def share(batch: Batch) -> Batch:
    return batch.rows(SHARES[world_size()][rank()])


def flat(parameters: Iterable[torch.Tensor]) -> list[float]:
    return torch.cat([p.detach().flatten() for p in parameters]).tolist()


def step(name: str, cut: Sequence[int] = (), **settings: Any) -> dict[str, Any]:
    """Weights after one update, and its metrics; advantages are computed by each rank for its rows.

    The rows ``cut`` are those of the step that reached the length limit: they train no more.
    """
    config, algorithm = configured(
        name,
        algorithm__correction=True,
        algorithm__cg_iterations=4,
        algorithm__line_search_steps=3,
        algorithm__fisher_fraction=0.6,
        update__micro_batch_tokens=8192 if world_size() == 1 else 40,
        **settings,
    )
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    update.critic = None  # PPO's is tested by itself below
    moved = 0.0 if algorithm.update_rule == "trust_region" else 0.1
    batch = annotated(policy, algorithm, moved=moved)
    batch.truncated[list(cut)] = True
    batch = algorithm.advantages(share(batch))
    metrics = update(policy, without_truncated(batch) if cut else batch)
    return {"metrics": metrics, "weights": flat(policy.trainable_parameters())}


def critic_step() -> dict[str, Any]:
    config, algorithm = configured("ppo", algorithm__value_epochs=2)
    policy = double_policy()
    model = ValueModel(policy, 4, seed=0, initial=0.5)
    for parameter in model.parameters:
        parameter.data = parameter.data.double()
    batch = annotated(policy, algorithm)
    batch = algorithm.advantages(share(batch.add(values=model(batch).detach())))
    metrics = ValueUpdate(config, model).learn(batch)
    return {"metrics": metrics, "weights": flat(model.parameters)}


# --- runs of three steps with a model that samples ---------------------------------------------------------

RUNS: dict[str, dict[str, Any]] = {
    "grpo": {"algorithm": {"kl_coef": 0.02}},  # 5 problems: uneven shares
    "two problems": {"rollout": {"problems_per_step": 2}},  # the third rank has none
    "dapo": {"algorithm": {"name": "dapo"}, "rollout": {"group_size": 2}},  # half of the groups are refilled
    "ppo": {
        "algorithm": {"name": "ppo", "value_rank": 2},
        "update": {"num_minibatches": 2, "num_epochs": 2},
    },
    "trpo": {
        "algorithm": {"name": "trpo", "cg_iterations": 3, "line_search_steps": 3, "fisher_fraction": 0.6}
    },
    "compared": {},  # with a reward function that is given all completions of a step
}


OVERLAPPED = ("grpo", "two problems", "dapo")
"""Runs that are made once more with every group trained by itself, while others are sampled."""
RUNS |= {
    f"{name}, overlapped": RUNS[name] | {"train": {"overlap": "on"}, "update": {"micro_batch_tokens": 40}}
    for name in OVERLAPPED
}


READ = 3  # groups of a step whose completions are looked at, of five


def write_model(folder: Path) -> None:
    """A small model with random weights."""
    sizes = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=64)
    model, tokenizer = build_base(sizes, seed=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe(folder: Path, settings: dict[str, Any]) -> Config:
    table: dict[str, dict[str, Any]] = {
        "run": {"device": "cpu"},
        "model": {"path": str(folder)},
        "sft": {"skip": True},
        "lora": {"rank": 2},
        "rollout": {"problems_per_step": 5, "group_size": 4, "max_completion_tokens": 10},
        "train": {"num_steps": 3},
    }
    for section, fields in settings.items():
        table[section] = table.get(section, {}) | fields
    return Config.model_validate(table)


class Parity(RewardScorer):
    """Rewards that need no good model: whether the tokens' sum is odd."""

    def _answer(self, completion: Completion, outcome: Outcome) -> float:
        return float(sum(completion.token_ids) % 2)


def share_of_tokens(completion_ids: list[list[int]], completions: list[str], **_: Any) -> list[float]:
    """As TRL calls it: what it gives one completion depends on all others of the step."""
    assert len(completions) == len(completion_ids)
    return [len(ids) / sum(map(len, completion_ids)) for ids in completion_ids]


def make_trainer(folder: Path, config: Config, rewards: Parity, *, double: bool) -> Trainer:
    policy = Policy.from_pretrained(str(folder), config)
    if double:
        widen(policy.model)
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    update = make_update(config, algorithm, policy)
    if update.critic and double:
        for parameter in update.critic.model.parameters:
            parameter.data = parameter.data.double()
    template = make_template(config, policy.tokenizer)
    sampling = Sampling(max_completion_tokens=config.rollout.max_completion_tokens)
    sampled, take_over = policy, None
    if config.train.overlap == "on":  # from a model of its own, then
        sampled = Policy.from_pretrained(str(folder), config)
        take_over = sampled.load_adapter
        if double:
            widen(sampled.model)
    engine = TransformersEngine(
        sampled.model, policy.tokenizer, template.encode, sampling, take_over=take_over
    )
    engine.load(policy.adapter(), 0)
    return Trainer(
        config,
        algorithm,
        ProblemStream(generate_problems(40, 0), 0),
        engine,
        rewards,
        policy,
        update,
    )


def tensors_in(value: Any, name: str) -> dict[str, torch.Tensor]:
    """Every number of a state, by its path."""
    if isinstance(value, torch.Tensor):
        return {name: value.detach().clone()}
    if isinstance(value, int | float):
        return {name: torch.tensor(float(value), dtype=torch.float64)}
    if hasattr(value, "tensors"):
        value = value.tensors
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path: t for key, item in items for path, t in tensors_in(item, f"{name}.{key}").items()}


def trained(folder: Path, settings: dict[str, Any], rewards: Parity) -> dict[str, Any]:
    """Three steps: metrics and samples of each, and the state after them."""
    rewards.functions = (RewardFunction(share_of_tokens, 20.0),) if settings is RUNS["compared"] else ()
    trainer = make_trainer(folder, recipe(folder, settings), rewards, double=True)
    trainer.hooks = replace(trainer.hooks, reads=READ)
    metrics, samples = [], []
    for index in range(3):
        found, groups = trainer.step(index)
        trainer.steps_done += 1
        metrics.append(
            {
                name: torch.tensor(value, dtype=torch.float64)
                for name, value in found.items()
                if not name.startswith(("time/", "tokens/per_s", "ranks/", "overlap/"))
            }
        )
        samples.append(
            [
                (
                    g.problem.id,
                    len(g.prompt_ids),
                    [
                        (len(c.token_ids), c.finish_reason, c.text if n < READ else None, *asdict(s).values())
                        for c, s in zip(g.completions, g.scores, strict=True)
                    ],
                )
                for n, g in enumerate(groups)
            ]
        )
    agree_on_adapter(trainer.policy.adapter(), "the end")
    return {"metrics": metrics, "samples": samples, "state": tensors_in(trainer.state(), "state")}


def gradient(folder: Path, rewards: Parity, *, double: bool) -> dict[str, Any]:
    """Loss and gradient of a step, in the type that a recipe trains in or in float64."""
    config = recipe(folder, RUNS["grpo"])
    trainer = make_trainer(folder, config, rewards, double=double)
    batches: list[Batch] = []
    trainer.hooks = replace(trainer.hooks, on_batch=lambda index, batch: batches.append(batch))
    trainer.step(0)
    policy = make_trainer(folder, config, rewards, double=double).policy  # as it was before the step
    batch = batches[0]
    assert batch.sampling_logprobs is not None
    batch = batch.add(old_logprobs=batch.sampling_logprobs + 0.3 * torch.sin(batch.completion_ids))
    loss = PolicyLoss(config, trainer.algorithm, correct=True)
    total = sum_ranks(loss.backward(policy, batch, Meter()))
    sum_gradients(policy.trainable_parameters())
    gradients = [p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None]
    return {"loss": total, "gradient": torch.cat(gradients)}


def run(folder: Path) -> dict[str, dict[str, Any]]:
    """Every case by name, as this rank sees it."""
    found = {name: step(name) for name in NAMES} | {"ppo critic": critic_step()}
    found["minibatches"] = step("grpo", update__num_minibatches=4, update__num_epochs=2)
    cut = (0, 1, 2, 4, 5, 7, 8)  # all of one of two ranks, and of some minibatches
    found |= {f"{name}, cut": step(name, cut) for name in ("dapo", "rloo", "trpo")}
    found["minibatches, cut"] = step("grpo", cut, update__num_minibatches=4, update__num_epochs=2)
    rewards = Parity(recipe(folder, {"reward": {"num_workers": 1}}).reward, "gsm8k")
    try:
        return {
            "steps": found,
            "runs": {name: trained(folder, settings, rewards) for name, settings in RUNS.items()},
            "gradients": {str(double): gradient(folder, rewards, double=double) for double in (True, False)},
        }
    finally:
        rewards.close()


def run_as_rank(folder: Path, found: Path) -> None:
    """All cases in a process that the environment makes a rank."""
    group.start()
    torch.save(run(folder), found / f"{rank()}-{world_size()}.pt")
    group.stop()
