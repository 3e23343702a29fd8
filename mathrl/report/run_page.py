"""report.html of a run: what it reached, how it got there, and what it was made with; one file, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.evaluation.paired import compare_evaluations, compare_slices
from mathrl.evaluation.result import Evaluation
from mathrl.evaluation.statistics import Interval
from mathrl.recipes import differences, load_recipe, recipe_descriptions, recipe_names, values_by_name
from mathrl.report import pages
from mathrl.report.charts import IntervalRow, Point, interval_rows
from mathrl.report.doctor import diagnose
from mathrl.report.pages import duration, made_on, percent, shown
from mathrl.report.ranks import rank_table
from mathrl.report.run_record import MAIN_SET, RunRecord, read_run
from mathrl.report.steps_so_far import WINDOW
from mathrl.report.titles import KINDS, kind_title, set_title, set_words
from mathrl.report.training_charts import (
    LEARNING,
    MACHINE,
    SUPERVISED,
    UPDATES,
    chart_of,
    held_out_chart,
    other_charts,
    outcome_chart,
    time_chart,
)
from mathrl.run.files import write_text

TABLE = (
    "reward/mean",
    "held_out/accuracy",
    "reward/equal_frac",
    "policy/kl_ref",
    "policy/entropy",
    "rollout/length_mean",
    "rollout/truncated_frac",
    "policy/grad_norm",
    "time/step_s",
)
_WHAT_IT_IS = ("model.", "data.", "sft.", "algorithm.")
"""Sections that make a run another one than its recipe's description says; others are how long and where."""

_MAX_WATCHED, _MAX_GROUPS, _MAX_TABLE_ROWS = 24, 12, 40


def write_report(run_dir: Path) -> Path:
    """Write RUN/report.html; a run that is under way or was interrupted is reported as far as it got.

    Raises:
        UserError: ``run_dir`` is no run folder, or one of its files is damaged.
    """
    run = read_run(run_dir)
    path = run_dir / "report.html"
    write_text(path, render(run))
    return path


