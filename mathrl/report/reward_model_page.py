"""report.html of a reward model's run: how well it ranks, how it learned to, what its scores say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mathrl.evaluation.completions import read_rows
from mathrl.evaluation.statistics import Interval
from mathrl.recipes import values_by_name
from mathrl.report import pages
from mathrl.report.charts import IntervalRow, Point, Series, interval_rows, line_chart
from mathrl.report.pages import duration, made_on, percent, shown
from mathrl.report.run_record import RunRecord, read_run
from mathrl.report.training_charts import Chart, chart_of
from mathrl.run.files import write_text

HELD_OUT_FILE = "held_out_pairs.jsonl"
"""The held-out pairs with their scores, in the run's folder."""

_WORST, _BINS = 6, 24
_CHARTS = (
    Chart(
        "Loss",
        (("ranking/held_out_loss", "held out"), ("ranking/loss", "training")),
        "Bradley–Terry loss a pair; 0.69 (log 2) is what equal scores have.",
        low=0.0,
    ),
    Chart(
        "Pairs ranked right",
        (("ranking/held_out_accuracy", "held out"), ("ranking/accuracy", "training")),
        "Training: of the step's own pairs, before the step.",
        high=1.0,
        show=percent,
    ),
    Chart("Score difference", (("ranking/margin", "training"),), "Chosen minus rejected, mean of a step."),
    Chart("Gradient norm", (("ranking/grad_norm", "norm before clipping"),), low=0.0),
)


def is_reward_model_run(run_dir: Path) -> bool:
    """Whether the folder is a reward model's run, under way or finished."""
    file = run_dir / "metrics.jsonl"
    return file.is_file() and any("ranking/loss" in row for _, row in read_rows(file))


def write_reward_model_report(run_dir: Path) -> Path:
    """Write RUN/report.html; a run that is under way is reported as far as it got.

    Raises:
        UserError: ``run_dir`` is no run folder, or one of its files is damaged.
    """
    path = run_dir / "report.html"
    write_text(path, render(read_run(run_dir)))
    return path


def render(run: RunRecord) -> str:
    """The report as HTML."""
    summary, config = run.summary, run.config
    file = run.path / HELD_OUT_FILE
    rows = [row for _, row in read_rows(file)] if file.is_file() else []
    return pages.render(
        "reward_model.html",
        title=f"{run.name}: reward model",
        subtitle=" · ".join(filter(None, [summary.get("base", ""), f"seed {config.run.seed}"])),
        unfinished="" if summary else f"{run.steps[-1] if run.rows else 0:.0f} steps are done.",
        result=_result(summary) if summary else None,
        learning=[chart_of(chart, run) for chart in _CHARTS],
        scores=[_histogram(rows), _calibration(rows)],
        worst=[_pair(row) for row in sorted(rows, key=_lead)[:_WORST] if _lead(row) < 0],
        settings=shown(
            {
                k: v
                for k, v in values_by_name(config).items()
                if k.split(".")[0] in ("run", "lora", "reward_model")
            }
        ),
        versions=made_on(summary),
    )


def _result(summary: Mapping[str, Any]) -> dict[str, Any]:
    held_out, num = summary["held_out"], summary["pairs"]
    low, high = held_out["ci95"]
    parts = {"all": {"pairs": num["held_out"]} | held_out} | held_out["by_length"]
    rows = [
        IntervalRow(
            name,
            f"{part['pairs']:,} pairs",
            [Point("ranked right", part["accuracy"], Interval(*part["ci95"]), "after")],
        )
        for name, part in parts.items()
    ]
    return {
        "accuracy": held_out["accuracy"],
        "low": low,
        "high": high,
        "verdict": "Better than chance." if low > 0.5 else "Chance alone could explain this.",
        "rows": interval_rows(rows, caption="Held-out pairs ranked right"),
        "best_step": summary["best_step"],
        "facts": [
            ("pairs to train on", f"{num['train']:,}"),
            ("of questions", f"{num['train_questions']:,}"),
            ("held-out pairs", f"{num['held_out']:,}"),
            ("held-out loss", f"{held_out['loss']:.3f}"),
            ("steps", f"{summary['steps']:,}"),
            ("time", duration(summary["seconds"])),
            ("scores after saving differ by at most", f"{summary['saved_gap']:.1g}"),
        ],
    }


def _lead(row: Mapping[str, Any]) -> float:
    return float(row["chosen_score"] - row["rejected_score"])


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
    sides = [
        {"name": name, "text": row[side], "score": row[f"{side}_score"]}
        for name, side in (("better", "chosen"), ("worse", "rejected"))
    ]
    return {"question": row["question"], "sides": sides}


def _histogram(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """How often a score occurs among the better and the worse answers."""
    if not rows:
        return Markup("")
    better, worse = (np.array([row[f"{side}_score"] for row in rows]) for side in ("chosen", "rejected"))
    edges = np.histogram_bin_edges(np.concatenate([better, worse]), _BINS)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = [
        Series(name, middle, (np.histogram(values, edges)[0] / len(values)).tolist())
        for name, values in (("better answers", better), ("worse answers", worse))
    ]
    return line_chart(
        "Scores",
        series,
        note="Share of the held-out answers.",
        y_range=(0.0, None),
        show=percent,
        x_label="score",
    )


def _calibration(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Share of pairs ranked right where the model is that sure, in groups of equal size."""
    sure = sorted((abs(_lead(row)), _lead(row) > 0) for row in rows)
    size = max(len(sure) // 10, 20)
    groups = [sure[i : i + size] for i in range(0, len(sure), size)]
    points = [
        (
            sum(1 / (1 + math.exp(-gap)) for gap, _ in group) / len(group),
            sum(right for _, right in group) / len(group),
        )
        for group in groups
        if len(group) == size
    ]
    if len(points) < 2:
        return Markup("")
    x = [100 * p for p, _ in points]
    return line_chart(
        "How sure, and how often right",
        [
            Series("ranked right", x, [share for _, share in points], dots=True),
            Series("as sure as it says", x, [p for p, _ in points], colour="before"),
        ],
        note="The chance that the difference of two scores gives, 1 / (1 + exp(−difference)), in %.",
        show=percent,
        x_label="%",
    )
