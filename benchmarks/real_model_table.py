"""What came of the stages of real_model.py, from the small files that they kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wordproblems_baselines import read_rows
from wordproblems_gpu import curve

from mathrl.evaluation.benchmark_sets import normalised
from mathrl.evaluation.contamination import find_contamination
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.result import Evaluation, Record
from mathrl.evaluation.statistics import paired_proportions, wilson_interval
from mathrl.report.run_record import MAIN_SET, RunRecord, read_run

SMOOTHED = 3  # looks at the held-out problems whose mean is compared: one alone is ± 3 points


def table(folder: Path, keep: Path) -> dict[str, Any]:
    """Runs by name, TRL beside them, and the tokens that data.history saved."""
    result: dict[str, Any] = {"runs": {}, "peers": {}}
    for home in sorted(path.parent for path in keep.glob("*/summary.json")):
        record = read_run(home)
        which = "gsm8k" if home.name.startswith("gsm8k") else "short"
        result["runs"][home.name] = run(record, folder, which)
    for file in sorted(keep.glob("trl_*.json")):
        own = result["runs"].get(file.stem.removeprefix("trl_"), {}).get("curve")
        result["peers"][file.stem] = beside(json.loads(file.read_text()), own)
    supervised = keep / "supervised" / "sft_metrics.jsonl"
    if supervised.is_file():
        result["supervised"] = [json.loads(line) for line in supervised.open()]
    if (keep / "wordings.json").is_file():
        result["wordings"] = json.loads((keep / "wordings.json").read_text())
    for name in list(result["runs"]):
        plain = name.replace("short_", "short_plain_")
        if plain != name and plain in result["runs"]:
            result.setdefault("history", {})[name] = saved(
                result["runs"][name]["curve"], result["runs"][plain]["curve"]
            )
    return result


def run(record: RunRecord, folder: Path, which: str) -> dict[str, Any]:
    """Before and after, by set, on what no training question resembles, and the curve."""
    evaluations = {when: record.evaluations[MAIN_SET, when] for when in ("before", "after")}
    compare_evaluations(evaluations["before"], evaluations["after"])  # refuses what is not alike
    summary = record.summary
    found: dict[str, Any] = {
        "all": both(evaluations, None),
        "steps": summary["steps"],
        "step_seconds": summary["step_seconds"],
        "seconds": summary["seconds"],
        "tokens_sampled": summary["tokens_sampled"],
        "made_with": {name: summary[name] for name in ("hardware", "versions") if name in summary},
        "curve": with_tokens(record.rows),
    }
    if which == "short":
        sources = {normalised(r["question"]): r["source"] for r in read_rows(folder / "short_held_out.jsonl")}
        for name in ("svamp", "mawps"):
            ids = {
                r.problem.id
                for r in evaluations["after"].records
                if sources[normalised(r.problem.question)] == name
            }
            found[name] = both(evaluations, ids)
    trained = [row["question"] for row in read_rows(folder / f"{which}.jsonl")]
    trained += [row["question"] for row in read_rows(folder / "solutions.jsonl")]
    problems = [r.problem for r in evaluations["after"].records]
    near = find_contamination(problems, trained).found
    found["novel"] = both(evaluations, {p.id for p in problems if p.id not in near})
    return found


def both(evaluations: Mapping[str, Evaluation], ids: set[str] | None) -> dict[str, Any]:
    """Greedy accuracy with its interval and mean@k, before and after, and the paired difference."""
    kept = {
        when: [r for r in found.records if ids is None or r.problem.id in ids]
        for when, found in evaluations.items()
    }
    paired = paired_proportions(*([r.greedy.correct for r in records] for records in kept.values()))
    return {when: shares(records) for when, records in kept.items()} | {
        "difference": {"value": paired.value, "ci95": list(paired.ci95), "p_value": paired.p_value}
    }


def shares(records: Sequence[Record]) -> dict[str, Any]:
    right, n = sum(r.greedy.correct for r in records), len(records)
    samples = [s.correct for r in records for s in r.samples]
    return {
        "n": n,
        "accuracy": right / n if n else None,
        "ci95": list(wilson_interval(right, n)),
        "mean_at_k": sum(samples) / len(samples) if samples else None,
    }


def with_tokens(rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Held-out accuracy over the seconds of steps and the tokens sampled for them."""
    tokens, by_step = 0.0, {}
    for row in rows:
        tokens += row.get("tokens/sampled", 0.0)
        by_step[row["step"]] = tokens
    return [point | {"tokens": by_step[point["step"]]} for point in curve(rows)]


def beside(peer: dict[str, Any], own: Sequence[Mapping[str, float]] | None) -> dict[str, Any]:
    """TRL's curve, and how long each took to TRL's last accuracy."""
    last = peer["curve"][-1]
    reached = next((p for p in own or () if p["accuracy"] >= last["accuracy"]), None)
    ratio = reached["seconds"] / last["seconds"] if reached else None
    return peer | {"last": last, "ours_there": reached, "seconds_ratio": ratio}


def saved(own: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Tokens until the mean of some looks reaches the plain run's last such mean."""
    target = smoothed(plain)[-1]["accuracy"]
    there = [next((p for p in smoothed(c) if p["accuracy"] >= target), None) for c in (own, plain)]
    ours, theirs = there
    ratio = ours["tokens"] / theirs["tokens"] if ours and theirs else None
    return {"accuracy": target, "with_history": ours, "plain": theirs, "tokens_ratio": ratio}


def smoothed(points: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Each look with the mean accuracy of itself and those before it."""
    found = []
    for end in range(min(SMOOTHED, len(points)), len(points) + 1):
        part = points[max(0, end - SMOOTHED) : end]
        found.append({**part[-1], "accuracy": sum(p["accuracy"] for p in part) / len(part)})
    return found