def render(run: RunRecord) -> str:
    """The report as HTML."""
    config, summary = run.config, run.summary
    data = summary.get("data") or config.data.path or config.data.source
    base, changed = _changed(config)
    return pages.render(
        "report.html",
        title=f"{run.name}: training report",
        subtitle=" · ".join(
            filter(
                None, [_description(config), f"{config.algorithm.name} on {data}", f"seed {config.run.seed}"]
            )
        ),
        unfinished=None if summary.get("finished") else _progress(run),
        result=_result(run) if summary else None,
        findings=diagnose(run.rows, config) if run.rows else None,
        few_steps=len(run.rows) < WINDOW,
        learned=[_learned(run, name) for name in _paired_sets(run)],
        learning=[held_out_chart(run), *(chart_of(c, run) for c in LEARNING), outcome_chart(run)],
        watched=_watched(run),
        supervised=[chart_of(c, run) for c in SUPERVISED],
        updates=[chart_of(c, run) for c in UPDATES],
        ranks=rank_table(run),
        machine=[time_chart(run), *(chart_of(c, run) for c in MACHINE)],
        groups=evenly([row for row in run.samples if row.get("kind") == "train"], _MAX_GROUPS),
        others=other_charts(run),
        numbers=_numbers(run),
        base=base,
        changed=changed,
        all_settings=shown(values_by_name(config)),
        versions=made_on(summary),
    )


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` rows at equal distances, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


def before_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Point]:
    """Two summaries as the points of an interval row."""
    pairs = (("before", before), ("after", after))
    return [Point(when, row["accuracy"], Interval(*row["ci95"]), when) for when, row in pairs]


def direction(low: float, high: float) -> str:
    """ "up" or "down" where the interval of a difference leaves out 0, else ""."""
    return "up" if low > 0 else "down" if high < 0 else ""


VERDICTS = {
    "up": "Better, and by more than chance explains.",
    "down": "Worse, and by more than chance explains.",
    "": "Chance alone could explain this difference.",
}


def _progress(run: RunRecord) -> dict[str, int]:
    return {"done": int(run.steps[-1]) if run.rows else 0, "steps": run.config.train.num_steps}


def _result(run: RunRecord) -> dict[str, Any]:
    summary, rollout = run.summary, run.config.rollout
    sets = run.sets
    difference = summary["difference"]
    low, high = (100 * v for v in difference["ci95"])
    rows = [
        IntervalRow(set_title(name), f"n = {row['after']['n']}", before_after(row["before"], row["after"]))
        for name, row in sets.items()
    ]
    k = summary["after"].get("k")
    samples = [
        f"{set_words(name)} {percent(row['before']['mean_at_k'])} → {percent(row['after']['mean_at_k'])}"
        for name, row in sets.items()
        if k
    ]
    completions = summary["steps"] * rollout.problems_per_step * rollout.group_size
    phases = [(f"{phase}", duration(s)) for phase, s in summary["seconds"].items() if s >= 1]
    return {
        "gain": 100 * difference["value"],
        "low": low,
        "high": high,
        "p": difference["p_value"],
        "direction": direction(low, high),
        "verdict": VERDICTS[direction(low, high)],
        "rows": interval_rows(rows, caption="Accuracy before and after"),
        "k": k,
        "mean_at_k": "; ".join(samples),
        "demonstration": summary.get("demonstration", False),
        "facts": [
            ("steps", f"{summary['steps']:,}"),
            ("completions", f"{completions:,}"),
            ("tokens sampled", f"{summary['tokens_sampled']:,}"),
            *phases,
        ],
    }


def _paired_sets(run: RunRecord) -> list[str]:
    names = dict.fromkeys(name for name, _ in run.evaluations)
    return [n for n in names if (n, "before") in run.evaluations and (n, "after") in run.evaluations]


def _learned(run: RunRecord, name: str) -> dict[str, Any]:
    """Which kinds of problems became right, and how the rest goes wrong."""
    before, after = run.evaluations[name, "before"], run.evaluations[name, "after"]
    title = set_title(name)
    try:
        difference = compare_evaluations(before, after)
    except UserError as error:
        return {"title": title, "refused": str(error)}
    return {
        "title": title,
        "refused": "",
        "newly_right": len(difference.newly_right),
        "newly_wrong": len(difference.newly_wrong),
        "failures_before": failures(before),
        "failures_after": failures(after),
        "parts": [
            {"title": kind_title(key), "rows": slice_rows(key, before, after)}
            for key in after.keys
            if key in KINDS
        ],
    }


def slice_rows(key: str, before: Evaluation, after: Evaluation) -> Markup:
    """Accuracy before and after of the problems that share a value of ``key``."""
    rows = []
    for was, now, test in compare_slices(key, before, after):
        word = "no visible change" if test.p_value >= 0.05 else "learned" if test.value > 0 else "lost"
        points = [
            Point("before", was.accuracy, was.ci95, "before"),
            Point("after", now.accuracy, now.ci95, "after"),
        ]
        rows.append(IntervalRow(now.value, f"n = {now.n}, {word}", points))
    return interval_rows(rows, caption=kind_title(key))


def failures(evaluation: Evaluation) -> str:
    """How the completions that were not right went wrong, as shares of all."""
    words = {
        "wrong": "with a wrong answer",
        "no_answer": "without an answer",
        "unparsed": "with an unreadable answer",
        "timeout": "timed out",
        "error": "failed in the verifier",
    }
    n = evaluation.n

    def share(count: int) -> str:
        return percent(count / n, 0) if count >= 0.005 * n else f"under {percent(0.01, 0)}"

    shares = [
        f"{share(evaluation.outcomes[outcome])} {word}"
        for outcome, word in words.items()
        if evaluation.outcomes.get(outcome)
    ]
    if evaluation.truncated:
        shares.append(f"{share(evaluation.truncated)} cut off at the length limit (counted above as well)")
    return ", ".join(shares) or "all right"


def _watched(run: RunRecord) -> list[dict[str, Any]]:
    """Greedy completions of the watched problems: before, at every evaluation, after."""
    by_problem: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.samples:
        if row.get("kind") == "watch":
            by_problem.setdefault(row["problem_id"], []).append(row)
    ends = {
        when: {r.problem.id: r.greedy for r in run.evaluations[MAIN_SET, when].records}
        for when in ("before", "after")
        if (MAIN_SET, when) in run.evaluations
    }
    found = []
    for problem_id, rows in by_problem.items():
        shown_rows = [
            {"when": f"step {row['step']}", **row["completions"][0]} for row in evenly(rows, _MAX_WATCHED)
        ]
        for when, greedy in ends.items():
            if problem_id in greedy:
                row = {"when": when, "outcome": greedy[problem_id].outcome, "text": greedy[problem_id].text}
                shown_rows.insert(0 if when == "before" else len(shown_rows), row)
        found.append({"question": rows[0]["question"], "answer": rows[0]["answer"], "rows": shown_rows})
    return found


def _numbers(run: RunRecord) -> dict[str, Any]:
    names = [m for m in TABLE if m in run.metrics]
    rows = [
        [f"{row['step']:.0f}", *(f"{row[m]:.4g}" if m in row else "" for m in names)]
        for row in evenly(run.rows, _MAX_TABLE_ROWS)
    ]
    return {"header": ["step", *names], "rows": rows}


def _description(config: Config) -> str:
    """What the recipe says it is; "" where that tells of a packaged recipe from which this one departs."""
    for name, told in recipe_descriptions().items():
        if config.description == told:
            changed = differences(config, load_recipe(name))
            if any(field.startswith(_WHAT_IT_IS) for field in changed):
                return ""
    return config.description


def _changed(config: Config) -> tuple[str, list[tuple[str, str, str]]]:
    """(what the configuration is held against, fields that differ: name, value there, value here)."""
    if config.recipe in recipe_names():
        base, told = load_recipe(config.recipe), f"the recipe “{config.recipe}”"
    else:
        base, told = Config(), "the defaults"
    changed = differences(config, base)
    rows = [
        (k, str(old), str(new)) for k, (old, new) in changed.items() if k not in ("recipe", "description")
    ]
    return told, rows
