"""Agreement and speed of the verifiers beside Math-Verify, on the repository's cases and any labelled JSONL.

    python benchmarks/verifiers.py --peer-python PEER/bin/python [--data DIR] [--store] [FILE.jsonl …]

PEER is an environment with `pip install "math-verify[antlr4_13_2]==0.9.0"`; without it we measure only ours.
Both judge the same lines, one after the other, on one core in the same run: ours in this process through
`verify`, and the hostile set (which Math-Verify survives by its alarm only) through a pool of one worker.
The answer type is `auto` for every line of a set unless the line names one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from record import ROOT, describe, store

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "verifiers")]

from verifiers import Outcome, Verdict, verify  # noqa: E402
from verifiers.pool.pool import VerifierPool  # noqa: E402
from verifiers.tools.audit import Tally, wilson  # noqa: E402
from verifiers.tools.records import Record, read_records  # noqa: E402

OVER_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Measured:
    """One grader on one set. over_limit: verdicts that took 5 s or longer; times in milliseconds."""

    agree: int
    agree_low: float
    agree_high: float
    false_accepts: int
    false_refusals: int
    verdicts_per_s: float
    median_ms: float
    p99_ms: float
    slowest_ms: float
    over_limit: int


def main() -> None:
    """Measure every set, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("labelled", nargs="*", type=Path, help="JSONL: id, answer, completion, expected, ...")
    parser.add_argument("--peer-python", help="interpreter that has math-verify")
    parser.add_argument("--data", type=Path, default=os.environ.get("MATHRL_DATA_DIR"), help="real data sets")
    parser.add_argument("--sets", nargs="+", metavar="NAME", help="measure only these, as they are printed")
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/verifiers.json")
    options = parser.parse_args()

    results: dict[str, Any] = {}
    for name, lines in _sets(options.labelled, options.data).items():
        if options.sets and name not in options.sets:
            continue
        records = [r for r in read_records(lines) if r.request is not None and r.expected is not None]
        ours = _ours_in_pool if name == "hostile" else _ours
        results[name] = {"cases": len(records), "ours": asdict(_measure(records, ours))}
        if options.peer_python:
            peer = _measure(records, lambda records: _math_verify(records, options.peer_python))
            results[name]["math_verify"] = asdict(peer)
            speed = results[name]["ours"]["verdicts_per_s"] / peer.verdicts_per_s
            results[name]["speed_ratio"] = round(speed, 2)
        _print_row(name, results[name])
    if options.store:
        # The paths of one machine say nothing to a reader of the results.
        command = {"command": "python benchmarks/verifiers.py --peer-python PEER/bin/python --store"}
        facts = describe(("sympy", "mpmath")) | command | {"cores_used": 1}
        print(store("verifiers", facts | {"sets": results}))


def _sets(labelled: list[Path], data: Path | None) -> dict[str, list[bytes]]:
    from hostile_corpus import labelled_lines

    sets = {
        path.stem: path.read_bytes().splitlines()
        for path in sorted(ROOT.glob("tests/verifiers/tables/*.jsonl"))
    }
    sets = {"all tables": [line for lines in sets.values() for line in lines], **sets}
    sets["hostile"] = [line.encode() for line in labelled_lines()]
    if data:
        sets |= _gsm8k(Path(data))
    return sets | {path.stem: path.read_bytes().splitlines() for path in labelled}


