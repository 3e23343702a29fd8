"""TRPO, PPO, GRPO and REINFORCE on one budget (`mathrl compare`), and the summary as a stored result.

    python benchmarks/algorithms.py --out runs/algorithms [options of mathrl compare]

Finished trials in the folder are taken as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.record import describe, store
from mathrl.cli import main as mathrl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--note", default="", help="about the machine: what else was running")
    args, rest = parser.parse_known_args()
    load = os.getloadavg()[2]  # of the last 15 minutes
    status = mathrl(["compare", "--out", str(args.out), *rest])
    if status:
        raise SystemExit(status)
    result = json.loads((args.out / "result.json").read_text(encoding="utf-8"))
    kept = {
        key: result[key]
        for key in ("recipe", "budgets", "problems", "jobs", "settings", "seconds", "summary")
    }
    reference = {key: result["reference"][key] for key in ("accuracy", "ci95")}
    machine = {"load_before": load, "note": args.note}
    print(store("algorithms", describe() | machine | kept | {"reference": reference}))


if __name__ == "__main__":
    main()
