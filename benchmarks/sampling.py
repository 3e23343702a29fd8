"""Tokens per second of the embedded engine beside transformers' generate, side by side in one run.

    python benchmarks/sampling.py [--repeats 7] [--threads 1 2] [--store]

Model and prompts are as in quickstart (made from scratch; generated word problems): 32 prompts of
8 completions. Both draw from the whole distribution at temperature 1; ours records sampling logprobs as well.
Cases: 40 tokens a completion with an end token that never comes, without and with a LoRA adapter of rank 16,
and completions that end at random (8 end tokens of the vocabulary) with a limit of 96. Each repeat runs every
way once, so that a busy machine disturbs all of them; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import peft
import torch
from record import describe, store

from mathrl.config import ModelConfig
from mathrl.data.wordproblems import generate_problems
from mathrl.policy.scratch import build_base
from mathrl.rollout.transformers import TransformersEngine
from mathrl.types import Problem, Sampling

NUM_PROBLEMS, GROUP_SIZE = 32, 8


@dataclass(frozen=True)
class Case:
    name: str
    num_tokens: int
    adapter: bool
    ends: bool


CASES = (
    Case("40 tokens each", 40, adapter=False, ends=False),
    Case("40 tokens each, LoRA r 16", 40, adapter=True, ends=False),
    Case("random ends, limit 96, LoRA r 16", 96, adapter=True, ends=True),
)


class Decoder:
    """The tokenizer with another end token."""

    def __init__(self, tokenizer: Any, eos_token_id: int) -> None:
        self.eos_token_id, self.batch_decode = eos_token_id, tokenizer.batch_decode


def ways(case: Case) -> dict[str, Callable[[int], int]]:
    """Each way to sample as a function of a seed; it returns how many tokens it sampled."""
    base, tokenizer = build_base(ModelConfig(), seed=0)
    problems = [Problem(p.id, p.question, p.answer) for p in generate_problems(NUM_PROBLEMS, seed=1)]
    prompts = [tuple(tokenizer.encode(p.question + "\nAnswer: ")) for p in problems]
    size = base.config.vocab_size
    ends = list(range(size // 2, size // 2 + 8)) if case.ends else [size]  # size: no such token
    base.generation_config.eos_token_id = ends
    model: Any = base
    if case.adapter:
        settings = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        model = peft.get_peft_model(base, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    model.eval()
    sampling = Sampling(max_completion_tokens=case.num_tokens)
    by_id = {p.id: ids for p, ids in zip(problems, prompts, strict=True)}
    engine = TransformersEngine(model, Decoder(tokenizer, ends[0]), lambda p: by_id[p.id], sampling)

    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts]).repeat_interleave(GROUP_SIZE, 0)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]).repeat_interleave(
        GROUP_SIZE, 0
    )

    def ours(seed: int) -> int:
        groups = engine.sample(problems, GROUP_SIZE, seed=seed)
        return sum(len(c.token_ids) for g in groups for c in g.completions)

    def peer(cache: str | None) -> Callable[[int], int]:
        def run(seed: int) -> int:
            torch.manual_seed(seed)
            with torch.no_grad():
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=case.num_tokens,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    eos_token_id=ends,
                    pad_token_id=size - 1,
                    cache_implementation=cache,
                )[:, width:]
            ended = torch.isin(out, torch.tensor(ends)).long().cumsum(1)
            return int((ended - torch.isin(out, torch.tensor(ends)).long() == 0).sum())

        return run

    return {"ours": ours, "generate": peer(None), "generate, static cache": peer("static")}


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Tokens per second of every way: median, and all repeats."""
    candidates = ways(case)
    speeds: dict[str, list[float]] = {name: [] for name in candidates}
    for seed in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            tokens = run(seed)
            if seed:  # the first round warms up
                speeds[name].append(tokens / (time.perf_counter() - start))
    medians = {name: median(values) for name, values in speeds.items()}
    return {
        "case": case.name,
        "tokens_per_s": {name: round(value) for name, value in medians.items()},
        "ratio": {name: round(medians["ours"] / v, 2) for name, v in medians.items() if name != "ours"},
        "repeats": {name: [round(v) for v in values] for name, values in speeds.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/sampling_cpu.json")
    args = parser.parse_args()
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for case in CASES:
            row = {"threads": threads} | measure(case, args.repeats)
            rows.append(row)
            print(
                f"{threads} thread(s), {case.name}: {row['tokens_per_s']}, ours is {row['ratio']} times",
                flush=True,
            )
    result = describe() | {"sequences": NUM_PROBLEMS * GROUP_SIZE, "rows": rows}
    if args.store:
        print(store("sampling_cpu", result))


if __name__ == "__main__":
    main()
