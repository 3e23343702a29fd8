"""The memory plan beside the measured peak: one update and one rollout of three shapes on a GPU.

    python benchmarks/memory_plan.py [--cases 0.5b 1.5b 40m]

For each case: load the policy, start the vLLM engine, sample a whole step at the longest completions, run one
forward, backward and AdamW step over a micro-batch of the planned tokens. Peaks: the trainer's tensors
(torch), and all of the device's memory in use afterwards: both processes, their contexts, what the allocators
keep. Nothing else may run on the device.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from pathlib import Path
from typing import Any

import torch
from random_model import SHAPES, random_model
from record import describe, store

from mathrl.config import Config
from mathrl.memory.plan import GIB, make_plan
from mathrl.memory.shapes import Shape
from mathrl.policy.model import Policy
from mathrl.rollout.engine_choice import make_engine
from mathrl.types import Batch, Problem

CASES = {  # shape -> problems, group, prompt, completion, rank, micro-batch tokens, compiled
    "0.5b": (64, 8, 128, 256, 32, 32768, False),
    "1.5b": (64, 8, 128, 256, 32, 16384, False),
    "40m": (64, 16, 64, 64, 32, 65536, False),
}


def recipe(folder: Path, case: tuple[int, int, int, int, int, int, bool]) -> Config:
    problems, group, prompt, completion, rank, tokens, compiled = case
    return Config.model_validate(
        {
            "model": {"path": str(folder)},
            "lora": {"rank": rank, "alpha": 2.0 * rank},
            "rollout": {
                "engine": "vllm",
                "problems_per_step": problems,
                "group_size": group,
                "max_prompt_tokens": prompt,
                "max_completion_tokens": completion,
            },
            "update": {"micro_batch_tokens": tokens, "compile": compiled},
        }
    )


def longest_batch(config: Config) -> Batch:
    """A micro-batch of completions at the limit, as many whole groups as its tokens allow."""
    rollout = config.rollout
    size = rollout.max_prompt_tokens + rollout.group_size * rollout.max_completion_tokens
    groups = max(1, min(rollout.problems_per_step, config.update.micro_batch_tokens // size))
    rows = groups * rollout.group_size
    return Batch(
        prompts=tuple(torch.randint(10, 300, (rollout.max_prompt_tokens,)) for _ in range(groups)),
        group_ids=torch.arange(groups).repeat_interleave(rollout.group_size),
        completion_ids=torch.randint(10, 300, (rows, rollout.max_completion_tokens)),
        loss_mask=torch.ones(rows, rollout.max_completion_tokens, dtype=torch.bool),
        rewards=torch.zeros(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
    ).to("cuda")


def measure(name: str, folder: Path) -> dict[str, Any]:
    config = recipe(random_model(name, folder), CASES[name])
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    policy = Policy.from_pretrained(config.model.path, config)
    free, total = torch.cuda.mem_get_info()
    before = total - free
    ids = torch.randint(
        10, 300, (config.rollout.problems_per_step, config.rollout.max_prompt_tokens)
    ).tolist()
    engine, _ = make_engine(config, policy, lambda problem: ids[int(problem.id)])
    try:
        engine.eos_ids = ()  # type: ignore[attr-defined]  # every completion runs to the limit
        engine.load(policy.adapter(), 1)
        problems = [Problem(str(i), "", "0") for i in range(config.rollout.problems_per_step)]
        engine.sample(problems, config.rollout.group_size)
        after_rollout = total - torch.cuda.mem_get_info()[0] - before
        optimizer = torch.optim.AdamW(policy.trainable_parameters(), fused=True)
        batch = longest_batch(config)
        for _ in range(2):
            policy.logprobs(batch).logprobs.sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        device = total - torch.cuda.mem_get_info()[0]
    finally:
        engine.close()
    shape = Shape.of(policy.model.get_base_model().config)
    stream = len(batch.prompts) * (config.rollout.max_prompt_tokens) + batch.num_completions * (
        config.rollout.max_completion_tokens - 1
    )
    exact = config.model_copy(
        update={"update": config.update.model_copy(update={"micro_batch_tokens": stream})}
    )
    plan = make_plan(exact, shape, total)
    tensors = sum(
        size
        for row, size in plan.rows.items()
        if row.startswith("trainer") and "context" not in row and "slack" not in row
    )
    peak = torch.cuda.max_memory_allocated()
    return {
        "micro_batch_stream_tokens": stream,
        "rows_gib": {row: size / GIB for row, size in plan.rows.items()},
        "trainer_peak_gib": peak / GIB,
        "trainer_planned_gib": tensors / GIB,
        "trainer_error": tensors / peak - 1,
        "trainer_reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "engine_gib": after_rollout / GIB,
        "engine_planned_gib": plan.engine_bytes / GIB,
        "device_gib": device / GIB,
        "device_planned_gib": plan.total / GIB,
        "device_error": plan.total / device - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=sorted(set(CASES) & set(SHAPES)), default=list(CASES))
    args = parser.parse_args()
    cases = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        for name in args.cases:
            cases[name] = measure(name, Path(scratch))
            print(
                name,
                {k: v if isinstance(v, int | dict) else round(v, 3) for k, v in cases[name].items()},
                flush=True,
            )
    result = describe(("torch", "vllm", "transformers", "peft")) | {
        "device": torch.cuda.get_device_name(),
        "cases": cases,
    }
    print("stored", store("memory_plan", result))


if __name__ == "__main__":
    main()
