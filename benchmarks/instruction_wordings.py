"""Wordings of the default instruction on a real chat model: answers read, answers right, words copied.

    python benchmarks/instruction_wordings.py --model DIR --data gsm8k/test.jsonl [--problems N] [--store]

Greedy completions of the first N problems. A wording is good where the answer of a completion can be read
(``read``), is right (``right``), and where the model does not copy the form instead of filling it in
(``copied``: the answer read is the word answer, number or the like).
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record import describe, store

from mathrl.config import Config
from mathrl.data.problems import load_problems
from mathrl.data.prompts import PromptTemplate
from mathrl.policy.model import Policy
from mathrl.recipes import config_of
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.rollout.engine_choice import make_engine
from mathrl.types import Problem, Sampling

_COPIED = re.compile(r"\W*(?:the )?(?:final )?(?:answer|number|result)\W*", re.IGNORECASE)

WORDINGS = {  # (rule, how it is asked)
    "gsm8k, form in quotes": (
        "gsm8k",
        '{question}\nThink step by step, then give the final answer on the last line as "#### answer".',
    ),
    "gsm8k, after the marks": (
        "gsm8k",
        "{question}\nThink step by step. Then write the final answer on the last line, after ####.",
    ),
    "gsm8k, with an example": (
        "gsm8k",
        "{question}\nThink step by step. End with the final answer alone on the last line, after four number "
        "signs, such as: #### 42",
    ),
    "boxed, put": ("boxed", "{question}\nThink step by step, then put the final answer in \\boxed{}."),
    "boxed, within": (
        "boxed",
        "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    "boxed, with an example": (
        "boxed",
        "{question}\nThink step by step. End with the final answer in a box, such as: \\boxed{42}",
    ),
}


def main() -> None:
    """Measure every wording, print the table, store it with ``--store``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder of a chat model")
    parser.add_argument("--data", required=True, help="problems in GSM8K's form")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256, help="at most, of a completion")
    parser.add_argument(
        "--store", action="store_true", help="write benchmarks/results/instruction_wordings.json"
    )
    options = parser.parse_args()
    result: dict[str, Any] = describe() | {
        "model": Path(options.model).name,
        "problems": options.problems,
        "tokens": options.tokens,
        "wordings": compare(options.model, options.data, options.problems, options.tokens),
    }
    if options.store:
        print(store("instruction_wordings", result))


def compare(model: str, data: str, num_problems: int, tokens: int) -> dict[str, dict[str, Any]]:
    """Every wording and its shares, all asked of one engine."""
    table = {
        "model": {"path": model, "prompt": "chat"},
        "sft": {"skip": True},
        "data": {"source": "gsm8k", "path": data},
        "rollout": {"max_prompt_tokens": 1024, "max_completion_tokens": tokens, "compile_engine": False},
        "lora": {"rank": 1},
    }
    config = config_of(table, "benchmark")
    problems = load_problems(config.data, "train", 0).problems[:num_problems]
    policy = Policy.from_pretrained(model, config)
    templates = {
        name: PromptTemplate(policy.tokenizer, "chat", extract=rule, instruction=instruction)
        for name, (rule, instruction) in WORDINGS.items()
    }
    asked = next(iter(templates))
    engine, _ = make_engine(config, policy, lambda problem: templates[asked].encode(problem))
    found = {}
    try:
        engine.load(None, version=0)
        for asked, (rule, instruction) in WORDINGS.items():
            start = time.perf_counter()
            shares = measure(engine, config, problems, rule, tokens)
            found[asked] = {"instruction": instruction, "rule": rule, **shares}
            print(f"{asked:<26}", shares, f"{time.perf_counter() - start:.0f} s", flush=True)
    finally:
        engine.close()
    return found


def measure(
    engine: Engine, config: Config, problems: Sequence[Problem], rule: str, tokens: int
) -> dict[str, float]:
    """Shares of the greedy completions of one wording."""
    scorer = RewardScorer(config.reward, rule)
    try:
        greedy = Sampling(0.0, max_completion_tokens=tokens, logprobs=False)
        groups = scorer.judge(engine.sample(problems, 1, greedy))
    finally:
        scorer.close()
    scores = [group.scores[0] for group in groups]
    number = len(scores)
    return {
        "read": sum(s.outcome in ("correct", "wrong") for s in scores) / number,
        "right": sum(s.correct for s in scores) / number,
        "copied": sum(bool(_COPIED.fullmatch(s.extracted or "")) for s in scores) / number,
        "cut": sum(g.completions[0].finish_reason == "length" for g in groups) / number,
    }


if __name__ == "__main__":
    main()
