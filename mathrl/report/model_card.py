"""The README of an exported model: what it was trained on, by what, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mathrl import __version__
from mathrl.config import Config
from mathrl.report.titles import set_words


def model_card(
    config: Config, summary: Mapping[str, Any], protocol: Mapping[str, Any], *, step: int, base: str
) -> str:
    """Markdown with the hub's front matter; without a summary (a run under way) it tells no results.

    Args:
        summary: summary.json, or empty.
        protocol: of the evaluation after training, or empty.
        step: of the exported checkpoint.
        base: folder or hub name of the reference.
    """
    data = config.data
    source = Path(data.path).name if data.path else data.source
    local = Path(base).exists()
    front = ["library_name: transformers", "tags:", "- mathrl", f"- {config.algorithm.name}"]
    front += [] if local else [f"base_model: {base.partition('@')[0]}"]
    lines = ["---", *front, "---", "", f"# {config.run.name or config.recipe}", ""]
    lines += [
        f"Trained with mathrl {__version__} ({config.algorithm.name}, LoRA rank {config.lora.rank}) on "
        f"{source}, {step} steps of {config.rollout.problems_per_step} problems × "
        f"{config.rollout.group_size} completions of at most {config.rollout.max_completion_tokens} tokens, "
        f"seed {config.run.seed}.",
        "",
        f"The merged model stands at the top, its adapter in `adapter/`. Reference: {_named(base, local)}.",
        "",
    ]
    if summary:
        lines += ["## Results", "", *_results(summary), "", *_asked(protocol)]
    return "\n".join(lines)


def _named(base: str, local: bool) -> str:
    return "the supervised stage of the same run" if local else f"`{base}`"


def _results(summary: Mapping[str, Any]) -> list[str]:
    """Accuracy before and after with 95 % intervals, and the paired difference."""
    rows = ["| problems | n | before | after | difference | p |", "|---|---|---|---|---|---|"]
    for name, row in {"held_out": summary, **summary.get("other_sets", {})}.items():
        was, now, gain = row["before"], row["after"], row["difference"]
        rows.append(
            f"| {set_words(name)} | {now['n']} | {_share(was)} | {_share(now)} | {100 * gain['value']:+.1f} "
            f"[{100 * gain['ci95'][0]:+.1f}, {100 * gain['ci95'][1]:+.1f}] | {gain['p_value']:.1g} |"
        )
    last = summary.get("steps")
    return [
        *rows,
        "",
        f"Greedy accuracy, 95 % intervals, of the adapter after step {last}; p is paired and exact.",
    ]


def _share(value: Mapping[str, Any]) -> str:
    low, high = value["ci95"]
    return f"{100 * value['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _asked(protocol: Mapping[str, Any]) -> list[str]:
    if not protocol:
        return []
    return [
        "How it was asked:",
        "",
        "```json",
        json.dumps(dict(protocol), indent=1, ensure_ascii=False),
        "```",
        "",
    ]
