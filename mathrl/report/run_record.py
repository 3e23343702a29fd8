"""What a run folder says of its run, read back: configuration, metrics, samples, summary, evaluations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.evaluation.completions import read_evaluation
from mathrl.evaluation.result import Evaluation
from mathrl.recipes import load_config
from mathrl.run.folder import RunFolder
from mathrl.run.json_lines import read_rows

MAIN_SET = "held_out"
"""The problem set whose files are before.jsonl and after.jsonl; other sets have their name before these."""


@dataclass(frozen=True)
class RunRecord:
    """A run as it stands on disk; a run under way has what it has so far."""

    path: Path
    config: Config
    rows: Sequence[Mapping[str, float]]  # metrics.jsonl, by step
    samples: Sequence[Mapping[str, Any]]  # samples.jsonl
    summary: Mapping[str, Any]  # empty before the run has finished
    evaluations: Mapping[tuple[str, str], Evaluation]  # (problem set, "before" | "after")
    sft_rows: Sequence[Mapping[str, float]] = ()  # sft_metrics.jsonl, by step of the supervised stage
    rank_rows: Sequence[
        Sequence[Mapping[str, float]]
    ] = ()  # ranks.jsonl: of a step each rank's seconds by phase

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def steps(self) -> list[float]:
        return [row["step"] for row in self.rows]

    @property
    def metrics(self) -> set[str]:
        return {name for row in self.rows for name in row}

    @property
    def sets(self) -> dict[str, Mapping[str, Any]]:
        """Problem set -> before, after and difference of its summary; empty before the run has finished."""
        return {MAIN_SET: self.summary, **self.summary.get("other_sets", {})} if self.summary else {}

    def column(self, metric: str) -> list[float]:
        """A metric over the steps; NaN where a step lacks it."""
        return [row.get(metric, math.nan) for row in self.rows]

    def present(self, metric: str) -> tuple[list[float], list[float]]:
        """(steps, values) of the steps that have the metric; sft/… by the steps of the supervised stage."""
        rows = self.sft_rows if metric.startswith("sft/") else self.rows
        kept = [(row["step"], row[metric]) for row in rows if math.isfinite(row.get(metric, math.nan))]
        return [s for s, _ in kept], [v for _, v in kept]


def read_run(run_dir: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UserError: it is no run folder, or one of its files is damaged.
    """
    folder = RunFolder(run_dir)
    if not folder.config.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.toml")
    evaluations = {}
    for path in sorted(folder.evaluations.glob("*.jsonl")):
        name, _, when = path.stem.rpartition("_")
        if when in ("before", "after") and path.with_suffix(".json").exists():  # one under way has no numbers
            evaluations[name or MAIN_SET, when] = read_evaluation(path)
    try:
        summary = folder.read_summary() or {}
    except json.JSONDecodeError as error:
        raise UserError(f"{folder.summary}: not JSON ({error.msg})") from None
    return RunRecord(
        run_dir.resolve(),
        load_config(folder.config),
        _metrics(run_dir / "metrics.jsonl"),
        [row for _, row in _rows(run_dir / "samples.jsonl")],
        summary,
        evaluations,
        _metrics(folder.sft_metrics),
        [row["ranks"] for _, row in _rows(run_dir / "ranks.jsonl")],
    )


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    return list(read_rows(path, growing=True)) if path.exists() else []


def _metrics(path: Path) -> list[dict[str, float]]:
    """One row a step: where a step was logged twice (killed and resumed), the last."""
    by_step: dict[float, dict[str, float]] = {}
    for number, row in _rows(path):
        if not isinstance(row.get("step"), int | float):
            raise UserError(f"{path}, line {number}: no field 'step'")
        numbers = {k: math.nan if v is None else v for k, v in row.items()}  # null: it was not finite
        by_step[row["step"]] = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float)}
    return [by_step[step] for step in sorted(by_step)]
