"""What evaluating costs beside generating, judging saved completions, and a page of 10,000 of them.

    python -m benchmarks.evaluation_speed [--rounds 7] [--store]

- judging: GSM8K's 1,319 reference solutions (from MATHRL_DATA_DIR), half of them with another number, judged
  with two processes: the verdicts alone, and the whole command ``mathrl judge`` with its results and page.
- overhead: ``evaluate`` beside the engine's ``sample`` alone, same problems and seeds, alternating; by the
  clock, and by the CPU time of this process (which a busy machine does not blur).
- page: 1,250 problems × 8 completions of 2,000 characters: bytes, and seconds until Chromium has loaded it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.chromium import Chromium, find_chromium
from benchmarks.record import describe, store
from mathrl.commands.judge import judge
from mathrl.config import Config, ModelConfig, RewardConfig
from mathrl.data.prompts import PromptTemplate
from mathrl.data.wordproblems import generate_problems
from mathrl.evaluation.benchmark_sets import known_benchmarks
from mathrl.evaluation.evaluate import EvaluationSettings, evaluate_problems
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.evaluation.saved_completions import read_saved
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.report.evaluation_page import Result, write_results
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.engine_choice import make_engine
from mathrl.run.json_lines import read_rows
from mathrl.types import Problem, Sampling, derive_seed

_WORDS = (
    "so",
    "then",
    "we",
    "add",
    "the",
    "number",
    "of",
    "apples",
    "and",
    "get",
    "12",
    "more",
    "each",
    "day",
)


def main() -> None:
    """Measure and print; ``--store`` writes results/evaluation_speed.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, default=os.environ.get("MATHRL_DATA_DIR"), help="real data sets")
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result: dict[str, Any] = describe()
        result["load of the machine"] = [round(load, 1) for load in os.getloadavg()]  # others work on it, too
        if options.data:
            result["judging 1,319 completions"] = judging(options.data, Path(folder), options.rounds)
        result["evaluation beside generation"] = overhead(Path(folder), options.rounds)
        result["page of 10,000 completions"] = page(Path(folder))
    print(json.dumps(result, indent=2))
    if options.store:
        store("evaluation_speed", result)


def judging(data: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds to judge GSM8K's test set with two processes."""
    rng, lines = random.Random(0), []
    for _, row in read_rows(data / "gsm8k" / "test.jsonl"):
        text = row["answer"] if rng.random() < 0.5 else row["answer"].replace("#### ", "#### 1")
        lines.append(json.dumps(row | {"completion": text}))
    file = folder / "saved.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    alone, whole, cpu = [], [], []
    command = [sys.executable, "-m", "mathrl", "judge", str(file), "--benchmark", "gsm8k"]
    for _ in range(rounds):
        start = time.perf_counter()
        evaluation = judge(read_saved(file, known_benchmarks()["gsm8k"]), "gsm8k", jobs=2)
        alone.append(time.perf_counter() - start)
        start, spent = time.perf_counter(), _children_cpu()
        subprocess.run(command, check=True, capture_output=True)
        whole.append(time.perf_counter() - start)
        cpu.append(_children_cpu() - spent)
    return {
        "accuracy": evaluation.accuracy,
        "read_and_judged_s": _times(alone),
        "command_s": _times(whole),
        "command_cpu_s": _times(cpu),
    }


def overhead(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of ``evaluate`` over those of the same samples without it."""
    sizes = ModelConfig()
    base, tokenizer = build_base(sizes, seed=0)
    base.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    config = Config(model=sizes.model_copy(update={"path": str(folder / "model")}))
    policy = Policy.from_pretrained(str(folder / "model"), config)
    template = PromptTemplate(tokenizer, "plain")
    engine, _ = make_engine(config, policy, template.encode)
    problems = generate_problems(200, seed=0)
    scorer = RewardScorer(RewardConfig(num_workers=1), "gsm8k")
    greedy = Sampling(0.0, max_completion_tokens=96, logprobs=False)
    sampled = Sampling(1.0, max_completion_tokens=96, logprobs=False)

    def generate() -> None:
        engine.sample(problems, 1, greedy, seed=0)
        engine.sample(problems, 4, sampled, seed=derive_seed(0, "samples"))

    def whole(number: int) -> None:
        evaluate_problems(
            engine,
            problems,
            scorer,
            EvaluationSettings(96, num_samples=4, prompt=template.describe()),
            out=folder / f"round{number}.jsonl",
        )

    generate()
    whole(-1)
    ratios, cpu, plain = [], [], []
    for number in range(rounds):
        start, spent = time.perf_counter(), time.process_time()
        generate()
        middle, half = time.perf_counter(), time.process_time()
        whole(number)
        plain.append(middle - start)
        ratios.append((time.perf_counter() - middle) / (middle - start))
        cpu.append((time.process_time() - half) / (half - spent))
    scorer.close()
    return {
        "completions": 5 * len(problems),
        "generate_s": _times(plain),
        "evaluate_over_generate": _times(ratios),
        "evaluate_over_generate_cpu_of_this_process": _times(cpu),
    }


def page(folder: Path) -> dict[str, Any]:
    """Size and loading time of the evaluation page."""
    rng, words = random.Random(0), _WORDS
    records = []
    for i in range(1250):
        texts = [" ".join(rng.choices(words, k=430))[:2000] + f"\n#### {rng.randint(1, 9)}" for _ in range(8)]
        judged = [
            Judged(t, rng.choice(("correct", "wrong", "no_answer")), "7", num_tokens=150) for t in texts
        ]
        problem = Problem(f"b/{i}", " ".join(rng.choices(words, k=45)), "7", meta={"level": i % 5})
        records.append(Record(problem, judged[0], tuple(judged[1:])))
    evaluation = Evaluation("b", tuple(records), {"num_problems": 1250})
    start = time.perf_counter()
    file = write_results(folder / "page", "model", [Result(evaluation)], {})
    written = time.perf_counter() - start
    out: dict[str, Any] = {"megabytes": round(file.stat().st_size / 1e6, 1), "written_s": round(written, 2)}
    if find_chromium():
        with Chromium() as browser:
            seconds = []
            for _ in range(5):
                opened = browser.open(file)
                seconds.append(opened.load_s)
                assert opened.evaluate("document.querySelectorAll('#items .item').length") == 20
                opened.close()
        out["load_s"] = _times(seconds)
    return out


def _children_cpu() -> float:
    """CPU seconds of all child processes that have ended, theirs included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _times(seconds: list[float]) -> dict[str, Any]:
    return {"median": round(statistics.median(seconds), 3), "all": _rounded(seconds)}


def _rounded(values: list[float]) -> list[float]:
    return [round(v, 3) for v in values]


if __name__ == "__main__":
    main()
