"""What algorithms reached on one budget: a table for the console, and a page with the same and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from mathrl.evaluation.statistics import Interval, cluster_bootstrap, paired_bootstrap
from mathrl.report import pages
from mathrl.report.charts import IntervalRow, Point, Series, interval_rows, line_chart
from mathrl.report.pages import duration, number, p_value, percent
from mathrl.report.training_charts import smoothed
from mathrl.run.files import write_json, write_text

PHASES = ("rollout", "verify", "forward", "update", "sync")
BUDGETS = ("tokens", "seconds")
_CURVE_POINTS = 40


def write_page(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write result.json and comparison.html into the folder; returns the page's path."""
    summary = summarise(result)
    write_json(folder / "result.json", {**result, "summary": summary})
    page = folder / "comparison.html"
    write_text(page, render(result, summary))
    return page


def summarise(result: Mapping[str, Any]) -> dict[str, Any]:
    """By budget: a row an algorithm in order of accuracy, and what may be said of the best.

    Accuracy is the mean over seeds; its interval resamples the held-out problems, a problem's value being its
    share of seeds that got it right. Algorithms are held against each other problem by problem.
    """
    reference = result["reference"]
    return {
        budget: {
            "rows": (rows := _rows(result, budget)),
            "verdict": _verdict(rows, result, budget),
            "all_learn": all(row["ci95"][0] > reference["ci95"][1] for row in rows),
        }
        for budget in BUDGETS
    }


def _rows(result: Mapping[str, Any], budget: str) -> list[dict[str, Any]]:
    rows = []
    for name in result["settings"]:
        trials = [t for t in result["trials"] if t["algorithm"] == name]
        reached = [t["reached"][budget] for t in trials]
        memory = [t["memory_mib"] for t in trials]
        shares = _shares(reached)
        rows.append({
            "algorithm": name,
            "accuracy": float(shares.mean()),
            "ci95": list(_interval(shares)),
            "by_seed": [r["accuracy"] for r in reached],
            "kl": fmean(r["kl"] for r in reached),
            "steps": fmean(r["steps"] for r in reached),
            "tokens": fmean(r["tokens"] for r in reached),
            "seconds": {p: fmean(r["seconds"].get(p, 0.0) for r in reached) for p in PHASES},
            "memory_mib": {part: max(m[part] for m in memory) for part in memory[0]},
            "accepted": sum(r["accepted"] for r in reached),
            "refused": sum(r["refused"] for r in reached),
            "explained_variance": _mean([r["explained_variance"] for r in reached]),
        })  # fmt: skip
    return sorted(rows, key=lambda row: -row["accuracy"])


