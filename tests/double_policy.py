"""A tiny policy in real float64, and batches for it: what tests need that compare numbers to 1e-10."""

from types import MethodType
from typing import Any

import torch
from policy.conftest import build_batch, build_policy
from torch import Tensor, nn

from mathrl.algorithms.table import ALGORITHMS, Algorithm, resolve_algorithm
from mathrl.config import Config
from mathrl.policy.model import Policy
from mathrl.types import Batch

LENGTHS = (5, 1, 9, 4, 12, 3, 1, 7, 8)
REWARDS = (1.0, 0.0, 0.25, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5)  # three groups of three


def _norm(self: Any, hidden: Tensor) -> Tensor:
    """transformers computes norms in float32 whatever the type: good to 1e-7, and here 1e-10 counts."""
    variance = hidden.square().mean(-1, keepdim=True)
    return self.weight * hidden * torch.rsqrt(variance + self.variance_epsilon)


def widen(model: nn.Module) -> None:
    """All of the model in float64, its norms too."""
    model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_norm, module)


def double_policy(**update: Any) -> Policy:
    """The same weights at every call; the adapter's B is not zero."""
    policy = build_policy("qwen2", **update)
    widen(policy.model)
    return policy


def configured(name: str, **settings: Any) -> tuple[Config, Algorithm]:
    """The configuration and row of an algorithm; settings as ``section__key=value``."""
    table: dict[str, dict[str, Any]] = {"algorithm": {"name": name}, "rollout": {"max_completion_tokens": 12}}
    for key, value in settings.items():
        section, field = key.split("__")
        table.setdefault(section, {})[field] = value
    config = Config.model_validate(table)
    return config, resolve_algorithm(config.algorithm, config.rollout, config.update)


@torch.no_grad()
def annotated(
    policy: Policy, algorithm: Algorithm, lengths: tuple[int, ...] = LENGTHS, moved: float = 0.1
) -> Batch:
    """A batch with all that the algorithm may ask for, in float64; old logprobs are ``moved`` nats away."""
    batch = build_batch(lengths)
    mask = batch.loss_mask
    logprobs = policy.logprobs(batch).logprobs
    generator = torch.Generator().manual_seed(11)

    def noise(size: float) -> Tensor:
        return torch.where(
            mask, size * torch.randn(mask.shape, generator=generator, dtype=torch.float64), 0.0
        )

    old = logprobs + noise(moved)
    batch = batch.add(
        rewards=torch.tensor(REWARDS[: len(lengths)], dtype=torch.float64),
        sampling_logprobs=old + noise(0.3),
        old_logprobs=old if algorithm.needs_old or moved else None,
        ref_logprobs=policy.logprobs(batch, reference=True).logprobs if algorithm.needs_reference else None,
        values=torch.where(mask, 0.5 + noise(0.2), 0.0) if algorithm.needs_values else None,
    )
    return algorithm.advantages(batch)


NAMES = list(ALGORITHMS)
