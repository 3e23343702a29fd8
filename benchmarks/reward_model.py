"""A reward model from verdicts on two CPU cores, and what PPO and GRPO make of it beside the verifier.

    python benchmarks/reward_model.py --out runs/reward-model [--parts ranking study] [--seeds 0 1 2]

First what a user does after the quickstart: pairs from its reference's samples, the reward model, the samples
before reinforcement ranked by it. Then the study: both algorithms with the reward model alone, with the
verifier alone and with both, all from one reference with one number of completions. What is there already is
taken as it is, so an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import RESULTS, describe, store

from mathrl.evaluation.completions import read_evaluation
from mathrl.evaluation.result import Evaluation
from mathrl.evaluation.statistics import cluster_bootstrap, paired_bootstrap
from mathrl.report.doctor import diagnose
from mathrl.report.run_record import RunRecord, read_run
from mathrl.rewards.learned import RewardModelScorer, conversation, load_reward_model

ALGORITHMS = {"grpo": "quickstart", "ppo": "ppo"}  # and the recipe that has it
REWARDS: dict[str, dict[str, float]] = {
    "verifier": {},
    "reward model": {"reward.correct": 0.0, "reward.model_weight": 1.0},
    "both": {"reward.model_weight": 0.2},  # its scores spread about 1.5: a third of what the verifier pays
}
SPAN = 10  # steps that the first and the last values are means of
RANKED = "evaluations/before.jsonl"


def mathrl(out: Path, *words: str) -> float:
    """Run a command in the folder; its seconds."""
    start = time.monotonic()
    status = subprocess.run([sys.executable, "-m", "mathrl.cli", *words], cwd=out, check=False).returncode
    if status:  # the command has said why
        sys.exit(status)
    return time.monotonic() - start


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def make_reward_model(out: Path) -> dict[str, Any]:
    """The commands of the README, and what they said."""
    mathrl(out, "train", "quickstart", "--resume")
    if not (out / "pairs.jsonl").exists():
        seconds = mathrl(
            out, "pairs", "runs/quickstart", "--problems=4000", "--samples=16", "--out=pairs.jsonl"
        )
        (out / "pairs-seconds.json").write_text(json.dumps(seconds))
    mathrl(out, "reward-model", "quickstart", "--reward_model.pairs=pairs.jsonl", "--resume")
    if not (out / "ranked" / "ranking.json").exists():
        words = [f"runs/quickstart/{RANKED}", "--rank-by=runs/quickstart-reward-model", "--out=ranked"]
        mathrl(out, "judge", *words)
    pairs, ranking = read(out / "pairs.json"), read(out / "ranked" / "ranking.json")
    evaluation = read_evaluation(out / "ranked")
    seconds_file = out / "pairs-seconds.json"
    return {
        "pairs": {k: v for k, v in pairs.items() if k not in ("problem_ids", "protocol", "info")},
        "pairs_seconds": read(seconds_file) if seconds_file.exists() else None,
        "reward_model": read(out / "runs" / "quickstart-reward-model" / "summary.json"),
        "mean_at_k": told(evaluation.mean_at_k, evaluation.mean_at_k_ci95),
        "maj_at_k": {k: told(e.value, e.ci95) for k, e in evaluation.maj_at_k.items()},
        "pass_at_k": {k: told(e.value, e.ci95) for k, e in evaluation.pass_at_k.items()},
        "ranking": {k: v for k, v in ranking.items() if k != "scores"},
    }


def told(value: float, interval: Sequence[float]) -> dict[str, Any]:
    return {"value": value, "ci95": list(interval)}


def train(out: Path, algorithm: str, reward: str, seed: int, overrides: Sequence[str]) -> Path:
    """One run of the study from the quickstart's reference; its folder."""
    name = f"{algorithm}-{reward.replace(' ', '-')}-{seed}"
    words = ["train", ALGORITHMS[algorithm], "--resume", "--sft.skip", f"--run.seed={seed}"]
    words += ["--model.path=runs/quickstart/reference", f"--run.name={name}", "--run.output_dir=study"]
    words += ["--evaluate.num_samples=0", "--evaluate.every_steps=0", "--tracking.tensorboard=false"]
    if REWARDS[reward]:
        words.append("--reward.model_path=runs/quickstart-reward-model")
        words += [f"--{field}={value}" for field, value in REWARDS[reward].items()]
    if not (out / "study" / name / "summary.json").exists():
        mathrl(out, *words, *overrides)
    return out / "study" / name


def greedy_reward(scorer: RewardModelScorer, evaluation: Evaluation) -> float:
    """Mean score of the greedy completions of held-out problems."""
    said = [conversation(r.problem.question_with_options, r.greedy.text) for r in evaluation.records]
    return fmean(scorer.score(said))


def greedy_right(evaluation: Evaluation) -> NDArray[np.float64]:
    return np.array([r.greedy.correct for r in evaluation.records], dtype=np.float64)


