"""A run folder with made numbers, for tests of what reads one."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

from mathrl.evaluation.completions import write_evaluation
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.recipes import dump, load_recipe
from mathrl.types import Problem

NASTY = "<script>window.leaked = 1</script> & \"quoted\" 'text' ½ → ∞"  # must come out as text, everywhere


def made_evaluation(
    accuracy: Sequence[float], n: int = 500, k: int = 8, seed: int = 0, name: str = "held_out"
) -> Evaluation:
    """Greedy and k samples on n problems; problems of i + 1 steps are right with chance ``accuracy[i]``."""
    rng = random.Random(seed)
    records = []
    for i in range(n):
        steps = i % len(accuracy)
        problem = Problem(
            f"p{i}",
            f"Tom has {i} apples and buys {steps + 2} more. How many has he? {NASTY if i == 3 else ''}",
            str(i + steps + 2),
            "number",
            meta={"num_steps": steps + 1},
        )

        def one(problem: Problem = problem, chance: float = accuracy[steps]) -> Judged:
            draw = rng.random()
            if draw < chance:
                return Judged(
                    f"{NASTY}\n#### {problem.answer}",
                    "correct",
                    problem.answer,
                    num_tokens=rng.randint(12, 40),
                )
            if draw < chance + (1 - chance) * 0.7:
                return Judged("So it is 7.\n#### 7", "wrong", "7", num_tokens=rng.randint(12, 40))
            return Judged("He has he has he has", "no_answer", None, "length", 64)

        records.append(Record(problem, one(), tuple(one() for _ in range(k))))
    protocol = {
        "problems": "0123456789abcdef",
        "num_problems": n,
        "num_samples": k,
        "prompt": {"kind": "plain"},
    }
    return Evaluation(name, tuple(records), protocol, seconds={"generate": 4.2, "verify": 0.3})


def make_run(folder: Path, *, steps: int = 40, finished: bool = True, level: float = 0.7) -> Path:
    """A run of ``steps`` steps whose reward climbs to ``level``."""
    folder.mkdir(parents=True)
    config = load_recipe(
        "quickstart", [("train.num_steps", str(max(steps, 40))), ("run.seed", "3"), ("run.name", folder.name)]
    )
    (folder / "config.toml").write_text(dump(config))
    rng = random.Random(1)
    rows, samples = [], []
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-step / 15)
        right = min(0.98, max(0.02, 0.2 + (level - 0.2) * rise + rng.gauss(0, 0.03)))
        row: dict[str, float] = {
            "step": step,
            "reward/mean": right,
            "reward/std": math.sqrt(right * (1 - right)),
            "reward/equal_frac": 0.2 + 0.3 * rise,
            "policy/kl_ref": 0.12 * rise,
            "policy/entropy": 0.5 - 0.3 * rise,
            "policy/clip_frac": 0.01 * rise,
            "policy/grad_norm": 0.4 + rng.random() * 0.2,
            "policy/loss": 1e-3 * rng.gauss(0, 1),
            "rollout/length_mean": 12 + 16 * rise,
            "rollout/length_max": 40 + 20 * rise,
            "rollout/truncated_frac": 0.02 * rise,
            "verify/correct_frac": right,
            "verify/wrong_frac": (1 - right) * 0.8,
            "verify/no_answer_frac": (1 - right) * 0.2,
            "verify/timeout_frac": 0.0,
            "time/rollout_s": 0.4 + 0.1 * rise,
            "time/verify_s": 0.02,
            "time/forward_s": 0.2,
            "time/update_s": 0.6,
            "time/sync_s": 0.01,
            "time/step_s": 1.3,
            "memory/rss_mib": 900 + step,
            "tokens/sampled": 2000.0,
            "tokens/per_s": 1800.0,
            "sync/gap_mean": 1e-6,
        }
        if step % 10 == 0:
            row |= {
                "held_out/accuracy": right,
                "held_out/accuracy_low": right - 0.09,
                "held_out/accuracy_high": right + 0.09,
                "time/evaluate_s": 1.5,
            }
            samples += [_sample(step, "watch", i, right > 0.5 or i == 0, 1) for i in range(3)]
        samples += [_sample(step, "train", step, right > rng.random(), 8)]
        rows.append(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "samples.jsonl").write_text("".join(json.dumps(r) + "\n" for r in samples))
    if finished:
        _finish(folder, steps, level)
    return folder


def _sample(step: int, kind: str, problem: int, right: bool, size: int) -> dict:
    completion = {
        "text": f"{NASTY}\n#### 12" if right else "#### 5",
        "outcome": "correct" if right else "wrong",
        "reward": float(right),
        "extracted": "12" if right else "5",
        "finish_reason": "stop",
    }
    return {
        "step": step,
        "kind": kind,
        "problem_id": f"p{problem}",  # as the evaluations name it
        "question": f"What is 7 + 5? ({problem}) {NASTY}",
        "answer": "12",
        "completions": [completion] * size,
    }


def _finish(folder: Path, steps: int, level: float) -> None:
    sets = {}
    for name, seed in (("held_out", 5), ("held_out_templates", 9)):
        before = made_evaluation((0.35, 0.25, 0.02), seed=seed, name=name)
        after = made_evaluation((level + 0.2, level, 0.03), seed=seed + 1, name=name)
        for when, evaluation in (("before", before), ("after", after)):
            file = f"{when}.jsonl" if name == "held_out" else f"{name}_{when}.jsonl"  # as the job names them
            path = folder / "evaluations" / file
            path.parent.mkdir(exist_ok=True)
            write_evaluation(evaluation, path, {"resume_key": "made"})
        sets[name] = {
            "before": before.summary(),
            "after": after.summary(),
            "difference": compare_evaluations(before, after).to_dict(),
        }
    summary = sets.pop("held_out") | {
        "other_sets": sets,
        "steps": steps,
        "num_steps": steps,
        "step_seconds": 51.0,
        "seconds": {"sft": 140.0, "rollout": 20.0, "update": 31.0, "evaluate": 12.0},
        "tokens_sampled": 81234,
        "seed": 3,
        "versions": {"python": "3.11", "torch": "2.13"},
        "finished": True,
        "demonstration": True,
        "data": "wordproblems",
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def trial(algorithm: str, seed: int, right: Sequence[int], **changes: int) -> dict:
    """What a trial of ``mathrl compare`` leaves; ``right``: the verdict of each held-out problem."""
    reached = {
        "steps": 10, "tokens": 5000, "seconds": {"rollout": 1.0, "update": 3.0}, "accepted": 0, "refused": 0,
        "explained_variance": None, "accuracy": sum(right) / len(right), "ci95": [0, 1], "right": right,
        "kl": 0.1,
    }  # fmt: skip
    curve = [{"tokens": 500 * (i + 1), "seconds": 0.4 * (i + 1), "reward/mean": 0.1 * i} for i in range(10)]
    return {
        "algorithm": algorithm,
        "seed": seed,
        "reached": {"tokens": reached | changes, "seconds": reached | changes},
        "curve": curve,
        "memory_mib": {
            "peak": 900.0 + seed,
            "optimizer": 1.0,
            "adapter": 0.5,
            "critic": 0.7 * (algorithm == "ppo"),
        },
    }
