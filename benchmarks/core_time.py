"""Where the time of a decoding step of vLLM's core goes: scheduler, launches, waiting for the GPU.

    python benchmarks/core_time.py [--model 0.5b] [--sequences 512 64] [--tokens 192] [--compiled] [--out DIR]

Random weights of a published shape, a LoRA adapter of rank 32, prompts of 128 tokens, completions of equal
length. First what the engine's start takes, by part: a core that is forked begins when it is forked, with all
that it needs loaded (MATHRL_FORKED_CORE=0: it is spawned, and loads it). Then for each number of sequences:
milliseconds a step by part, a profile of Python's calls over the steps that take requests in, and of them and
of the GPU's kernels over 60 steps of decoding.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from random_model import SHAPES, random_model
from record import describe
from vllm_rollout import PROMPT, moved_policy, recipe, start_engine

from mathrl.rollout.vllm_fork import begin_early
from mathrl.types import Problem, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--sequences", type=int, nargs="+", default=[512, 64])
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--logprobs", action="store_true")
    parser.add_argument("--no-profile", action="store_true")
    parser.add_argument("--compiled", action="store_true", help="by vLLM's torch.compile (CUDA)")
    parser.add_argument("--wait-for", type=Path, help="begin to measure when this file is there")
    parser.add_argument("--out", type=Path, default=Path("runs/core_time"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    clock = args.out.resolve() / f"clock_{args.model}.json"
    os.environ["CORE_CLOCK"] = str(clock)
    here = str(Path(__file__).parent.resolve())
    os.environ["PYTHONPATH"] = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        result = measure(args, clock, random_model(args.model, Path(scratch)))
    (args.out / f"core_time_{args.model}.json").write_text(json.dumps(result, indent=1))


def measure(args: argparse.Namespace, clock: Path, folder: Path) -> dict[str, Any]:
    config, largest = recipe(folder), max(args.sequences)
    sizes = {
        "problems_per_step": max(1, largest // config.rollout.group_size),
        "max_completion_tokens": args.tokens,
        "num_replicas": 1,
    }
    config = config.model_copy(update={"rollout": config.rollout.model_copy(update=sizes)})
    begun = time.time()
    begin_early(config)  # as a command does
    policy = moved_policy(folder, config)
    from core_clock import SCHEDULERS  # with vLLM

    from mathrl.rollout import vllm_core

    before = vllm_core._classes
    clocks = {"worker_extension_cls": "core_start.StartClock"}
    vllm_core._classes = lambda device: before(device) | clocks | {"scheduler_cls": SCHEDULERS[device]}
    ids = torch.randint(10, 500, (largest, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    result: dict[str, Any] = describe(("torch", "vllm")) | {"model": args.model}
    start = time.time()
    engine, _ = start_engine(policy, config, ids, compiled=args.compiled)
    result["start_s"] = parts_of_start(clock.with_suffix(".start.json"), start)
    result["before_start_s"] = round(start - begun, 2)  # policy and vLLM loaded here, the core's beside them
    print("engine:", json.dumps(result["start_s"]), "after", result["before_start_s"], "s", flush=True)
    group = config.rollout.group_size

    def sample(sequences: int, seed: int = 0) -> float:
        problems = [Problem(str(i), "", "0") for i in range(max(1, sequences // group))]
        sampling = Sampling(max_completion_tokens=args.tokens, logprobs=args.logprobs)
        start = time.perf_counter()
        groups = engine.sample(problems, min(group, sequences), sampling, seed=seed or int(start))
        seconds = time.perf_counter() - start
        if seed:
            tokens = [c.token_ids for group in groups for c in group.completions]
            (args.out / f"tokens_{args.model}_{sequences}.json").write_text(json.dumps(tokens))
        return seconds

    try:
        while args.wait_for and not args.wait_for.exists():
            time.sleep(0.2)
        engine.load(policy.adapter(), 1)
        for sequences in args.sequences:
            sample(sequences)
            before_parts = read(clock)
            seconds = [sample(sequences) for _ in range(3)] + [sample(sequences, seed=7)]
            parts = difference(read(clock), before_parts)
            result[str(sequences)] = {"seconds": seconds, "parts_ms": parts}
            ms = 1000 * min(seconds) / args.tokens
            print(f"{args.model}, {sequences} sequences: {ms:.2f} ms a step", json.dumps(parts), flush=True)
            for what in () if args.no_profile else ("first", "cpu", "cuda"):
                clock.with_suffix(".ask").write_text(what)
                sample(sequences)
                text = clock.with_suffix(f".{what}.txt")
                if text.exists():
                    text.rename(args.out / f"{args.model}_{sequences}_{what}.txt")
    finally:
        engine.close()
    return result


def parts_of_start(told: Path, start: float) -> dict[str, float]:
    """Seconds from ``start`` until now: before the core's process, its own parts, and what is left."""
    found = json.loads(told.read_text())
    parts = {"before the core": found["begun"] - start} | found["seconds"]
    whole = time.time() - start
    parts |= {"the rest": whole - sum(parts.values()), "in all": whole}
    return {name: round(seconds, 2) for name, seconds in parts.items()}


def read(clock: Path) -> dict[str, Any]:
    return json.loads(clock.read_text()) if clock.exists() else {}


def difference(after: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds a step by the number of running completions, of steps that came in between."""
    found = {}
    for running, parts in after.items():
        old = before.get(running, {})
        steps = parts["steps"] - old.get("steps", 0)
        if steps >= 10:
            ms = {k: round(1000 * (v - old.get(k, 0)) / steps, 3) for k, v in parts.items() if k != "steps"}
            found[running] = ms | {"steps": steps}
    return found


if __name__ == "__main__":
    main()
