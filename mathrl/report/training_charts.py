"""Which metrics of a run are drawn, how, and what a reader should know of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mathrl.distributed.timing import CALLS
from mathrl.report.charts import Number, Series, line_chart, stacked_chart
from mathrl.report.pages import OUTCOME_WORDS, number, percent
from mathrl.report.run_record import MAIN_SET, RunRecord

_SMOOTHING = 0.15  # weight of the newest value in the smoothed curve


@dataclass(frozen=True)
class Chart:
    """A chart of one or more metrics over the steps; left out where a run has none of them."""

    title: str
    metrics: tuple[tuple[str, str], ...]  # (metric, name in the legend), the main one first
    note: str = ""
    low: float | None = None
    high: float | None = None
    show: Number = number
    smooth: bool = False


LEARNING = (
    Chart(
        "Reward",
        (("reward/mean", "mean reward"),),
        "Mean over a step's completions; bold: smoothed.",
        smooth=True,
    ),
    Chart(
        "Groups with equal rewards",
        (("reward/equal_frac", "groups"),),
        "All right or all wrong: such a group carries no advantage and teaches nothing.",
        low=0.0,
        high=1.0,
        show=percent,
        smooth=True,
    ),
    Chart(
        "Problems by their newest tries",
        (("data/solved_frac", "solved"), ("data/unsolved_frac", "never right")),
        "Of the problems asked so far, where the run keeps their history; such groups are asked less.",
        low=0.0,
        high=1.0,
        show=percent,
    ),
    Chart(
        "KL to the reference",
        (
            ("policy/kl_ref", "mean"),
            ("policy/kl_ref_median", "of the median completion"),
        ),
        "Nats a token; how far the policy has moved. A few completions can make most of the mean.",
        low=0.0,
    ),
    Chart(
        "Entropy",
        (("policy/entropy", "entropy"),),
        "Nats a token; near 0 the policy has stopped exploring.",
        low=0.0,
    ),
    Chart(
        "Completion length",
        (("rollout/length_mean", "mean"), ("rollout/length_max", "longest")),
        "Tokens, the end token included.",
        low=0.0,
    ),
    Chart(
        "Truncated completions",
        (("rollout/truncated_frac", "truncated"), ("rollout/unfinished_thought_frac", "thought unfinished")),
        "Ended at the length limit without an end token; of those that think, without ending their thought.",
        low=0.0,
        show=percent,
    ),
)

SUPERVISED = (
    Chart(
        "Loss of the supervised stage",
        (("sft/held_out_loss", "held out"), ("sft/loss", "training")),
        "Nats a token of solutions; in training with the question at its weight. The end shows what answers "
        "without working cost, where the recipe has them.",
        low=0.0,
    ),
    Chart(
        "Solutions reproduced",
        (("sft/held_out_exact", "held out"),),
        "Held-out solutions that greedy decoding would write word for word.",
        low=0.0,
        high=1.0,
        show=percent,
    ),
)

UPDATES = (
    Chart(
        "Gradient norm",
        (("policy/grad_norm", "norm before clipping"),),
        low=0.0,
    ),
    Chart(
        "Clipped ratios",
        (("policy/clip_frac", "tokens"),),
        "Tokens whose ratio the clip changed: without gradient, or (cispo) with a bounded weight.",
        low=0.0,
        show=percent,
    ),
    Chart(
        "KL to the policy before the step",
        (("policy/kl_old", "mean"),),
        "Nats a token; 0 throughout where every step makes one update.",
        low=0.0,
    ),
    Chart("Largest ratio", (("policy/ratio_max", "largest"),), "Of new to old probability of a token."),
    Chart(
        "Past the knee of k3",
        (("policy/kl_knee_frac", "tokens"),),
        "Tokens so far from the reference that the KL estimate goes on linearly.",
        low=0.0,
        show=percent,
    ),
    Chart(
        "Loss",
        (("policy/loss", "loss"),),
        "Near 0 by construction at one update a step; its gradient is not.",
    ),
    Chart("Learning rate", (("policy/learning_rate", "learning rate"),), low=0.0),
    Chart("KL coefficient", (("policy/kl_coef", "coefficient"),), low=0.0),
    Chart(
        "Sampler against trainer",
        (("sync/gap_mean", "mean"), ("sync/gap_max", "largest")),
        "Nats a token between the engine's and the trainer's logprobs of the same tokens.",
        low=0.0,
    ),
    Chart(
        "Effective sample size",
        (("sync/ess", "share"),),
        "Of the importance weights.",
        low=0.0,
        high=1.0,
        show=percent,
    ),
    Chart(
        "Explained variance",
        (("value/explained_variance", "value model"),),
        "1: the values foretell the returns; 0: no better than their mean.",
        high=1.0,
    ),
    Chart("Value loss", (("value/loss", "loss"),), low=0.0),
    Chart(
        "Trust region",
        (("trust_region/kl", "KL of the step"),),
        "Nats a token; at most the recipe's trust_region_kl.",
        low=0.0,
    ),
    Chart(
        "Line search",
        (("trust_region/step_fraction", "share of the full step"), ("trust_region/accepted", "accepted")),
        low=0.0,
        high=1.05,
    ),
)

MACHINE = (
    Chart("Sampled tokens a second", (("tokens/per_s", "tokens / s"),), "Over the whole step.", low=0.0),
    Chart(
        "Efficiency of the ranks",
        (("ranks/efficiency", "own work"),),
        "Share of the ranks' time that goes into work of their own, and not into calls to others.",
        low=0.0,
        high=1.0,
        show=percent,
    ),
    Chart("Memory", (("memory/rss_mib", "process"), ("memory/gpu_peak_mib", "GPU, peak")), "MiB.", low=0.0),
)

_DRAWN_APART = ("time/", "verify/", "held_out", "tokens/", "step", "ranks/adapter_hash")


def chart_of(chart: Chart, run: RunRecord) -> Markup:
    """The chart of one run; empty where the run has none of its metrics."""
    series: list[Series] = []
    for metric, name in chart.metrics:
        steps, values = run.present(metric)
        if not values or (series and not any(values)):  # a companion that never comes off the ground
            continue
        if chart.smooth and len(values) > 12:
            series.append(Series(name, steps, values, colour="c0 faint"))
            series.append(Series(f"{name}, smoothed", steps, smoothed(values), colour="c0"))
        else:
            series.append(Series(name, steps, values))
    return line_chart(chart.title, series, note=chart.note, y_range=(chart.low, chart.high), show=chart.show)


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponential moving average, its start corrected so that it does not lean on the first value."""
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total = (1 - _SMOOTHING) * total + _SMOOTHING * value
        weight = (1 - _SMOOTHING) * weight + _SMOOTHING
        out.append(total / weight)
    return out


