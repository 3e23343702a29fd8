"""What a step takes on N GPUs, from its measured parts; tables of scaleout.md.

    python benchmarks/scaleout_model.py [--out DIR]     prints them from scaleout.json
    python benchmarks/scaleout_model.py --parts         measures what every rank does for all groups (CPU)

Parts of one GPU with p problems of 8 completions: rollout, forward and update by p, verify and sync. Where
scaleout.json has no shares of a step yet, they are of step_time.py on one H200: of a decoding step of n
completions a + b n seconds, from its fixed and its varying lengths; the rest in proportion to the tokens.

To them come, for N ranks: the all-reduce of the adapter's gradients (2 (N - 1) / N of its bytes through the
slowest link), gathering all groups (each rank receives and unpickles lengths and scores of all), what every
rank computes over all groups (selection, metrics), and agreements. Completions of varying length end when the
longest of all has ended: its expected length, not the mean's, times the seconds of a decoding step.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from record import RESULTS, describe, store

GROUP, TOKENS = 8, 256
MEAN, SIGMA, LIMIT = 300, 0.7, 1024  # of the varying lengths, as step_workload.py draws them
SIZES = (1, 2, 8, 64, 512)
A_HOST = 8  # GPUs
LINKS = {"400 Gb/s": 50e9, "25 Gb/s": 3.1e9}  # between hosts, bytes a second: assumed
SOCKET = 1e9  # bytes a second of an exchange of objects through sockets: assumed
ROUND_S = 1e-3  # a short question to all, for each doubling of the ranks: assumed where not measured
PHASES = ("rollout", "verify", "forward", "update", "sync")

GOALS = (  # what is divided by what, and the most that it should be
    ("0.5b: two GPUs", "0.5b: one GPU", 0.58),
    ("0.5b: two GPUs, twice the problems", "0.5b: one GPU", 1.08),
    ("1.5b: two GPUs", "1.5b: one GPU", 0.58),
    ("1.5b: two GPUs, twice the problems", "1.5b: one GPU", 1.08),
    ("0.5b: variable lengths on two GPUs", "0.5b: variable lengths on one GPU", 0.62),
    ("0.5b: two GPUs", "TRL, two GPUs: as it comes", 1 / 3),
    ("TRL, two GPUs: as it comes", "TRL, one GPU: as it comes", math.inf),
)
CALLS = ("reduce", "gather", "agree", "wait")


# -- what was measured


def step_s(cases: Mapping[str, Any], title: str) -> float | None:
    found = cases.get(title, {})
    return statistics.median(found["seconds"]) if found.get("seconds") else None


def phases_of(case: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of a phase, the mean of the ranks."""
    if "ranks" not in case:  # TRL's, as rank 0 clocks them
        return {name: statistics.median(seconds) for name, seconds in case["phases"].items()}
    names = dict.fromkeys(name for step in case["ranks"] for rank in step for name in rank)
    return {
        name: statistics.median(statistics.fmean(r.get(name, 0.0) for r in step) for step in case["ranks"])
        for name in names
    }