def measure(folder: Path, scorer: RewardModelScorer) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """What the study says of a run, and which held-out problems it solves (n,)."""
    record = read_run(folder)
    before, after = (record.evaluations["held_out", when] for when in ("before", "after"))

    first, last = slice(0, SPAN), slice(-SPAN, None)

    def span(name: str, which: slice) -> float | None:
        values = [row[name] for row in record.rows[which] if name in row]
        return fmean(values) if values else None

    names = ("reward/mean", "reward/model", "reward/correct_frac", "rollout/length_mean")
    # k3 of sampled tokens has a heavy tail: one completion can make a step's mean a hundred times another's
    kl = median(row["policy/kl_ref"] for row in record.rows[last])
    findings = [f for f in diagnose(record.rows, record.config) if f.rule == "Over-optimisation"]
    row = {
        "accuracy": {"before": before.accuracy, "after": after.accuracy},
        "greedy_score": {"before": greedy_reward(scorer, before), "after": greedy_reward(scorer, after)},
        "first_steps": {name: span(name, first) for name in names},
        "last_steps": {name: span(name, last) for name in names} | {"policy/kl_ref, median": kl},
        "sampled_accuracy": windows(record),
        "doctor": [f.text for f in findings],
        "steps": len(record.rows),
        "tokens": sum(row["tokens/sampled"] for row in record.rows),
        "seconds": record.summary["seconds"],
    }
    return row, greedy_right(after)


def windows(record: RunRecord) -> list[float]:
    """Verified accuracy of the sampled completions, means of SPAN steps."""
    values = record.column("reward/correct_frac")
    return [round(fmean(values[i : i + SPAN]), 4) for i in range(0, len(values), SPAN)]


def study(out: Path, seeds: Sequence[int], overrides: Sequence[str]) -> dict[str, Any]:
    """All runs, and means over seeds with intervals over problems."""
    cells = [(algorithm, reward) for algorithm in ALGORITHMS for reward in REWARDS]
    for seed in seeds:  # a seed of all first: an interrupted study is a smaller one
        for algorithm, reward in cells:
            train(out, algorithm, reward, seed, overrides)
    scorer = load_reward_model(str(out / "runs" / "quickstart-reward-model"), "reward.model_path")
    runs, right = [], {}
    for algorithm, reward in cells:
        solved = []
        for seed in seeds:
            row, own = measure(train(out, algorithm, reward, seed, overrides), scorer)
            runs.append({"algorithm": algorithm, "reward": reward, "seed": seed} | row)
            solved.append(own)
        right[algorithm, reward] = np.mean(solved, axis=0)
    summary = []
    for (algorithm, reward), mean in right.items():
        own = [r for r in runs if (r["algorithm"], r["reward"]) == (algorithm, reward)]
        (interval,) = cluster_bootstrap(mean[:, None])
        against = paired_bootstrap(right[algorithm, "verifier"], mean)
        summary.append(
            {
                "algorithm": algorithm,
                "reward": reward,
                "accuracy": told(float(mean.mean()), interval),
                "by_seed": [r["accuracy"]["after"] for r in own],
                "against_verifier": told(against.value, against.ci95) | {"p_value": against.p_value},
                "greedy_score": fmean(r["greedy_score"]["after"] for r in own),
                "kl": fmean(r["last_steps"]["policy/kl_ref, median"] for r in own),
                "length": fmean(r["last_steps"]["rollout/length_mean"] for r in own),
                "tokens": fmean(r["tokens"] for r in own),
                "over_optimised": sum(bool(r["doctor"]) for r in own),
            }
        )
    started = runs[0]
    return {
        "problems": len(next(iter(right.values()))),
        "seeds": list(seeds),
        "rewards": REWARDS,
        "reference": {
            "accuracy": started["accuracy"]["before"],
            "greedy_score": started["greedy_score"]["before"],
        },
        "summary": summary,
        "runs": runs,
    }


def table(found: dict[str, Any]) -> str:
    """The study as Markdown."""

    def percent(value: dict[str, Any], sign: str = "") -> str:
        low, high = value["ci95"]
        return f"{100 * value['value']:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"

    heads = ("algorithm", "reward", "accuracy", "by seed", "against the verifier", "score", "KL", "named")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in found["summary"]:
        against = percent(row["against_verifier"], "+") if row["reward"] != "verifier" else ""
        cells = (
            row["algorithm"].upper(),
            row["reward"],
            percent(row["accuracy"]),
            ", ".join(f"{100 * value:.1f}" for value in row["by_seed"]),
            against,
            f"{row['greedy_score']:+.2f}",
            f"{row['kl']:.3f}",
            f"{row['over_optimised']} of {len(row['by_seed'])}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reward-model"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=["ranking", "study"], default=["ranking", "study"])
    parser.add_argument("--note", default="", help="about the machine: what else was running")
    args, overrides = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    stored = RESULTS / "reward_model.json"
    result = read(stored) if stored.exists() else {}
    about = describe() | ({"note": args.note} if args.note else {})
    if "ranking" in args.parts:
        result["ranking"] = about | make_reward_model(args.out)
    if "study" in args.parts:
        result["study"] = about | study(args.out, args.seeds, overrides)
        print(table(result["study"]))
    store("reward_model", result)
    print(f"{stored}: the tables stand in reward_model.md")


if __name__ == "__main__":
    main()
