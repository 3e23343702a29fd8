"""Several runs on one page: what each reached, paired tests between them, their curves, how they differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from mathrl.errors import UserError
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.statistics import holm
from mathrl.recipes import values_by_name
from mathrl.report import pages
from mathrl.report.charts import IntervalRow, Series, interval_rows, line_chart
from mathrl.report.pages import duration, number, percent
from mathrl.report.run_page import before_after
from mathrl.report.run_record import RunRecord
from mathrl.report.titles import set_title
from mathrl.report.training_charts import LEARNING, MACHINE, UPDATES, compare_runs, smoothed
from mathrl.run.files import write_text, writing

_ASIDE = ("run.name", "run.output_dir", "run.num_threads", "recipe", "description")
"""Settings that say where a run lies, not what it is."""


def write_comparison(runs: Sequence[RunRecord], out: Path) -> Path:
    """Write the page at ``out``; returns it."""
    with writing(out):
        write_text(out, render(runs))
    return out


def render(runs: Sequence[RunRecord]) -> str:
    """The page as HTML."""
    names = run_names(runs)
    drawn = [
        held_out_by_step(runs, names),
        *(compare_runs(chart, runs, names) for chart in LEARNING),
    ]
    return pages.render(
        "comparison.html",
        title=f"Comparison of {len(runs)} runs",
        subtitle=", ".join(names),
        sets=[_set(name, runs, names) for name in set_names(runs)],
        seeds=seed_groups(runs, names),
        unfinished=[name for run, name in zip(runs, names, strict=True) if not run.summary],
        differing=differing_settings(runs),
        names=names,
        facts=_facts(runs, names),
        learning=[c for c in drawn if c],
        spent=[c for c in by_cost(runs, names) if c],
        updates=[c for chart in UPDATES if (c := compare_runs(chart, runs, names))],
        machine=[c for chart in MACHINE if (c := compare_runs(chart, runs, names))],
    )


def print_comparison(console: Console, runs: Sequence[RunRecord]) -> None:
    """The numbers of the page as a table."""
    names = run_names(runs)
    for set_name in set_names(runs):
        table = Table(box=None, pad_edge=False, title=set_title(set_name), title_justify="left")
        for column in ("run", "n", "before", "after", "difference", f"against {names[0]}", "p (Holm)"):
            table.add_column(column, justify="left" if column == "run" else "right")
        tests = {t.name: t for t in paired_tests(set_name, runs, names)}
        for run, name in zip(runs, names, strict=True):
            row = run.sets.get(set_name)
            if row is None:
                table.add_row(name, "", "", "not finished")
                continue
            test = tests.get(name)
            table.add_row(
                name,
                str(row["after"]["n"]),
                percent(row["before"]["accuracy"]),
                f"{percent(row['after']['accuracy'])} {_bracket(row['after']['ci95'])}",
                f"{100 * row['difference']['value']:+.1f} {_bracket(row['difference']['ci95'], '+.1f')}",
                "" if test is None or test.refused else f"{test.value:+.1f} {test.interval}",
                "" if test is None or test.refused else f"{test.p_holm:.2g}",
            )
        console.print(table)
    for group in seed_groups(runs, names):
        console.print(f"{group['told']} ({', '.join(group['names'])})")


def _bracket(interval: Sequence[float], form: str = ".1f") -> str:
    return f"[{100 * interval[0]:{form}}, {100 * interval[1]:{form}}]"


def run_names(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names, with as many parents as tell them apart."""
    depth, parts = 1, [run.path.parts for run in runs]
    while len({p[-depth:] for p in parts}) < len(parts) and depth < max(map(len, parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def set_names(runs: Sequence[RunRecord]) -> list[str]:
    """Problem sets that any of the runs was judged on at its end, the main one first."""
    return list(dict.fromkeys(name for run in runs for name in run.sets))


@dataclass(frozen=True)
class Test:
    """A run against the first run: after training, on the same problems."""

    name: str
    value: float = 0.0  # points
    interval: str = ""
    p: float = 1.0
    p_holm: float = 1.0
    refused: str = ""  # why the two cannot be compared


def paired_tests(set_name: str, runs: Sequence[RunRecord], names: Sequence[str]) -> list[Test]:
    """Paired tests of every later run against the first; p-values by Holm over them."""
    judged = [(run.evaluations.get((set_name, "after")), name) for run, name in zip(runs, names, strict=True)]
    first = judged[0][0]
    tests: list[Test] = []
    for other, name in judged[1:]:
        if first is None or other is None:
            continue
        try:
            difference = compare_evaluations(first, other)
        except UserError as error:
            tests.append(Test(name, refused=str(error)))
            continue
        interval = _bracket(difference.ci95, "+.1f")
        tests.append(Test(name, 100 * difference.value, interval, difference.p_value))
    adjusted = iter(holm([t.p for t in tests if not t.refused]))
    return [t if t.refused else Test(t.name, t.value, t.interval, t.p, next(adjusted)) for t in tests]


def _set(set_name: str, runs: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Any]:
    rows = []
    for run, name in zip(runs, names, strict=True):
        row = run.sets.get(set_name)
        if row is not None:
            gain = 100 * row["difference"]["value"]
            rows.append(
                IntervalRow(
                    name, f"{gain:+.1f}, n = {row['after']['n']}", before_after(row["before"], row["after"])
                )
            )
    return {
        "title": set_title(set_name),
        "rows": interval_rows(rows, caption=f"Accuracy on {set_title(set_name)} by run"),
        "tests": paired_tests(set_name, runs, names),
        "first": names[0],
    }


def seed_groups(runs: Sequence[RunRecord], names: Sequence[str]) -> list[dict[str, Any]]:
    """Runs that differ in their seed alone: mean and range of their accuracy after."""
    groups: dict[str, list[tuple[RunRecord, str]]] = {}
    for run, name in zip(runs, names, strict=True):
        settings = {k: v for k, v in values_by_name(run.config).items() if k not in (*_ASIDE, "run.seed")}
        groups.setdefault(repr(sorted(settings.items())), []).append((run, name))
    found = []
    for group in groups.values():
        after = [run.summary["after"]["accuracy"] for run, _ in group if run.summary]
        gains = [100 * run.summary["difference"]["value"] for run, _ in group if run.summary]
        if len(after) > 1:
            told = (
                f"{len(after)} seeds: {percent(fmean(after))} after on average "
                f"({percent(min(after))} to {percent(max(after))}), "
                f"{fmean(gains):+.1f} points ({min(gains):+.1f} to {max(gains):+.1f})"
            )
            found.append({"names": [name for run, name in group if run.summary], "told": told})
    return found


def differing_settings(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Rows (setting, value in each run) of the settings that are not the same in all runs."""
    flat = [values_by_name(run.config) for run in runs]
    return [
        [key, *(str(values[key]) for values in flat)]
        for key in flat[0]
        if key not in _ASIDE and len({str(values[key]) for values in flat}) > 1
    ]


def _facts(runs: Sequence[RunRecord], names: Sequence[str]) -> list[list[str]]:
    rows = []
    for run, name in zip(runs, names, strict=True):
        _, speed = run.present("tokens/per_s")
        _, memory = run.present("memory/gpu_peak_mib")
        memory = memory or run.present("memory/rss_mib")[1]
        rows.append(
            [
                name,
                run.config.algorithm.name,
                str(run.config.run.seed),
                f"{len(run.rows):,}",
                f"{sum(run.present('tokens/sampled')[1]):,.0f}",
                duration(sum(run.present("time/step_s")[1])),
                f"{fmean(speed):,.0f}" if speed else "–",
                f"{max(memory):,.0f}" if memory else "–",
            ]
        )
    return rows


def held_out_by_step(runs: Sequence[RunRecord], names: Sequence[str]) -> Markup:
    """Held-out accuracy during training, a curve with its band a run."""
    series = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        steps, values = run.present("held_out/accuracy")
        _, low = run.present("held_out/accuracy_low")
        _, high = run.present("held_out/accuracy_high")
        if values:
            series.append(Series(name, steps, values, low, high, f"c{i % 8}", dots=True))
    return line_chart(
        "Held-out accuracy",
        series,
        note="Greedy, during training; bands are 95 % intervals.",
        y_range=(0.0, None),
        show=percent,
    )


def by_cost(runs: Sequence[RunRecord], names: Sequence[str]) -> list[Markup]:
    """Reward against what it cost: seconds of training steps, tokens sampled."""
    charts = []
    for title, cost, unit in (
        ("Reward by time", "time/step_s", "s"),
        ("Reward by tokens sampled", "tokens/sampled", "tok"),
    ):
        series = []
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            both = [row for row in run.rows if "reward/mean" in row and cost in row]
            spent = list(accumulate(row[cost] for row in both))
            if both:
                rewards = smoothed([row["reward/mean"] for row in both])
                series.append(Series(name, spent, rewards, colour=f"c{i % 8}"))
        note = "Smoothed mean reward of a step's completions."
        charts.append(line_chart(title, series, note=note, show=number, x_label=unit))
    return charts
