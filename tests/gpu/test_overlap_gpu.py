"""Training while vLLM samples, on CUDA: the same gradients, every sync proved, nothing left under way."""

import math
import threading
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from noisy_model import encode
from planted_rollout import OddRewards, PlantedEngine
from test_policy_gpu import VOCABULARY, make_policy
from test_vllm_gpu import PROBLEMS, config  # noqa: F401  a fixture

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config
from mathrl.data.stream import ProblemStream
from mathrl.policy.model import Policy
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.engine_choice import make_engine
from mathrl.training.pace import Pace
from mathrl.training.sentinel import Sentinel
from mathrl.training.trainer import Hooks, Trainer
from mathrl.training.update import make_update
from mathrl.types import Problem

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

PLANTED = [Problem(str(i), f"q{i}", str(i)) for i in range(12)]


@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo"])
def test_loss_and_gradient_are_those_of_one_after_the_other(name):
    """The same completions; all of a step in one micro-batch, or a group or two at a time.

    In bfloat16 gradients are rounded by 4 %, another way at every cut into micro-batches, overlapped or not.
    """
    loss, kl, exact = first_step(name, "off", 8192, torch.float32)
    same, again, regained = first_step(name, "on", 256, torch.float32)
    assert exact.norm() > 0
    assert (regained - exact).norm() < 1e-5 * exact.norm()
    assert same == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert again == pytest.approx(kl, rel=1e-5, abs=1e-6)

    loss, kl, gradient = first_step(name, "off", 8192, torch.bfloat16)
    same, again, regained = first_step(name, "on", 256, torch.bfloat16)
    rounding = (gradient - exact).norm()
    assert (regained - exact).norm() < 1.1 * rounding
    assert (regained - gradient).norm() < 0.5 * rounding
    assert same == pytest.approx(loss, rel=2e-3, abs=2e-5)
    assert again == pytest.approx(kl, rel=2e-3, abs=1e-6)


def first_step(name: str, overlap: str, tokens: int, dtype: torch.dtype) -> tuple[float, float, torch.Tensor]:
    """Loss, divergence from the reference, and the gradient."""
    recipe = Config.model_validate(
        {
            "algorithm": {"name": name, "kl_coef": 0.04},
            "rollout": {"problems_per_step": 8, "group_size": 4, "max_completion_tokens": 60},
            "update": {"micro_batch_tokens": tokens},
            "train": {"overlap": overlap},
        }
    )
    policy = make_policy(dtype=dtype)
    algorithm = resolve_algorithm(recipe.algorithm, recipe.rollout, recipe.update)
    update = make_update(recipe, algorithm, policy, engine_exact=False)
    engine = PlantedEngine(vocabulary=VOCABULARY, longest=60)
    stream = ProblemStream(PLANTED, 0)
    trainer = Trainer(recipe, algorithm, stream, engine, OddRewards(later=True), policy, update)
    assert (trainer.overlap is not None) == (overlap == "on")
    metrics, _ = trainer.step(0)
    gradient = torch.cat([p.grad.flatten() for p in policy.trainable_parameters()])
    return metrics["policy/loss"], metrics["policy/kl_ref"], gradient


class Odd(RewardScorer):
    """Rewards of random text: whether the tokens' sum is odd."""

    def score(self, groups):
        return [
            replace(
                g,
                scores=tuple(
                    replace(s, reward=float(sum(c.token_ids) % 2))
                    for s, c in zip(g.scores, g.completions, strict=True)
                ),
            )
            for g in super().score(groups)
        ]


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
def test_steps_of_both_ways_in_turns_with_vllm(config):  # noqa: F811
    """As "auto" does: nine steps, each sync proved, one decision, waves, and no thread left."""
    policy = Policy.from_pretrained(config.model.path, config)
    engine, _ = make_engine(config, policy, encode)
    scorer, said = Odd(config.reward, "gsm8k"), []
    try:
        engine.load(policy.adapter(), 0)
        algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
        update = make_update(config, algorithm, policy, engine_exact=False)
        trainer = Trainer(
            config, algorithm, ProblemStream(PROBLEMS, 0), engine, scorer, policy, update,
            Hooks(say=said.append), sentinel=Sentinel(engine, policy, PROBLEMS, 0.25),
        )  # fmt: skip
        assert isinstance(trainer.overlap.pace, Pace)
        trainer.sentinel.begin()
        engine.max_sequences = 48
        shares = []
        for index in range(9):
            metrics, _ = trainer.step(index)
            assert math.isfinite(metrics["policy/loss"])
            assert metrics["sync/sentinel_gap"] < 0.25
            shares.append(metrics.get("overlap/trained_frac"))
        trainer.prove()
        assert [share is None for share in shares[:8]] == [False, True] * 4
        assert any(share for share in shares)  # something trained while other groups were sampled
        assert len([sentence for sentence in said if sentence]) == 1
        assert not [thread for thread in threading.enumerate() if thread.name == "sampling"]
    finally:
        engine.close()
        scorer.close()
