"""A model of noise, prompts of its tokens, and how far an engine's log-probabilities are from the policy's.

What the tests of vLLM on the CPU and on CUDA share; torch alone is needed to import it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mathrl.config import ModelConfig
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.training.batch import collate
from mathrl.types import Group, Problem, Score


def encode(problem: Problem) -> list[int]:
    """The question is the token ids."""
    return [int(token) for token in problem.question.split()]


def problem(name: str, length: int) -> Problem:
    """A prompt of ``length`` tokens drawn by the name."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    tokens = torch.randint(10, 300, (length,), generator=generator).tolist()
    return Problem(name, " ".join(map(str, tokens)), "1")


def write_model(folder: Path, sizes: ModelConfig, scale: float, dtype: torch.dtype) -> str:
    """Matrices drawn with a deviation of ``scale``, far from uniform: a wrong weight or position shows."""
    model, tokenizer = build_base(sizes, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, scale, generator=generator)
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def move(policy: Policy, seed: int, scale: float) -> None:
    """A step of noise, as an update would make one: the adapter and its version."""
    parameters = list(policy.trainable_parameters())
    device = parameters[0].device
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, device=device))
    policy.version += 1


def ids(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    """The tokens of every completion."""
    return [completion.token_ids for group in groups for completion in group.completions]


def gaps(policy: Policy, groups: Sequence[Group], **how) -> Tensor:
    """Absolute differences of the log-probabilities that the engine and the policy give each token."""
    scored = [replace(g, scores=tuple(Score(0.0, "wrong") for _ in g.completions)) for g in groups]
    batch = collate(scored, policy.pad_id).to(next(iter(policy.trainable_parameters())).device)
    with torch.no_grad():
        logprobs = policy.logprobs(batch, **how).logprobs
    assert batch.sampling_logprobs is not None
    return (logprobs - batch.sampling_logprobs).abs()[batch.loss_mask]