def held_out_chart(run: RunRecord) -> Markup:
    """Held-out accuracy during training with its band, and the full evaluations at both ends."""
    steps, values = run.present("held_out/accuracy")
    series = []
    if values:
        _, low = run.present("held_out/accuracy_low")
        _, high = run.present("held_out/accuracy_high")
        asked, there = run.config.evaluate.every_num_problems, run.evaluations.get((MAIN_SET, "before"))
        n = min(asked, there.n) if there else asked
        series.append(Series(f"during training, n = {n}", steps, values, low, high, "c0", dots=True))
    if run.summary:
        last = float(run.summary["steps"])
        for when, at, colour in (("before", 0.0, "before"), ("after", last, "after")):
            row = run.summary[when]
            name = f"{when}, n = {row['n']}"
            series.append(Series(name, [at], [row["accuracy"]], colour=colour, dots=True))
    return line_chart(
        "Held-out accuracy",
        series,
        note="Greedy; the band is the 95 % interval of those during training.",
        y_range=(0.0, None),
        show=percent,
    )


def outcome_chart(run: RunRecord) -> Markup:
    """Verdicts of a step's completions as shares that fill the chart."""
    layers = [
        (word, [v if math.isfinite(v) else 0.0 for v in run.column(f"verify/{outcome}_frac")], outcome)
        for outcome, word in OUTCOME_WORDS.items()
    ]
    layers = [(word, values, outcome) for word, values, outcome in layers if any(values)]
    return stacked_chart(
        "Verdicts", run.steps, layers, top=1.0, show=percent, note="Share of a step's completions by verdict."
    )


def time_chart(run: RunRecord) -> Markup:
    """Seconds of each step by phase."""
    phases = sorted(m for m in run.metrics if m.startswith("time/") and m != "time/step_s")
    order = [
        "time/rollout_s",
        "time/verify_s",
        "time/forward_s",
        "time/update_s",
        "time/sync_s",
        "time/evaluate_s",
        *(f"time/{call}_s" for call in CALLS),
    ]
    phases.sort(key=lambda m: order.index(m) if m in order else len(order))
    layers = [
        (
            m.removeprefix("time/").removesuffix("_s"),
            [v if math.isfinite(v) else 0.0 for v in run.column(m)],
            "",
        )
        for m in phases
    ]
    return stacked_chart("Time by phase", run.steps, layers, note="Seconds a step.")


def other_charts(run: RunRecord) -> list[Markup]:
    """Whatever else the run logged, so that nothing is hidden."""
    drawn = {metric for chart in (*LEARNING, *UPDATES, *MACHINE) for metric, _ in chart.metrics}
    rest = sorted(m for m in run.metrics - drawn if not m.startswith(_DRAWN_APART))
    charts = [chart_of(Chart(m, ((m, m),)), run) for m in rest if any(run.present(m)[1])]
    return [c for c in charts if c]


def compare_runs(chart: Chart, runs: Sequence[RunRecord], names: Sequence[str]) -> Markup:
    """The chart's first metric of several runs; smoothed where the chart of one run is."""
    metric = chart.metrics[0][0]
    series = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        steps, values = run.present(metric)
        if values:
            values = smoothed(values) if chart.smooth else values
            series.append(Series(name, steps, values, colour=f"c{i % 8}"))
    note = chart.note.replace("; bold: smoothed", ", smoothed")
    return line_chart(chart.title, series, note=note, y_range=(chart.low, chart.high), show=chart.show)
