"""Every algorithm takes steps on CUDA in bfloat16; TRPO's second derivatives go through there too."""

import pytest
import torch
from test_policy_gpu import make_batch, make_policy

from mathrl.algorithms.table import ALGORITHMS, resolve_algorithm
from mathrl.algorithms.trust_region import to_vector
from mathrl.config import Config
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.update import make_update

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def setup(name, dtype, **update):
    config = Config.model_validate(
        {"algorithm": {"name": name}, "rollout": {"max_completion_tokens": 120}, "update": update}
    )
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    policy = make_policy(dtype=dtype, **update)
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0], device="cuda")
    batch = make_batch().add(rewards=rewards)
    rule = make_update(config, algorithm, policy)
    batch = annotate(
        policy,
        batch,
        MicroBatches(8192),
        old=algorithm.needs_old,
        reference=algorithm.needs_reference,
        values=algorithm.needs_values,
    )
    return policy, rule, algorithm.advantages(batch)


def weights(policy):
    return to_vector([p.detach() for p in policy.trainable_parameters()]).clone()


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_two_steps(name):
    policy, rule, batch = setup(name, torch.bfloat16, micro_batch_tokens=400)
    before = weights(policy)
    for _ in range(2):
        metrics = rule(policy, batch)
        assert all(torch.isfinite(torch.tensor(v)) for v in metrics.values()), metrics
    assert metrics["policy/grad_norm"] > 0
    assert not torch.equal(weights(policy), before)
    if name == "trpo":
        assert metrics["trust_region/kl"] <= 0.01


def test_trpo_moves_as_on_the_cpu():
    """The same step in float32 on both devices, direction and length, up to rounding in ten CG iterations."""
    found = []
    for device in ("cuda", "cpu"):
        policy, rule, batch = setup("trpo", torch.float32)
        if device == "cpu":
            policy.model.to("cpu")
            batch = batch.to("cpu")
        before = weights(policy)
        metrics = rule(policy, batch)
        found.append(((weights(policy) - before).cpu(), metrics))
    (cuda, one), (cpu, other) = found
    assert one["trust_region/accepted"] == other["trust_region/accepted"] == 1.0
    assert torch.nn.functional.cosine_similarity(cuda, cpu, dim=0) > 0.99
    assert one["trust_region/kl"] == pytest.approx(other["trust_region/kl"], rel=0.1)
