"""What a rank computes for test_equality.py: the same cases in one process and in several."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from double_policy import NAMES, annotated, configured, double_policy

from mathrl.distributed import group
from mathrl.distributed.collectives import rank, world_size
from mathrl.policy.value import ValueModel
from mathrl.training.update import make_update
from mathrl.training.value_update import ValueUpdate
from mathrl.types import Batch

SHARES = {
    1: [list(range(9))],
    2: [[0, 1, 2], [3, 4, 5, 6, 7, 8]],  # whole groups; one rank has more rows than the other
    3: [[3, 4, 5], [], [0, 1, 2, 6, 7, 8]],  # and one has none
}


def share(batch: Batch) -> Batch:
    return batch.rows(SHARES[world_size()][rank()])


def flat(parameters: Iterable[torch.Tensor]) -> list[float]:
    return torch.cat([p.detach().flatten() for p in parameters]).tolist()


def step(name: str, **settings: Any) -> dict[str, Any]:
    """Weights after one update, and its metrics; advantages are computed by each rank for its rows."""
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
    batch = algorithm.advantages(share(annotated(policy, algorithm, moved=moved)))
    metrics = update(policy, batch)
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


def run() -> dict[str, dict[str, Any]]:
    """Every case by name, as this rank sees it."""
    found = {name: step(name) for name in NAMES} | {"ppo critic": critic_step()}
    found["minibatches"] = step("grpo", update__num_minibatches=4, update__num_epochs=2)
    return found


if __name__ == "__main__":
    group.start()
    Path(sys.argv[1], f"{rank()}-{world_size()}.json").write_text(json.dumps(run()))
    group.stop()
