"""The quickstart with several seeds: held-out accuracy before and after, and what each run cost.

    python benchmarks/quickstart.py [--seeds 0 1 2] [--out FOLDER] [--section.key value ...]

Each seed is one ``mathrl train quickstart`` in a process of its own, base model, SFT and GRPO all from that
seed; the held-out problems are the same for all. The table says for each whether accuracy rose by 20 points
at least with the 95 % intervals apart. Runs that are there and finished are read, not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import RESULTS, describe, store

GOAL_POINTS = 20.0
SETS = {"held_out": "held-out problems", "held_out_templates": "unseen templates"}


def run(seed: int, out: Path, overrides: list[str]) -> dict[str, Any]:
    """summary.json of the quickstart with this seed."""
    name = f"quickstart-seed-{seed}"
    command = [sys.executable, "-m", "mathrl.cli", "train", "quickstart", "--resume"]
    command += ["--run.seed", str(seed), "--run.name", name, "--run.output_dir", str(out), *overrides]
    status = subprocess.run(command, check=False).returncode
    if status:  # the command has said why
        sys.exit(status)
    summary: dict[str, Any] = json.loads((out / name / "summary.json").read_text(encoding="utf-8"))
    return summary


def row(seed: int, summary: dict[str, Any]) -> dict[str, Any]:
    """What the table says of one run."""
    sets = {"held_out": summary, **summary["other_sets"]}
    before, after = summary["before"], summary["after"]
    apart = before["ci95"][1] < after["ci95"][0]
    points = 100 * (after["accuracy"] - before["accuracy"])
    return {
        "seed": seed,
        "sets": {name: {w: s[w] for w in ("before", "after", "difference")} for name, s in sets.items()},
        "seconds": summary["seconds"],
        "seconds_total": round(sum(summary["seconds"].values()), 1),
        "tokens_sampled": summary["tokens_sampled"],
        "steps": summary["steps"],
        "reached": apart and points >= GOAL_POINTS,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# Quickstart, three seeds",
        "",
        f"`{result['command']}`, commit {result['commit'][:12]}, {result['hardware']}, {result['date']}.",
        "",
        "Greedy accuracy in per cent with 95 % intervals (Wilson); the difference is paired, a problem each.",
        "",
        "| seed | problems | n | before | after | difference | mean@k before → after | reached |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in result["runs"]:
        for name, values in r["sets"].items():
            before, after, gain = values["before"], values["after"], values["difference"]
            cells = [
                str(r["seed"]),
                SETS.get(name, name),
                str(after["n"]),
                _percent(before["accuracy"], before["ci95"]),
                _percent(after["accuracy"], after["ci95"]),
                _percent(gain["value"], gain["ci95"], sign="+"),
                f"{100 * before['mean_at_k']:.1f} → {100 * after['mean_at_k']:.1f}",
                ("yes" if r["reached"] else "no") if name == "held_out" else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "| seed | steps | tokens sampled | seconds in all | by phase |", "|---|---|---|---|---|"]
    for r in result["runs"]:
        phases = ", ".join(f"{name} {seconds:.0f}" for name, seconds in r["seconds"].items())
        lines.append(
            f"| {r['seed']} | {r['steps']} | {r['tokens_sampled']:,} | {r['seconds_total']:.0f} | {phases} |"
        )
    return "\n".join(lines) + "\n"


def _percent(value: float, interval: list[float], sign: str = "") -> str:
    low, high = interval
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args, overrides = parser.parse_known_args()
    result = describe()
    result["runs"] = [row(seed, run(seed, args.out, overrides)) for seed in args.seeds]
    store("quickstart", result)
    (RESULTS / "quickstart.md").write_text(table(result), encoding="utf-8")
    print(table(result))
    return 0 if all(r["reached"] for r in result["runs"]) else 1


if __name__ == "__main__":
    sys.exit(main())