def _shares(reached: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(n,) share of seeds that got each problem right."""
    return np.array([r["right"] for r in reached], dtype=np.float64).mean(axis=0)


def _interval(shares: np.ndarray) -> Interval:
    return cluster_bootstrap(shares[:, None])[0]


def _mean(values: Sequence[float | None]) -> float | None:
    given = [v for v in values if v is not None]
    return fmean(given) if given else None


def _verdict(rows: Sequence[Mapping[str, Any]], result: Mapping[str, Any], budget: str) -> list[str]:
    """The best against each other algorithm, in words."""
    if len(rows) < 2:
        return []
    shares = {
        row["algorithm"]: _shares(
            [t["reached"][budget] for t in result["trials"] if t["algorithm"] == row["algorithm"]]
        )
        for row in rows
    }
    best, *others = shares
    said = []
    for other in others:
        test = paired_bootstrap(shares[other], shares[best])
        low, high = (100 * v for v in test.ci95)
        apart = "is ahead of" if test.p_value < 0.05 else "cannot be told from"
        said.append(
            f"{best} {apart} {other}: {100 * test.value:+.1f} points [{low:+.1f}, {high:+.1f}], "
            f"p {p_value(test.p_value)}"
        )
    return said


# --- console ------------------------------------------------------------------------------------------------

HEADER = (
    "",
    "accuracy",
    "by seed",
    "KL",
    "steps",
    "tokens",
    "time",
    "rollout",
    "forward",
    "update",
    "memory",
)


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    seconds = row["seconds"]
    return [
        row["algorithm"],
        f"{percent(row['accuracy'])} {_bracket(row['ci95'])}",
        " ".join(f"{100 * a:.0f}" for a in row["by_seed"]),
        number(row["kl"]),
        f"{row['steps']:.0f}",
        f"{row['tokens']:,.0f}",
        f"{sum(seconds.values()):.1f} s",
        *(f"{seconds[phase]:.1f} s" for phase in ("rollout", "forward", "update")),
        f"{row['memory_mib']['peak']:,.0f} MiB",
    ]


def notes(row: Mapping[str, Any]) -> list[str]:
    """What one algorithm alone has: its memory's parts, its critic, its trust region."""
    memory = row["memory_mib"]
    said = [f"optimiser {memory['optimizer']:.2f} MiB"]
    if memory["critic"]:
        said.append(f"critic with its optimiser {memory['critic']:.2f} MiB")
    if row["explained_variance"] is not None:
        said.append(f"explained variance {row['explained_variance']:.2f}")
    if row["accepted"] or row["refused"]:
        said.append(f"{row['accepted']} trust-region steps accepted, {row['refused']} refused")
    return said


def print_table(console: Console, result: Mapping[str, Any]) -> None:
    """Both budgets' tables."""
    reference = result["reference"]
    console.print(
        f"reference: {percent(reference['accuracy'])} {_bracket(reference['ci95'])}, "
        f"{result['problems']} held-out problems, greedy",
        soft_wrap=True,
    )
    for budget, found in summarise(result).items():
        table = Table(title=f"after {_spent(result, budget)}", box=None, pad_edge=False, title_justify="left")
        for column in HEADER:
            table.add_column(column, justify="right" if column else "left", no_wrap=True)
        for row in found["rows"]:
            table.add_row(*cells(row))
        console.print(table)
        for row in found["rows"]:
            console.print(f"  {row['algorithm']}: {'; '.join(notes(row))}", soft_wrap=True)
        for sentence in found["verdict"]:
            console.print(f"  {sentence}", soft_wrap=True)
        console.print(f"  {_learned(found)}", soft_wrap=True)


def _learned(found: Mapping[str, Any]) -> str:
    return (
        "All of them learned: each one's interval lies above the reference's."
        if found["all_learn"]
        else "Not all of them learned: an interval touches the reference's."
    )


def _spent(result: Mapping[str, Any], budget: str) -> str:
    given = result["budgets"][budget]
    return f"{given:,} sampled tokens" if budget == "tokens" else f"{given:g} seconds of training"


def _bracket(interval: Sequence[float]) -> str:
    return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


# --- page ---------------------------------------------------------------------------------------------------


def render(result: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The page as HTML."""
    reference = result["reference"]
    seeds = max(len(row["by_seed"]) for row in summary["tokens"]["rows"])
    settings = [[name, ", ".join(f"{k} = {v}" for k, v in own.items()) or "as its row"]
                for name, own in result["settings"].items()]  # fmt: skip
    return pages.render(
        "algorithms.html",
        title="Algorithms on one budget",
        subtitle=f"{result['recipe']} · {seeds} seeds each · {result['problems']} held-out problems, greedy",
        reference=f"{percent(reference['accuracy'])} {_bracket(reference['ci95'])}",
        budgets=[_section(result, summary[budget], budget) for budget in BUDGETS],
        charts=[_curve(result, "tokens", "tok"), _curve(result, "seconds", "s")],
        settings=settings,
        made=f"{result['jobs']} trials at once on {result['cores']} cores ({result['device']}), "
        f"{duration(result['seconds'])} in all",
        versions=", ".join(f"{k} {v}" for k, v in result["versions"].items()),
    )


def _section(result: Mapping[str, Any], found: Mapping[str, Any], budget: str) -> dict[str, Any]:
    names = list(result["settings"])
    reference = result["reference"]
    start = Point("reference", reference["accuracy"], Interval(*reference["ci95"]), "before")
    rows = [IntervalRow("reference", f"n = {result['problems']}", [start])]
    for row in found["rows"]:
        colour = f"c{names.index(row['algorithm'])}"
        point = Point(row["algorithm"], row["accuracy"], Interval(*row["ci95"]), colour)
        rows.append(IntervalRow(row["algorithm"], f"KL {number(row['kl'])}", [point]))
    return {
        "title": f"After {_spent(result, budget)}",
        "rows": interval_rows(rows, caption="Held-out accuracy"),
        "verdict": found["verdict"],
        "learned": _learned(found),
        "header": HEADER,
        "table": [cells(row) for row in found["rows"]],
        "notes": [(row["algorithm"], "; ".join(notes(row))) for row in found["rows"]],
    }


def _curve(result: Mapping[str, Any], cost: str, unit: str) -> Markup:
    """Smoothed training reward by what was spent, the mean over seeds."""
    series = []
    for i, name in enumerate(result["settings"]):
        curves = [t["curve"] for t in result["trials"] if t["algorithm"] == name and t["curve"]]
        if not curves:
            continue
        end = min(curve[-1][cost] for curve in curves)
        grid = np.linspace(max(curve[0][cost] for curve in curves), end, _CURVE_POINTS)
        values = [
            np.interp(grid, [row[cost] for row in curve], smoothed([row["reward/mean"] for row in curve]))
            for curve in curves
        ]
        series.append(Series(name, grid.tolist(), np.mean(values, axis=0).tolist(), colour=f"c{i}"))
    title = "Reward by tokens sampled" if cost == "tokens" else "Reward by time"
    note = "Smoothed mean reward of a step's completions, the mean over seeds."
    return line_chart(title, series, note=note, show=number, x_label=unit, y_range=(0.0, None))
