"""What hanging and hungry answers cost the verifier pool: 10,000 judgements, 1 % of them hostile.

    python benchmarks/verifier_pool.py [--store]

The same healthy judgements run first alone, then with the hostile ones among them. The bound is 1.5 times the
sum of the healthy time and the hung ones' time limits shared among the workers. Also measured: the time from
a cold start to the first verdict, and the memory of this process before and after.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from record import ROOT, describe, store

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "verifiers")]

from verifiers import Outcome, Verdict  # noqa: E402
from verifiers.pool.pool import Request, VerifierPool  # noqa: E402

NUM_REQUESTS = 10_000
NUM_HANGING = 60
NUM_HUNGRY = 40
NUM_WORKERS = 2
TIMEOUT_S = 1.0
MISBEHAVING = "hostile_types:Misbehaving"


def main() -> None:
    """Measure, print, and store with `--store`."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", action="store_true", help="write benchmarks/results/verifier_pool.json")
    options = parser.parse_args()
    result = describe(("sympy", "mpmath")) | measure()
    for name, value in result.items():
        print(f"{name}: {value}")
    if options.store:
        print(store("verifier_pool", result))


def measure() -> dict[str, Any]:
    """Seconds of a cold start, of the healthy judgements alone and of all; verdicts, order and memory."""
    requests = _requests()
    healthy = [request for request in requests if request.answer_type == "auto"]
    rss_before = _rss_mb()
    start = time.perf_counter()
    with VerifierPool(NUM_WORKERS, TIMEOUT_S) as pool:
        pool.map(healthy[:1])
        first_verdict_s = time.perf_counter() - start
        healthy_s, _ = _timed(pool, healthy)
        all_s, verdicts = _timed(pool, requests)
        workers_mb = [_rss_mb(pid) for pid in pool.worker_pids()]
    bound_s = 1.5 * (healthy_s + NUM_HANGING * TIMEOUT_S / NUM_WORKERS)
    in_order = all(
        verdict.extracted in (request.completion, None)
        for request, verdict in zip(requests, verdicts, strict=True)
    )
    return {
        "workers": NUM_WORKERS,
        "timeout_s": TIMEOUT_S,
        "first_verdict_s": round(first_verdict_s, 3),
        "healthy_s": round(healthy_s, 2),
        "healthy_verdicts_per_s": round(len(healthy) / healthy_s),
        "all_s": round(all_s, 2),
        "bound_s": round(bound_s, 2),
        "share_of_bound": round(all_s / bound_s, 3),
        "verdicts": len(verdicts),
        "in_order": in_order,
        "outcomes": {str(name): count for name, count in Counter(v.outcome for v in verdicts).items()},
        "healthy_judged_wrongly": sum(
            verdict.outcome is not Outcome.CORRECT
            for request, verdict in zip(requests, verdicts, strict=True)
            if request.answer_type == "auto"
        ),
        "parent_mb_before_and_after": [rss_before, _rss_mb()],
        "worker_mb_after": workers_mb,
    }


def _requests() -> list[Request]:
    """Expressions that only a worker decides, with the hostile ones at fixed random places."""
    draw = random.Random(1)
    requests = [
        Request(
            f"\\frac{{{a}x+{b}}}{{\\sqrt{{{c}}}}}",
            f"\\frac{{\\sqrt{{{c}}}({a}x+{b})}}{{{c}}}",
            "auto",
            "bare",
        )
        for a, b, c in (
            (draw.randint(2, 99), draw.randint(2, 99), draw.choice((2, 3, 5, 7))) for _ in range(NUM_REQUESTS)
        )
    ]
    places = draw.sample(range(NUM_REQUESTS), NUM_HANGING + NUM_HUNGRY)
    for place in places[:NUM_HANGING]:
        requests[place] = Request("spin", "say yes", MISBEHAVING, "bare")
    for place in places[NUM_HANGING:]:
        requests[place] = Request("eat 8192", "say yes", MISBEHAVING, "bare")
    return requests


def _timed(pool: VerifierPool, requests: list[Request]) -> tuple[float, list[Verdict]]:
    start = time.perf_counter()
    verdicts = pool.map(requests)
    return time.perf_counter() - start, verdicts


def _rss_mb(pid: int | str = "self") -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1024


if __name__ == "__main__":
    main()