def _gsm8k(data: Path) -> dict[str, list[bytes]]:
    """Real solutions as completions: against their own reference, and against the next question's."""
    text = (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8")
    solutions = [json.loads(line)["answer"] for line in text.splitlines()]
    # Calculator notes are not what a model writes.
    completions = [re.sub(r"<<[^>]*>>", "", solution) for solution in solutions]
    answers = [solution.rpartition("####")[2].strip() for solution in solutions]
    shifted = answers[1:] + answers[:1]

    def lines(references: list[str]) -> list[bytes]:
        fields = [
            {
                "id": i,
                "answer": r,
                "completion": c,
                "type": "number",
                "expected": r.replace(",", "") == a.replace(",", ""),
            }
            for i, (r, a, c) in enumerate(zip(references, answers, completions, strict=True))
        ]
        return [json.dumps(line).encode() for line in fields]

    return {"gsm8k": lines(answers), "gsm8k-next-question": lines(shifted)}


def _ours(records: list[Record]) -> list[tuple[bool, float]]:
    verify("\\boxed{\\sqrt{2}+x}", "x+\\sqrt{2}")  # a cold import is not a verdict's time
    return [_timed(lambda r=r: verify(*_fields(r))) for r in records]


def _ours_in_pool(records: list[Record]) -> list[tuple[bool, float]]:
    with VerifierPool(num_workers=1, timeout_s=OVER_LIMIT_S) as pool:
        pool.submit(records[0].request).result()  # type: ignore[arg-type]
        return [_timed(lambda r=r: pool.submit(r.request).result()) for r in records]


def _timed(judge: Callable[[], Verdict]) -> tuple[bool, float]:
    start = time.perf_counter()
    verdict = judge()
    return verdict.outcome is Outcome.CORRECT, time.perf_counter() - start


def _fields(record: Record) -> tuple[Any, ...]:
    assert record.request is not None
    r = record.request
    return r.completion, r.answer, r.answer_type, r.extract, r.options, r.prompt, r.row


def _math_verify(records: list[Record], python: str) -> list[tuple[bool, float]]:
    peer = subprocess.Popen(
        [python, str(Path(__file__).with_name("math_verify_peer.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert peer.stdin is not None
    assert peer.stdout is not None
    with peer:
        peer.stdout.readline()
        verdicts = []
        for record in records:
            completion, answer, *_ = _fields(record)
            peer.stdin.write(json.dumps({"answer": answer, "completion": completion}) + "\n")
            peer.stdin.flush()
            line = peer.stdout.readline()
            if not line:
                raise SystemExit(f"Math-Verify's process ended on record {record.id!r}; see its error above")
            verdict = json.loads(line)
            verdicts.append((verdict["correct"], verdict["seconds"]))
        peer.stdin.close()
    return verdicts


def _measure(records: list[Record], judge: Callable[[list[Record]], list[tuple[bool, float]]]) -> Measured:
    tally = Tally()
    times = []
    for record, (correct, seconds) in zip(records, judge(records), strict=True):
        wanted = record.expected is True or record.expected is Outcome.CORRECT
        # Math-Verify has no outcomes, so both are held to one question: correct or not?
        as_bool = Record(record.id, record.request, wanted)
        tally.add(as_bool, Verdict(Outcome.CORRECT if correct else Outcome.WRONG))
        times.append(seconds)
    low, high = wilson(tally.agree, tally.total)
    times.sort()
    return Measured(
        agree=tally.agree,
        agree_low=round(low, 4),
        agree_high=round(high, 4),
        false_accepts=tally.false_accepts,
        false_refusals=tally.false_refusals,
        verdicts_per_s=round(len(times) / sum(times), 1),
        median_ms=round(1e3 * times[len(times) // 2], 4),
        p99_ms=round(1e3 * times[math.ceil(0.99 * len(times)) - 1], 4),
        slowest_ms=round(1e3 * times[-1], 4),
        over_limit=sum(seconds >= OVER_LIMIT_S for seconds in times),
    )


def _print_row(name: str, result: dict[str, Any]) -> None:
    for grader in ("ours", "math_verify"):
        if grader in result:
            m = result[grader]
            print(
                f"{name:22} {grader:12} {m['agree']:5}/{result['cases']:<5} "
                f"[{100 * m['agree_low']:.1f}, {100 * m['agree_high']:.1f}] % agree, "
                f"{m['false_accepts']:3} false accepts, {m['false_refusals']:3} false refusals, "
                f"{m['verdicts_per_s']:9,.0f}/s, median {m['median_ms']:.3f} ms, p99 {m['p99_ms']:.2f} ms, "
                f"slowest {m['slowest_ms']:.0f} ms, {m['over_limit']} over {OVER_LIMIT_S:g} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
