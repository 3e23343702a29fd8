"""Rows as a file of any format, and such a file as problems."""

import csv
import json

from mathrl.config import DataConfig
from mathrl.data.problems import load_problems

ROWS = [{"question": f"What is {n} plus 1?", "answer": str(n + 1), "level": n % 2} for n in range(50)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    else:
        import datasets

        datasets.Dataset.from_list(rows).to_parquet(path)
    return str(path)


def load(path, role="train", seed=0, **fields):
    return load_problems(DataConfig(path=str(path), **fields), role, seed)
