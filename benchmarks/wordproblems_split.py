"""SVAMP and MAWPS: a part to train on and parts held out, chosen by a hash of the question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mathrl.config import DataConfig
from mathrl.data.problems import load_problems
from mathrl.evaluation.benchmark_sets import normalised
from mathrl.types import Problem, derive_seed

HELD_OUT_SHARE = 0.4
MAWPS = ("multiarith", "addsub", "singleeq", "singleop")

Rows = list[dict[str, str]]


def split_short(data: Path) -> tuple[Rows, dict[str, Rows]]:
    """(rows to train on, held-out rows by set) of the files below ``data``; no question stands in both."""
    train: dict[str, dict[str, str]] = {}
    held_out: dict[str, dict[str, dict[str, str]]] = {"svamp": {}, "mawps": {}}
    sources = [("svamp", data / "svamp/SVAMP.json")]
    sources += [("mawps", data / f"mawps/{name}.jsonl") for name in MAWPS]
    for name, path in sources:
        for problem in all_problems(name, path):
            key = normalised(problem.question)
            row = {"question": problem.question, "answer": problem.answer, "source": path.stem}
            if derive_seed("wordproblems_gpu", key) < HELD_OUT_SHARE * 2**63:
                if not any(key in rows for rows in held_out.values()):
                    held_out[name][key] = row
            else:
                train.setdefault(key, row)
    return list(train.values()), {name: list(rows.values()) for name, rows in held_out.items()}


def all_problems(source: str, path: Path) -> Sequence[Problem]:
    """All problems of a file whose reference can be read, in its order."""
    config = DataConfig(source=source, path=str(path), eval_path=str(path))
    return sorted(load_problems(config, "held_out", 0).problems, key=lambda p: int(p.id.rsplit("/", 1)[1]))