def ratios(found: Mapping[str, Any]) -> str:
    """The measured steps by phase, and the goals."""
    cases = found["cases"]
    names = (*PHASES, *CALLS)
    lines = ["| step | s | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for title, case in cases.items():
        if not case.get("seconds"):
            if "failed" in case:
                lines.append(f"| {title} | not measured: {case['failed']} |")
            continue
        phases = phases_of(case)
        columns = " | ".join(f"{phases[n]:.3f}" if n in phases else "" for n in names)
        lines.append(f"| {title} (of {len(case['seconds'])}) | {step_s(cases, title):.3f} | {columns} |")
    lines.append("")
    for over, under, goal in GOALS:
        a, b = step_s(cases, over), step_s(cases, under)
        if a and b:
            told = "" if math.isinf(goal) else f" (goal {goal:.2f}: {'holds' if a / b <= goal else 'missed'})"
            lines.append(f"- {over} / {under}: {a / b:.3f}{told}")
    two = cases.get("0.5b: two GPUs", {})
    if two.get("ranks"):
        phases = phases_of(two)
        share = sum(phases[c] for c in ("reduce", "gather", "agree")) / sum(phases.values())
        lines.append(f"- reduce, gather and agree: {share:.1%} of the step (goal 3 %)")
    return "\n".join(lines)


# -- the model


class OneGpu:
    """Seconds of one GPU's own work by the number of its problems."""

    def __init__(
        self, phases: Mapping[float, Mapping[str, float]], decode_s: Callable[[float], float], told: str
    ):
        self._phases, self.decode_s, self.told = phases, decode_s, told

    def __call__(self, problems: float) -> dict[str, float]:
        """Between measured numbers of problems and beyond them in proportion."""
        known = sorted(self._phases)
        high = next((p for p in known[1:] if p >= problems), known[-1])
        low = known[known.index(high) - 1]
        t = (problems - low) / (high - low)
        return {
            name: max(0.0, (1 - t) * self._phases[low].get(name, 0.0) + t * self._phases[high].get(name, 0.0))
            for name in PHASES
        }


def measured_one(cases: Mapping[str, Any]) -> OneGpu | None:
    """From scaleout.json, if it has the shares of a step."""
    titles = {
        64: "one GPU",
        32: "half of the problems on one GPU",
        8: "an eighth of the problems on one GPU",
        1: "one problem on one GPU",
    }
    found = {p: cases.get(f"0.5b: {title}", {}) for p, title in titles.items()}
    phases: dict[float, Mapping[str, float]] = {p: phases_of(c) for p, c in found.items() if c.get("ranks")}
    if len(phases) < 2:
        return None
    curve = OneGpu(
        phases, lambda n: curve(n / GROUP)["rollout"] / TOKENS, "scaleout.json, one GPU of the pair"
    )
    return curve


def earlier_one() -> OneGpu:
    """From step_time.py on one H200."""
    fixed, varying = (_arm("step_time_0_5b"), _arm("step_time_variable"))
    sequences = 64 * GROUP
    # TOKENS (a + b sequences) = rollout;  LIMIT a + b tokens = rollout of the varying lengths
    per_step = fixed["median"]["rollout"] / TOKENS
    a = (varying["median"]["rollout"] - varying["tokens"] * per_step / sequences) / (
        LIMIT - varying["tokens"] / sequences
    )
    b = (per_step - a) / sequences

    def phases(problems: float) -> dict[str, float]:
        share = problems / 64
        parts = {name: fixed["median"][name] * share for name in ("verify", "forward", "update")}
        return parts | {
            "rollout": TOKENS * (a + b * problems * GROUP),
            "sync": fixed["median"]["sync"],
        }

    told = f"step_time.py on one H200: a decoding step takes {1e3 * a:.2f} ms + {1e6 * b:.1f} µs a completion"
    return OneGpu({p: phases(p) for p in (1, 64)}, lambda n: a + b * n, told)


def _arm(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())["arms"]["ours: in turn"]


def longest_of(n: float) -> float:
    """Expected longest of n log-normal lengths that are cut at LIMIT: the sum of P(longest > t)."""
    mu = math.log(MEAN) - SIGMA**2 / 2
    below = [0.5 * (1 + math.erf((math.log(t) - mu) / (SIGMA * math.sqrt(2)))) for t in range(1, LIMIT)]
    return 1.0 + sum(1 - p**n for p in below)


def mean_length() -> float:
    return longest_of(1)


def predict(
    one: OneGpu, parts: Mapping[str, float], ranks: int, problems: int, link: float, *, varying: bool = False
) -> dict[str, float]:
    """Seconds of a step of ``problems`` on ``ranks`` GPUs, by part.

    Args:
        parts: of ``common_parts``.
        link: bytes a second between hosts.
    """
    share = max(1.0, problems / ranks)
    found = one(share)
    completions = problems * GROUP
    if varying:
        sequences, longest = share * GROUP, longest_of(problems * GROUP)
        empty = one.decode_s(GROUP) - (one.decode_s(sequences) - one.decode_s(GROUP)) * GROUP / max(
            sequences - GROUP, 1
        )
        each = (one.decode_s(max(sequences, 2 * GROUP)) - empty) / max(sequences, 2 * GROUP)
        found["rollout"] = longest * empty + each * sequences * mean_length()
        for name in ("forward", "update"):
            found[name] *= mean_length() / TOKENS
    if ranks == 1:
        return found
    through = min(link, parts["link"]) if ranks > A_HOST else parts["link"]
    found["reduce"] = parts["reduce_s"] + 2 * (ranks - 1) / ranks * parts["bytes"] / through
    wire = min(link, SOCKET) if ranks > A_HOST else SOCKET
    a_completion = parts["bytes_a_completion"] / wire + parts["unpickle_a_completion_s"]
    found["gather"] = completions * a_completion + ROUND_S * math.log2(ranks)
    found["over all groups"] = completions * parts["metrics_a_completion_s"] * (1 - 1 / ranks)
    found["agree"] = 12 * ROUND_S * math.log2(ranks)
    return found


def common_parts(cases: Mapping[str, Any]) -> dict[str, float]:
    """Sums of tensors, by what was measured of them or by what this kind of machine has been seen to do; and
    scaleout_parts.json."""
    parts = json.loads((RESULTS / "scaleout_parts.json").read_text())["parts"]
    numel = 17_596_416  # LoRA r 32 on all linears of the 0.5B shape
    link, first = 329e9, 1e-4  # bytes a second of an all-reduce between two H100s of a host, seen before
    sums = cases.get("0.5b: sums", {})
    if "adapter_s" in sums:
        numel = sums["numel"]
        link = 3 * 4 * numel / max(sums["four_adapters_s"] - sums["adapter_s"], 1e-9)  # 2 (N - 1) / N is 1
        first = sums["one_number_s"]
    return parts | {"bytes": 4.0 * numel, "link": link, "reduce_s": first}


def tables(found: Mapping[str, Any]) -> str:
    cases = found.get("cases", {})
    one, parts = measured_one(cases) or earlier_one(), common_parts(cases)
    names = (*PHASES, "reduce", "gather", "over all groups", "agree")
    lines = [f"One GPU by {one.told}.", ""]
    kinds = (
        ("64 problems in all", lambda n: 64, False),
        ("64 problems a GPU", lambda n: 64 * n, False),
        ("64 problems a GPU, varying lengths", lambda n: 64 * n, True),
        ("64 problems in all, varying lengths", lambda n: 64, True),
    )
    for kind, problems, varying in kinds:
        head = f"| {kind}: GPUs | step s | problems/s a GPU, of one's | "
        lines += [head + " | ".join(names) + " |", "|---|---|---|" + "---|" * len(names)]
        alone = sum(predict(one, parts, 1, 64, 0.0, varying=varying).values())
        for ranks in SIZES:
            for link_name, link in LINKS.items() if ranks > A_HOST else [("", 0.0)]:
                found_parts = predict(one, parts, ranks, problems(ranks), link, varying=varying)
                step = sum(found_parts.values())
                rate = problems(ranks) / ranks / step * alone / 64
                columns = " | ".join(f"{found_parts.get(n, 0.0):.3f}" for n in names)
                title = f"{ranks}, {link_name} between hosts" if link_name else str(ranks)
                lines.append(f"| {title} | {step:.2f} | {rate:.0%} | {columns} |")
        lines.append("")
    both = {"0.5b: two GPUs": (64, False), "0.5b: two GPUs, twice the problems": (128, False)}
    both |= {"0.5b: variable lengths on two GPUs": (64, True)}
    lines += ["| two GPUs | predicted s | of one's | measured s | of one's |", "|---|---|---|---|---|"]
    for title, (problems_of_step, varying) in both.items():
        alone = sum(predict(one, parts, 1, 64, 0.0, varying=varying).values())
        step = sum(predict(one, parts, 2, problems_of_step, 0.0, varying=varying).values())
        base = "0.5b: variable lengths on one GPU" if varying else "0.5b: one GPU"
        seen, seen_alone = step_s(cases, title), step_s(cases, base)
        told = f"{seen:.2f} | {seen / seen_alone:.2f}" if seen and seen_alone else "not yet |"
        lines.append(f"| {title.partition(': ')[2]} | {step:.2f} | {step / alone:.2f} | {told} |")
    return "\n".join(lines)


# -- parts of the CPU


def measure_parts() -> dict[str, float]:
    """Of what every rank does for the groups of all: seconds and bytes, medians of five."""
    import random

    from mathrl.rewards.scorer import could_be_judged, rollout_metrics
    from mathrl.training.sharing import tell
    from mathrl.types import Completion, Group, Problem, Score

    rng = random.Random(0)

    def completion() -> Completion:
        ids = tuple(rng.randrange(150_000) for _ in range(TOKENS))
        return Completion(ids, "x" * 4 * TOKENS, "length", tuple(-rng.random() for _ in ids))

    groups = [
        Group(
            Problem(str(p), "", "7", "number"),
            tuple(range(128)),
            tuple(completion() for _ in range(GROUP)),
            0,
            tuple(Score(float(i % 2), "wrong", "3") for i in range(GROUP)),
        )
        for p in range(64)
    ]
    told, completions = [tell(group, whole=False) for group in groups], 64 * GROUP
    data = pickle.dumps(told)
    return {
        "bytes_a_completion": len(data) / completions,
        "pickle_a_completion_s": _median_s(lambda: pickle.dumps(told)) / completions,
        "unpickle_a_completion_s": _median_s(lambda: pickle.loads(data)) / completions,
        "metrics_a_completion_s": _median_s(lambda: rollout_metrics(could_be_judged(groups))) / completions,
    }


def _median_s(work: Callable[[], Any], times: int = 5) -> float:
    found: list[float] = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of scaleout.json")
    parser.add_argument("--parts", action="store_true")
    args = parser.parse_args(words)
    if args.parts:
        print(store("scaleout_parts", describe(("torch",)) | {"parts": measure_parts()}).read_text())
        return
    file = args.out / "scaleout.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if found:
        print(ratios(found) + "\n")
    print(tables(found))


if __name__ == "__main__":
    main()
