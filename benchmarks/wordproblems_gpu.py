"""Real word problems on one GPU, from nothing: problems, baselines, stages and the table of results.

    python benchmarks/wordproblems_gpu.py prepare --data DIR    once; DIR holds gsm8k/, svamp/ and mawps/
    python benchmarks/wordproblems_gpu.py run [--seeds 0 1 2]   every stage, each a resumable mathrl command
    python benchmarks/wordproblems_gpu.py peer                  TRL's GRPOTrainer from the same reference
    python benchmarks/wordproblems_gpu.py table                 benchmarks/results/wordproblems_gpu.json

Problems: GRPO trains on 60 % of the SVAMP and MAWPS questions (chosen by a hash of the question, duplicates
across the files joined), with their final answers alone; 40 % and GSM8K's test set are held out. SFT sees
GSM8K's training problems with the calculations of their solutions, the same with other numbers, generated
stories and bare arithmetic, none of the others. Baselines that understand nothing: |first - second number|,
and the equation of the training question with most equal words.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from record import describe, store
from stage import mathrl
from wordproblems_baselines import ahead, baselines, read_problems, read_rows
from wordproblems_renumbered import read_worked, renumber
from wordproblems_split import all_problems, split_short
from wordproblems_stories import Vocabulary, generate_stories, spaced, written

from mathrl.data.wordproblems import apply_operation, generate_drills, generate_problems
from mathrl.evaluation.contamination import find_contamination
from mathrl.evaluation.statistics import wilson_interval
from mathrl.recipes import load_recipe
from mathrl.types import Problem, derive_seed

STORIES, EVENTS, CHAINS, SUMS = 240_000, 5_000, 5_000, 40_000
RENUMBERED = 10  # copies of a GSM8K problem with other numbers, at most
LARGEST = 100  # operand of a chain of events, told or bare
SETS = {"mawps": 64, "svamp": 64, "gsm8k": 256}  # completion tokens
FOLDER = Path("runs/wordproblems_data")
TARGET = 0.6  # of held-out MAWPS, the accuracy that is timed


# -- problems


def prepare(data: Path, out: Path) -> None:
    """Write sft.jsonl, grpo.jsonl, the held-out sets and benchmarks.toml."""
    train, held_out = split_short(data)
    worked = read_worked(data / "gsm8k/train.jsonl")
    rng = random.Random(0)
    worked += [new for one in worked for new in renumber(one, RENUMBERED, 0)]
    solutions = [
        w.row | {"question": spaced(w.question) if rng.random() < 0.2 else w.question} for w in worked
    ]
    generated = generate_problems(EVENTS, 0, max_operand=LARGEST)
    generated += generate_drills(CHAINS, 0, max_operand=LARGEST)
    generated += generate_stories(STORIES, 0, Vocabulary.of(w.question for w in worked))
    for p in [*generated, *generate_sums(SUMS, 0)]:
        solutions.append({"question": p.question, "answer": p.solution or p.answer})
    asked = all_problems("gsm8k", data / "gsm8k/test.jsonl")
    test = [{"question": p.question, "answer": p.answer} for p in asked]
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in {
        "sft": solutions,
        "grpo": train,
        **held_out,
        "gsm8k": test,
    }.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{out / name}.jsonl: {len(rows)} problems")
    (out / "benchmarks.toml").write_text(
        "".join(
            f"[held_out_{name}]\nmax_completion_tokens = {tokens}\n"
            'answer_type = "number"\nextract = "gsm8k"\n'
            for name, tokens in SETS.items()
        )
    )


def generate_sums(num: int, seed: int) -> list[Problem]:
    """``num`` different questions for one sum, difference, product or quotient, with the equation.

    A model of this size needs many of them before it adds two digits without a mistake. Numbers are at most
    20, 100, 1,000 or 10,000; a third of the sums and differences and some products have decimals, and one
    difference of ten may be negative.
    """
    rng, asked = random.Random(derive_seed(seed, "sums")), dict[str, Problem]()
    while len(asked) < num:
        op = rng.choice("++--**/")
        size, decimals = rng.choice((20, 100, 100, 1000, 10_000)), rng.random() < 0.33
        if op in "+-":
            a, b = (Decimal(rng.randint(1, size)).scaleb(-decimals * rng.randint(0, 3)) for _ in range(2))
            a, b = (max(a, b), min(a, b)) if op == "-" and rng.random() < 0.9 else (a, b)
        else:
            a = Decimal(rng.randint(2, rng.choice((12, 12, 100, 1000))))
            b = Decimal(rng.randint(2, rng.choice((12, 12, 100 if a <= 100 else 12))))
            a = a.scaleb(-1 - (size > 100)) if decimals and op == "*" and size != 20 else a
            a, b = (a * b, b) if op == "/" else (a, b) if rng.random() < 0.5 else (b, a)
        exact = apply_operation(a, op, b)
        assert exact is not None
        left, right, result = written(a), written(b), written(exact)
        sign = rng.choice("*x×") if op == "*" else op
        term = rng.choice(("{}{}{}", "{} {} {}")).format(left, sign, right)
        question = rng.choice(("What is {}?", "Work out {}.", "{} = ?", "How much is {}?")).format(term)
        solution = f"{left}{op}{right}={result}\n#### {result}"
        asked[question] = Problem(question, question, result, "number", solution=solution)
    return list(asked.values())


# -- stages


def stages(folder: Path, runs: Path, seeds: Sequence[int], overrides: Sequence[str]) -> list[list[str]]:
    """The commands of the whole study, in order; each goes on where it was stopped."""
    data = [f"--data.path={folder}/grpo.jsonl", f"--data.eval_path={folder}/mawps.jsonl"]
    common = [*data, f"--sft.path={folder}/sft.jsonl", f"--run.output_dir={runs}", *overrides]
    first = runs / "wordproblems_gpu_0"
    files = [f"held_out_{name}={folder}/{name}.jsonl" for name in SETS]
    evaluate = [
        "--benchmark",
        f"{folder}/benchmarks.toml",
        "--samples",
        "8",
        "--trained-on",
        f"{folder}/grpo.jsonl",
    ]
    for file in files:
        evaluate += ["--data", file]
    commands = []
    if 0 in seeds:
        commands.append(["sft", "wordproblems_gpu", "--resume", "--run.name=wordproblems_gpu_0", *common])
    for seed in seeds:
        name = f"wordproblems_gpu_{seed}"
        own = [f"--run.name={name}", f"--run.seed={seed}"]
        if seed:  # other seeds start from the reference of seed 0
            own += ["--sft.skip=true", f"--model.path={first}/reference"]
        commands.append(["train", "wordproblems_gpu", "--resume", *own, *common])
        commands.append(["eval", str(runs / name), *evaluate])
        if not seed:
            commands.append(["eval", str(runs / name), "--reference", *evaluate])
    return commands


def run(folder: Path, runs: Path, seeds: Sequence[int], overrides: Sequence[str]) -> None:
    for words in stages(folder, runs, seeds, overrides):
        mathrl(*words)


def table(folder: Path, runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Everything measured, from what the stages left in their folders."""
    trivial = baselines(folder)
    result: dict[str, Any] = {
        "baselines": {
            f"{name}: {title}": share(sum(right), len(right))
            for name, found in trivial.items()
            for title, right in found.items()
        },
        "overlap with supervised training": overlap(folder),
        "runs": {},
    }
    for seed in seeds:
        home = runs / f"wordproblems_gpu_{seed}"
        found: dict[str, Any] = {}
        for title, place in (("sets before", "benchmarks-reference"), ("sets after", "benchmarks")):
            file = home / place / "eval.json"
            if file.is_file():
                found[title] = scores(json.loads(file.read_text()))
        for name, rights in trivial.items():
            best = max(rights, key=lambda title: sum(rights[title]))
            file = home / "benchmarks" / f"held_out_{name}" / "completions.jsonl"
            if file.is_file():
                found[f"{name}: ahead of {best}"] = ahead(folder, name, rights[best], file)
        if (home / "summary.json").is_file():
            summary = json.loads((home / "summary.json").read_text())
            found |= {key: summary[key] for key in ("before", "after", "steps", "seconds")}
            found["difference"] = {key: summary["difference"][key] for key in ("value", "ci95", "p_value")}
        if (home / "metrics.jsonl").is_file():
            found["curve"] = curve([json.loads(line) for line in (home / "metrics.jsonl").open()])
            found["reached"] = reached(found["curve"])
        result["runs"][str(seed)] = found
    peer = runs / "peer.json"
    if peer.is_file():
        result["peer"] = json.loads(peer.read_text())
        result["peer"]["reached"] = reached(result["peer"]["curve"])
    return result


