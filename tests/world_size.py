"""One process of test_invariance.py: a training step of every algorithm on this rank's share of the rows."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from double_policy import NAMES, annotated, configured, double_policy

from mathrl.policy.value import ValueModel
from mathrl.training.update import make_update
from mathrl.training.value_update import ValueUpdate
from mathrl.types import Batch

SHARES = ([0, 1, 2], [3, 4, 5, 6, 7, 8])  # whole groups; one rank has more rows than the other


def share(batch: Batch, rank: int, world: int) -> Batch:
    return batch if world == 1 else batch.rows(SHARES[rank])


def flat(parameters: Iterable[torch.Tensor]) -> list[float]:
    return torch.cat([p.detach().flatten() for p in parameters]).tolist()


def step(name: str, rank: int, world: int) -> dict[str, object]:
    """Weights after one update, and its metrics; advantages are computed by each rank for its rows."""
    config, algorithm = configured(
        name,
        algorithm__correction=True,
        algorithm__cg_iterations=4,
        algorithm__line_search_steps=3,
        update__micro_batch_tokens=40 if world == 2 else 8192,
    )
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    update.critic = None  # PPO's is tested by itself below
    moved = 0.0 if algorithm.update_rule == "trust_region" else 0.1
    batch = algorithm.advantages(share(annotated(policy, algorithm, moved=moved), rank, world))
    metrics = update(policy, batch)
    return {"metrics": metrics, "weights": flat(policy.trainable_parameters())}


def critic_step(rank: int, world: int) -> dict[str, object]:
    config, algorithm = configured("ppo", algorithm__value_epochs=2)
    policy = double_policy()
    model = ValueModel(policy, 4, seed=0, initial=0.5)
    for parameter in model.parameters:
        parameter.data = parameter.data.double()
    batch = annotated(policy, algorithm)
    batch = algorithm.advantages(share(batch.add(values=model(batch).detach()), rank, world))
    metrics = ValueUpdate(config, model).learn(batch)
    return {"metrics": metrics, "weights": flat(model.parameters)}


def main(folder: Path, rank: int, world: int) -> None:
    if world > 1:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    found = {name: step(name, rank, world) for name in NAMES} | {"ppo critic": critic_step(rank, world)}
    (folder / f"{rank}-{world}.json").write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
