"""How the references of data sets are read: as mathematics, as words alone, or not at all.

    python benchmarks/verifier_references.py FILE.jsonl … [--field answer] [--type auto] [--show 20] [--store]

A file holds one JSON object a line, with the reference in the field; a list of references counts each item.
Each distinct reference is read once, and judged against itself as a bare answer. Printed are, for each file,
how many are read as mathematics, as words around mathematics (the words must be the same, the mathematics
equal), only as words (an answer must then repeat them), and not at all; how many refuse themselves; and the
99th percentile and the maximum of the time for reading and judging one, in milliseconds, on one core and
without a cache. Below stand the groups of what is not mathematics, with counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from record import ROOT, describe, store

sys.path.insert(0, str(ROOT))

from verifiers import Outcome, parse_reference, verify
from verifiers.tools.references import Reading, ReadReference, read_reference


@dataclass(slots=True)
class Readings:
    """The distinct references of a file: how each was read, which refuse themselves, and seconds each."""

    read: list[tuple[str, ReadReference]] = field(default_factory=list)
    not_itself: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def add(self, reference: str, answer_type: str) -> None:
        parse_reference.cache_clear()
        start = time.perf_counter()
        reading = read_reference(reference, answer_type)
        extract = "boxed" if "\\boxed" in reference else "bare"
        verdict = verify(reference, reference, answer_type, extract)
        self.seconds.append(time.perf_counter() - start)
        self.read.append((reference, reading))
        if reading.reading is not Reading.UNREAD and verdict.outcome is not Outcome.CORRECT:
            self.not_itself.append(reference)

    def counts(self) -> dict[str, float]:
        """One row of the table."""
        by_reading = Counter(found.reading for _, found in self.read)
        ordered = sorted(self.seconds)
        return {
            "distinct": len(self.read),
            **{str(reading): by_reading[reading] for reading in Reading},
            "not_itself": len(self.not_itself),
            "p99_ms": round(1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))], 2),
            "max_ms": round(1e3 * ordered[-1], 2),
        }


def main() -> None:
    """Read every file, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--field", default="answer", help="field of the reference (default: answer)")
    parser.add_argument("--type", default="auto", help="answer type (default: auto)")
    parser.add_argument("--show", type=int, default=3, help="references shown of each group (default: 3)")
    parser.add_argument("--store", action="store_true", help="write results/verifier_references.json")
    options = parser.parse_args()

    verify("\\boxed{\\sqrt{2}+x}", "x+\\sqrt{2}")  # a cold import is no reference's time
    total, rows = Readings(), {}
    print(
        f"{'file':24}{'distinct':>9}{'mathematics':>19}{'description':>17}{'words':>17}{'unread':>17}", end=""
    )
    print(f"{'not itself':>12}{'p99, max':>17}")
    for path in options.files:
        readings = Readings()
        for reference in dict.fromkeys(_references(path, options.field)):
            readings.add(reference, options.type)
        if not readings.read:
            sys.exit(f"{path} holds no reference in a field {options.field!r}; name it with --field")
        rows[path.stem] = readings.counts()
        _print_row(path.stem, rows[path.stem])
        for name in ("read", "not_itself", "seconds"):
            getattr(total, name).extend(getattr(readings, name))
    if len(rows) > 1:
        _print_row("all", total.counts())
    _print_groups(total, options.show)
    if options.store:
        facts = describe(("sympy", "mpmath")) | {
            "command": "python benchmarks/verifier_references.py FILE.jsonl …"
        }
        print(store("verifier_references", facts | {"files": rows, "all": total.counts()}))


def _references(path: Path, name: str) -> Iterable[str]:
    """The references of a file in order, numbers as text. Exits with a sentence for what is no such file."""
    try:
        lines = path.read_bytes().split(b"\n")
        rows = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    except ValueError as error:
        sys.exit(f"{path} must hold one JSON object a line: {error}")
    for number, row in rows:
        value: Any = row.get(name) if isinstance(row, dict) else row
        if value is None:
            sys.exit(f"{path}, line {number} has no field {name!r}; name the reference's with --field")
        for item in value if isinstance(value, list) else [value]:
            yield str(item)


def _print_row(name: str, row: dict[str, float]) -> None:
    shares = "".join(
        f"{row[str(reading)]:>{width},} {100 * row[str(reading)] / row['distinct']:6.2f} %"
        for reading, width in (
            (Reading.MATHEMATICS, 8),
            (Reading.DESCRIPTION, 6),
            (Reading.WORDS, 6),
            (Reading.UNREAD, 6),
        )
    )
    times = f"{row['p99_ms']:>9.1f}{row['max_ms']:>8.1f}"
    print(f"{name:24}{row['distinct']:>9,}{shares}{row['not_itself']:>12,}{times}")


def _print_groups(total: Readings, num_shown: int) -> None:
    for reading in (Reading.UNREAD, Reading.WORDS):
        found = [(text, read.kind) for text, read in total.read if read.reading is reading]
        for kind, count in Counter(kind for _, kind in found).most_common():
            print(f"\n{reading}, {kind}: {count}")
            for text in [text for text, own in found if own == kind][:num_shown]:
                print(f"    {json.dumps(text, ensure_ascii=False)[:160]}")
    if total.not_itself:
        print(f"\nrefuse themselves: {len(total.not_itself)}")
        for text in total.not_itself[:num_shown]:
            print(f"    {json.dumps(text, ensure_ascii=False)[:160]}")


if __name__ == "__main__":
    main()
