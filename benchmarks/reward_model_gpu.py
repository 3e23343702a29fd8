"""A reward model for a real pretrained model on GSM8K: pairs from verdicts, and what ranking by it gives.

    python benchmarks/reward_model_gpu.py MODEL --data GSM8K_FOLDER --work FOLDER --result FILE.json

MODEL is a chat model's folder. A part of GSM8K's training set is shown with solutions (the supervised stage),
another part is sampled, judged and paired, and a part of the test set is sampled, judged and ranked. Each
stage is a command of mathrl that is not run again once it has finished, so the same command goes on after an
interruption; both parts are sampled by one engine. FOLDER keeps everything, FILE.json the numbers.

``--reference FOLDER`` takes a model after its supervised stage instead of training one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from record import describe

from mathrl.evaluation.completions import read_evaluation

FILES = ("train.jsonl", "test.jsonl")
ENGINE = ["--rollout.compile_engine=false"]  # compiling takes longer than all that is sampled here


class Stages:
    """Commands in a folder, each run until it has ended well once; remembers their seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "stages.json"
        self.seconds: dict[str, float] = read(self.file) if self.file.exists() else {}

    def __call__(self, name: str, *words: str) -> None:
        if name in self.seconds:
            return
        start = time.monotonic()
        command = [sys.executable, "-m", "mathrl.cli", *words]
        print(f"{name}: mathrl {' '.join(words)}", flush=True)
        status = subprocess.run(command, cwd=self.folder, check=False).returncode
        if status:  # the command has said why
            sys.exit(status)
        self.seconds[name] = round(time.monotonic() - start, 1)
        self.file.write_text(json.dumps(self.seconds), encoding="utf-8")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def cut(args: argparse.Namespace) -> None:
    """Write what is shown, sampled and tested: three files without a question in common."""
    train, test = ((args.data / name).read_text(encoding="utf-8").splitlines(keepends=True) for name in FILES)
    parts = {
        "shown": train[: args.shown],
        "sampled": train[args.shown : args.shown + args.sampled],
        "tested": test[: args.tested],
    }
    for name, lines in parts.items():
        (args.work / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    row = '[sampled]\nrule = "gsm8k"\nanswer_type = "number"\nextract = "gsm8k"\n'
    (args.work / "sampled.toml").write_text(row, encoding="utf-8")


def run(args: argparse.Namespace) -> dict[str, float]:
    """All stages; the seconds of each."""
    stage = Stages(args.work)
    model = str(args.model.resolve())
    own = [f"--model.path={model}", "--data.source=gsm8k", "--data.path=sampled.jsonl"]
    own += ["--data.eval_path=tested.jsonl", "--data.sft_fraction=0", "--rollout.problems_per_step=1"]
    reference = str(args.reference.resolve()) if args.reference else "runs/reference/reference"
    if not args.reference:
        words = ["default", *own, "--sft.path=shown.jsonl", "--run.name=reference", "--resume"]
        words += [f"--sft.max_train_steps={args.sft_steps}"] if args.sft_steps else []
        stage("sft", "sft", *words)
    words = [reference, "--benchmark=sampled.toml,gsm8k", "--data=sampled=sampled.jsonl"]
    words += ["--data=gsm8k=tested.jsonl", f"--samples={args.samples}", f"--temperature={args.temperature}"]
    words += [f"--max-completion-tokens={args.max_tokens}", "--out=completions"]
    stage("sample", "eval", *words, *ENGINE)
    stage("pairs", "pairs", "completions/sampled", "--out=pairs.jsonl", "--overwrite")
    words = ["default", *own, f"--reward_model.base={reference}", "--reward_model.pairs=pairs.jsonl"]
    stage("reward model", "reward-model", *words, "--run.name=reward-model", "--resume")
    words = ["completions/gsm8k/completions.jsonl", "--rank-by=runs/reward-model", "--out=ranked"]
    stage("rank", "judge", *words)
    return stage.seconds


def numbers(work: Path, k: int) -> dict[str, Any]:
    """What was measured, small."""
    pairs, ranking = read(work / "pairs.json"), read(work / "ranked" / "ranking.json")
    model = read(work / "runs" / "reward-model" / "summary.json")
    sampled, tested = (read_evaluation(work / name) for name in ("completions/sampled", "ranked"))
    return {
        "sampled": {"problems": sampled.n, "greedy": sampled.accuracy, "mean_at_k": sampled.mean_at_k},
        "pairs": {
            name: pairs[name]
            for name in ("pairs", "candidates", "problems", "right_side", "ranked_by_length")
        },
        "reward_model": {
            name: model[name]
            for name in ("pairs", "held_out", "steps", "best_step", "seconds", "saved_gap", "versions")
        },
        "tested": {
            "problems": tested.n,
            "k": k,
            "greedy": told(tested.accuracy, tested.ci95),
            "mean_at_k": told(tested.mean_at_k, tested.mean_at_k_ci95),
            "maj_at_k": told(tested.maj_at_k[k].value, tested.maj_at_k[k].ci95),
            "pass_at_k": told(tested.pass_at_k[k].value, tested.pass_at_k[k].ci95),
        },
        "ranking": {name: value for name, value in ranking.items() if name not in ("scores", "model")},
    }


def told(value: float | None, interval: Any) -> dict[str, Any]:
    return {"value": value, "ci95": list(interval) if interval else None}


def lines(result: dict[str, Any]) -> Iterator[str]:
    """The numbers for the eye."""

    def percent(name: str, found: dict[str, Any]) -> str:
        if found["value"] is None:
            return f"{name}: no problem is answered both ways"
        low, high = found["ci95"]
        return f"{name} {100 * found['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"

    tested, ranking, held_out = result["tested"], result["ranking"], result["reward_model"]["held_out"]
    k = str(tested["k"])
    yield percent("held-out pairs ranked right", {"value": held_out["accuracy"], "ci95": held_out["ci95"]})
    yield percent("test: right above wrong", ranking["pair_accuracy"])
    for name, found in (
        (f"mean@{k}", tested["mean_at_k"]),
        (f"maj@{k}", tested["maj_at_k"]),
        (f"best@{k}", ranking["best_at_k"][k]),
        (f"weighted maj@{k}", ranking["weighted_at_k"][k]),
        (f"pass@{k}", tested["pass_at_k"]),
        *ranking["tests"].items(),
    ):
        yield percent(name, found)
    yield f"seconds: {result['stages']}"


def gpu_name() -> str:
    """The card; empty where there is none."""
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a chat model")
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/reward-model-gpu"))
    parser.add_argument("--result", type=Path, default=Path("runs/reward-model-gpu/result.json"))
    parser.add_argument("--reference", type=Path, help="the model after a supervised stage; none is run then")
    parser.add_argument("--shown", type=int, default=3500, help="training problems shown with solutions")
    parser.add_argument("--sampled", type=int, default=2500, help="other training problems, for pairs")
    parser.add_argument("--tested", type=int, default=800, help="test problems")
    parser.add_argument("--samples", type=int, default=8, help="k")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the samples (arXiv:2110.14168)")
    parser.add_argument("--max-tokens", type=int, default=256, help="of a completion")
    parser.add_argument("--sft-steps", type=int, default=0, help="of the supervised stage; 0: the recipe's")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "sampled.toml").exists():
        cut(args)
    seconds = run(args)
    result = describe() | {"gpu": gpu_name(), "stages": seconds} | numbers(args.work, args.samples)
    args.result.parent.mkdir(parents=True, exist_ok=True)
    args.result.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(lines(result)))


if __name__ == "__main__":
    main()