def overlap(folder: Path) -> dict[str, dict[str, int]]:
    """Held-out questions among those of supervised training: word for word, but for spelling, for numbers."""
    asked = {name: read_problems(folder / f"{name}.jsonl") for name in SETS}
    trained = (row["question"] for row in read_rows(folder / "sft.jsonl"))
    found = find_contamination(
        [problem for problems in asked.values() for problem in problems], trained
    ).found
    return {
        name: dict(Counter(found[p.id] for p in problems if p.id in found))
        for name, problems in asked.items()
    }


def share(right: int, count: int) -> dict[str, Any]:
    return {"n": count, "accuracy": right / count, "ci95": list(wilson_interval(right, count))}


def reached(points: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """The first look at the held-out problems with ``TARGET`` of them right."""
    return next((point for point in points if point["accuracy"] >= TARGET), None)


def scores(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Accuracy of every set, and of its problems that no training question resembles."""
    return {
        name: {key: found[key] for key in ("n", "accuracy", "ci95")}
        | {"novel": (found.get("contamination") or {}).get("accuracy_without")}
        for name, found in evaluation["benchmarks"].items()
    }


def curve(metrics: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Held-out accuracy over the seconds of steps alone."""
    points, seconds = [], 0.0
    for row in metrics:
        seconds += row.get("time/step_s", 0.0)
        if "held_out/accuracy" in row:
            points.append({"step": row.get("step"), "seconds": seconds, "accuracy": row["held_out/accuracy"]})
    return points


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("prepare", "run", "peer", "table"))
    parser.add_argument("--data", type=Path, help="folder of the data sets (prepare)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="prepared problems")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=240.0, help="of training (peer)")
    parser.add_argument("--target", type=float, default=TARGET, help="accuracy that ends training (peer)")
    args, overrides = parser.parse_known_args()
    if args.stage == "prepare":
        if args.data is None:
            parser.error("prepare needs --data DIR")
        prepare(args.data, args.folder)
    elif args.stage == "run":
        run(args.folder, args.runs, args.seeds, overrides)
    elif args.stage == "peer":
        from trl_peer import train

        train(
            load_recipe("wordproblems_gpu"),
            args.runs / "wordproblems_gpu_0" / "reference",
            read_problems(args.folder / "grpo.jsonl"),
            read_problems(args.folder / "mawps.jsonl"),
            seconds=args.seconds,
            target=args.target,
            out=args.runs / "peer.json",
        )
    else:
        found = table(args.folder, args.runs, args.seeds)
        print(store("wordproblems_gpu", describe(("torch", "transformers", "peft", "vllm", "trl")) | found))


if __name__ == "__main__":
    main()
