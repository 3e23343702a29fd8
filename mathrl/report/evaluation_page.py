"""What an evaluation leaves: eval.json, eval.html with every completion to browse, a console table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from mathrl.evaluation.paired import Difference
from mathrl.evaluation.ranking import Ranking
from mathrl.evaluation.result import Estimate, Evaluation, Judged, Slice
from mathrl.evaluation.statistics import Interval, holm, sample_size_paired
from mathrl.report import pages, ranking_parts
from mathrl.report.charts import IntervalRow, Point, interval_rows, share_bars
from mathrl.report.pages import duration, percent
from mathrl.report.run_page import VERDICTS, direction, failures, slice_rows
from mathrl.report.titles import kind_title
from mathrl.run.files import write_json, write_text, writing

MAX_PAGE_BYTES = 24_000_000  # of completions in the page; beyond, long texts are cut and the page says so
_SHORTEST_CUT = 200
PAGE_FILES = ("eval.json", "eval.html")
_RARE = ("unparsed", "timeout", "error")  # outcomes the console shows where there are any


@dataclass(frozen=True)
class Result:
    """An evaluation and what it is held against."""

    evaluation: Evaluation
    before: Evaluation | None = None
    difference: Difference | None = None
    benchmark: Mapping[str, Any] = field(default_factory=dict)
    contamination: Mapping[str, Any] = field(default_factory=dict)
    ranking: Ranking | None = None  # of the samples, by a reward model

    @property
    def name(self) -> str:
        return self.evaluation.name


def write_results(
    out: Path,
    title: str,
    results: Sequence[Result],
    versions: Mapping[str, str],
    against: Path | None = None,
) -> Path:
    """Write ``out``/eval.json and ``out``/eval.html; returns the page's path.

    Args:
        against: where the earlier results of a comparison lie.
    """
    adjusted = adjusted_p_values(results)
    tables = {
        r.name: r.evaluation.to_dict()
        | {"benchmark": dict(r.benchmark), "contamination": dict(r.contamination)}
        | (
            {"difference": r.difference.to_dict() | {"p_value_holm": adjusted[r.name]}}
            if r.difference
            else {}
        )
        | ({"ranking": r.ranking.to_dict()} if r.ranking else {})
        for r in results
    }
    numbers, page = (out / name for name in PAGE_FILES)
    compared = {"against": str(against)} if against else {}
    with writing(page):
        write_json(numbers, {"title": title, **compared, "versions": dict(versions), "benchmarks": tables})
        write_text(page, render(title, results, versions))
    return page


def adjusted_p_values(results: Sequence[Result]) -> dict[str, float]:
    """Holm-corrected p of each paired difference, over the benchmarks that have one."""
    tested = [(r.name, r.difference.p_value) for r in results if r.difference]
    return dict(zip((name for name, _ in tested), holm([p for _, p in tested]), strict=True))


def print_results(console: Console, results: Sequence[Result]) -> None:
    """A table of all benchmarks, and warnings."""
    table = Table(box=None, pad_edge=False)
    k = max(r.evaluation.k for r in results)
    compared = any(r.difference for r in results)
    header = ["benchmark", "n", "greedy"]
    header += [f"mean@{k}", f"pass@{k}", f"maj@{k}"] if k else []
    failed = ["no_answer", *(o for o in _RARE if any(r.evaluation.outcomes.get(o) for r in results))]
    header += ["truncated", *(pages.verdict_words(o) for o in failed)]
    header += ["difference", "p (Holm)"] if compared else []
    for name in header:
        table.add_column(name, justify="left" if name == "benchmark" else "right")
    adjusted = adjusted_p_values(results)
    for r in results:
        e = r.evaluation
        cells = [r.name, str(e.n), _with_interval(Estimate(e.accuracy, e.ci95))]
        if k:
            measures = (e.pass_at_k, e.maj_at_k)
            cells.append(_with_interval(Estimate(e.mean_at_k or 0.0, e.mean_at_k_ci95 or Interval(0, 1))))
            cells += [percent(m[e.k].value) if e.k else "" for m in measures]
        cells += [percent(e.truncated / e.n), *(percent(e.outcomes.get(o, 0) / e.n) for o in failed)]
        if compared and r.difference:
            d = r.difference
            cells.append(f"{100 * d.value:+.1f} [{100 * d.ci95.low:+.1f}, {100 * d.ci95.high:+.1f}]")
            cells.append(f"{adjusted[r.name]:.2g}")
        table.add_row(*cells)
    console.print(table)
    for r in results:
        if 0 < r.evaluation.ended.n < r.evaluation.n:
            console.print(f"{r.name}: {_ended(r.evaluation)}")
        for line in ranking_parts.lines(r.ranking) if r.ranking else []:
            console.print(f"{r.name}: {line}", soft_wrap=True)
        if r.contamination.get("warning"):
            console.print(f"{r.name}: {r.contamination['warning']}")
        if r.benchmark.get("num_duplicates"):
            console.print(f"{r.name}: {r.benchmark['num_duplicates']} questions are asked more than once")
        if r.evaluation.skipped or r.benchmark.get("num_unreadable_references"):
            count = r.evaluation.skipped + r.benchmark.get("num_unreadable_references", 0)
            console.print(f"{r.name}: {count} references no verifier reads are left out")


def _ended(e: Evaluation) -> str:
    """Accuracy apart from the length limit."""
    ended = _with_interval(Estimate(e.ended.accuracy, e.ended.ci95))
    return f"of the {e.ended.n} greedy completions that ended by themselves {ended} are right"


def _with_interval(e: Estimate) -> str:
    return f"{percent(e.value)} [{100 * e.ci95.low:.1f}, {100 * e.ci95.high:.1f}]"


def render(title: str, results: Sequence[Result], versions: Mapping[str, str]) -> str:
    """The page as HTML."""
    data, cut = browse_data(results)
    adjusted = adjusted_p_values(results)
    total = sum(len(r.evaluation.records) * (1 + r.evaluation.k) for r in results)
    return pages.render(
        "evaluation.html",
        title=f"{title}: evaluation",
        subtitle=f"{len(results)} benchmark{'s' * (len(results) != 1)}, {total:,} completions",
        overview=_overview(results),
        differences=_differences(results, adjusted),
        compared=any(r.difference for r in results),
        sections=[_section(r, adjusted.get(r.name)) for r in results],
        data=data,
        cut=cut,
        versions=", ".join(f"{k} {v}" for k, v in versions.items()),
    )


def _overview(results: Sequence[Result]) -> Markup:
    rows = []
    for r in results:
        e, points = r.evaluation, []
        if r.before is not None:
            points.append(Point("before", r.before.accuracy, r.before.ci95, "before"))
        points.append(Point("greedy", e.accuracy, e.ci95, "after"))
        rows.append(IntervalRow(r.name, f"n = {e.n}", points))
    return interval_rows(rows, caption="Greedy accuracy by benchmark")


def _differences(results: Sequence[Result], adjusted: Mapping[str, float]) -> Markup:
    """The paired difference of each benchmark around 0; empty where nothing is compared."""
    tested = [(r, r.difference) for r in results if r.difference]
    if not tested:
        return Markup("")
    rows = [
        IntervalRow(
            r.name,
            f"p {pages.p_value(adjusted[r.name])}",
            [Point("difference", d.value, d.ci95, "after")],
            f"{100 * d.value:+.1f} points",
        )
        for r, d in tested
    ]
    reach = max(0.05, *(abs(edge) for _, d in tested for edge in d.ci95))
    return interval_rows(rows, caption="Paired difference by benchmark", low=-reach, high=reach, signed=True)


def _section(r: Result, adjusted: float | None) -> dict[str, Any]:
    e = r.evaluation
    seconds = sum(e.seconds.values())
    facts = [
        ("greedy", _with_interval(Estimate(e.accuracy, e.ci95))),
        *_sample_facts(e),
        *(ranking_parts.facts(r.ranking) if r.ranking else []),
        ("problems", f"{e.n:,}"),
        ("tokens", f"{e.tokens:,}"),
        ("time", duration(seconds)),
    ]
    return {
        "name": r.name,
        "facts": facts,
        "failures": failures(e),
        "difference": _difference(r, adjusted),
        "warnings": _warnings(r),
        "curves": [*ranking_parts.curves(e, r.ranking), _verdicts(r)],
        "ranked": ranking_parts.sentences(r.ranking) if r.ranking else [],
        "slices": [{"title": kind_title(key), "rows": _slices(r, key)} for key in [*e.keys, "length"]],
        "benchmark": [(k, str(v)) for k, v in r.benchmark.items() if v not in ("", 0, {})],
        "protocol": pages.shown({**e.protocol, "protocol hash": e.protocol_hash, "seed": e.seed, **e.info}),
    }


def _sample_facts(e: Evaluation) -> list[tuple[str, str]]:
    if e.mean_at_k is None or e.mean_at_k_ci95 is None:
        return []
    return [
        (f"mean@{e.k}", _with_interval(Estimate(e.mean_at_k, e.mean_at_k_ci95))),
        (f"pass@{e.k}", _with_interval(e.pass_at_k[e.k])),
        (f"maj@{e.k}", _with_interval(e.maj_at_k[e.k])),
    ]


def _difference(r: Result, adjusted: float | None) -> dict[str, Any] | None:
    d = r.difference
    if d is None or adjusted is None:
        return None
    low, high = (100 * v for v in d.ci95)
    return {
        "value": 100 * d.value,
        "low": low,
        "high": high,
        "p": d.p_value,
        "p_holm": adjusted,
        "direction": direction(low, high),
        "verdict": VERDICTS[direction(low, high)],
        "newly_right": len(d.newly_right),
        "newly_wrong": len(d.newly_wrong),
        "needed": _needed(r, d),
    }


def _needed(r: Result, d: Difference) -> str:
    """How many problems a difference that chance could explain would need."""
    changed = (len(d.newly_right) + len(d.newly_wrong)) / r.evaluation.n
    gain = abs(d.value)
    if d.p_value < 0.05 or gain == 0 or changed < gain:
        return ""
    n = sample_size_paired(gain, changed)
    return (
        f"A true difference of this size shows up four times in five with {n:,} problems; "
        f"these are {r.evaluation.n:,}."
    )


def _warnings(r: Result) -> list[str]:
    found = []
    if r.contamination.get("warning"):
        clean = r.contamination["accuracy_without"]
        told = f"; there {percent(clean['accuracy'])} of {clean['n']:,} are right" if clean["n"] else ""
        found.append(f"{r.contamination['warning']}{told}.")
    if r.contamination.get("template"):
        found.append(
            f"{r.contamination['template']} more questions differ from a training question "
            "in their numbers alone."
        )
    if r.benchmark.get("num_duplicates"):
        found.append(f"{r.benchmark['num_duplicates']} questions are asked more than once.")
    unread = r.evaluation.skipped + r.benchmark.get("num_unreadable_references", 0)
    if unread:
        found.append(f"{unread} references that no verifier reads are left out.")
    for outcome, words in (
        ("timeout", "verdicts ran out of time"),
        ("error", "verdicts failed in the verifier"),
    ):
        count = r.evaluation.outcomes.get(outcome, 0) + r.evaluation.sample_outcomes.get(outcome, 0)
        if count:
            found.append(f"{count} {words}; they count as not right.")
    return found


def _verdicts(r: Result) -> Markup:
    """How greedy completions and samples were judged, as shares."""
    e = r.evaluation
    given = [("greedy", e.outcomes), ("samples", e.sample_outcomes)]
    if r.before is not None:
        given.insert(0, ("before", r.before.outcomes))
    rows = [
        (
            name,
            [(word, counts.get(o, 0) / sum(counts.values()), o) for o, word in pages.OUTCOME_WORDS.items()],
        )
        for name, counts in given
        if counts
    ]
    cut = percent(e.truncated / e.n) if e.n else "none"
    note = f"{cut} of the greedy completions ended at the length limit"
    note += f"; {_ended(e)}." if 0 < e.ended.n < e.n else "."
    return share_bars("Verdicts", rows, note=note)


def _slices(r: Result, key: str) -> Markup:
    if r.before is not None and key != "length":
        return slice_rows(key, r.before, r.evaluation)

    def row(s: Slice) -> IntervalRow:
        label = f"{s.value} tokens" if key == "length" else s.value
        return IntervalRow(label, f"n = {s.n}", [Point("greedy", s.accuracy, s.ci95, "after")])

    return interval_rows([row(s) for s in r.evaluation.by(key)], caption=key)


def browse_data(results: Sequence[Result]) -> tuple[dict[str, Any], int]:
    """(every completion for the page's list, characters a text is cut to or 0).

    Texts are cut, all to the same length, where they would make the page larger than MAX_PAGE_BYTES.
    """
    cut = 0
    while True:
        data = {"outcomes": pages.OUTCOME_WORDS, "sets": [_browse_set(r, cut) for r in results]}
        size = len(json.dumps(data, ensure_ascii=False).encode())
        if size <= MAX_PAGE_BYTES or 0 < cut <= _SHORTEST_CUT:
            return data, cut
        longest = max(
            len(c.text) for r in results for x in r.evaluation.records for c in (x.greedy, *x.samples)
        )
        cut = max(_SHORTEST_CUT, int((cut or longest) * 0.7 * MAX_PAGE_BYTES / size))


def _browse_set(r: Result, cut: int) -> dict[str, Any]:
    right = set(r.difference.newly_right) if r.difference else set()
    wrong = set(r.difference.newly_wrong) if r.difference else set()
    before = {b.problem.id: b.greedy for b in r.before.records} if r.before else {}

    def row(c: Judged) -> list[Any]:
        text = (
            c.text
            if not cut or len(c.text) <= cut
            else f"{c.text[:cut]}\n… {len(c.text) - cut} more characters"
        )
        return [c.outcome, text, c.extracted, c.num_tokens, int(c.finish_reason == "length"), c.detail]

    problems = []
    for record in r.evaluation.records:
        p = record.problem
        kinds = [f"{key}: {p.meta[key]}" for key in r.evaluation.keys if p.meta.get(key) is not None]
        change = "right" if p.id in right else "wrong" if p.id in wrong else ""
        completions = [row(c) for c in (record.greedy, *record.samples)]
        was = [row(before[p.id])] if change else []
        problems.append([p.id, p.question_with_options, p.answer, kinds, change, completions, *was])
    return {"name": r.name, "problems": problems}
