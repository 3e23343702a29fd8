"""`python -m verifiers audit`: how far verdicts agree with labels, by answer type, and where they do not."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from verifiers.base import Outcome, Verdict
from verifiers.pool.pool import VerifierPool
from verifiers.tools.judge import submit_record
from verifiers.tools.records import Record, read_records

_Z_95 = 1.959963984540054
_SHOWN_CHARS = 60


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927, eq. 4); (0, 1) where there were no trials."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z_95**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z_95 * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(slots=True)
class Tally:
    """Counts over labelled records; CORRECT against the label is a false accept, else a false refusal."""

    agree: int = 0
    positives: int = 0
    negatives: int = 0
    false_accepts: int = 0
    false_refusals: int = 0

    def add(self, record: Record, verdict: Verdict) -> bool:
        """Count one verdict; returns whether it agrees with the record's label."""
        expected = record.expected
        wants_correct = expected is True or expected is Outcome.CORRECT
        is_correct = verdict.outcome is Outcome.CORRECT
        agrees = verdict.outcome is expected if isinstance(expected, Outcome) else is_correct == expected
        self.agree += agrees
        self.positives += wants_correct
        self.negatives += not wants_correct
        self.false_accepts += is_correct and not wants_correct
        self.false_refusals += wants_correct and not is_correct
        return agrees

    @property
    def total(self) -> int:
        """Labelled records counted."""
        return self.positives + self.negatives


@dataclass(slots=True)
class Audit:
    """What an audit found. seconds: wall clock; unusable: why a line could not be counted."""

    by_type: dict[str, Tally] = field(default_factory=dict)
    disagreements: list[tuple[Record, Verdict]] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    judging_s: list[float] = field(default_factory=list)
    seconds: float = 0.0


def audit(lines: Iterable[bytes], pool: VerifierPool, answer_type: str, extract: str) -> Audit:
    """Judge labelled lines and compare; lines without `expected` are listed as unusable."""
    result = Audit()
    start = time.perf_counter()
    submitted = [(r, submit_record(pool, r)) for r in read_records(lines, answer_type, extract)]
    for number, (record, future) in enumerate(submitted, start=1):
        if record.request is None or record.expected is None:
            result.unusable.append(record.problem or f"line {number} has no 'expected'")
            continue
        verdict = future.result()
        result.judging_s.append(verdict.seconds)
        if not result.by_type.setdefault(record.request.answer_type, Tally()).add(record, verdict):
            result.disagreements.append((record, verdict))
    result.seconds = time.perf_counter() - start
    return result


def render(result: Audit) -> str:
    """The audit as text: a table by type, the speed, then every disagreement."""
    rows = sorted(result.by_type.items())
    if len(rows) > 1:
        rows.append(("all", _total(result.by_type.values())))
    header = ("type", "records", "agree [95 %]", "false accepts [95 %]", "false refusals [95 %]")
    table = [header, *(_row(name, tally) for name, tally in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    text += ["", _speed(result), ""]
    text += [_disagreement(record, verdict) for record, verdict in result.disagreements]
    text += [f"not counted: {problem}" for problem in result.unusable]
    return "\n".join(line.rstrip() for line in text).rstrip()


def _total(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        for name in Tally.__slots__:
            setattr(total, name, getattr(total, name) + getattr(tally, name))
    return total


def _row(name: str, tally: Tally) -> tuple[str, ...]:
    return (
        name,
        str(tally.total),
        _share(tally.agree, tally.total),
        _share(tally.false_accepts, tally.negatives),
        _share(tally.false_refusals, tally.positives),
    )


def _share(part: int, whole: int) -> str:
    if whole == 0:
        return "-"
    low, high = wilson(part, whole)
    return f"{part}/{whole} = {100 * part / whole:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def _speed(result: Audit) -> str:
    if not result.judging_s:
        return "no labelled records"
    ordered = sorted(result.judging_s)
    median = ordered[len(ordered) // 2]
    p99 = ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)]
    return (
        f"{len(ordered) / result.seconds:,.0f} verdicts/s in {result.seconds:.2f} s; one verdict: median "
        f"{1e3 * median:.3f} ms, p99 {1e3 * p99:.3f} ms, slowest {1e3 * ordered[-1]:.3f} ms"
    )


def _disagreement(record: Record, verdict: Verdict) -> str:
    assert record.request is not None
    expected = {True: "correct", False: "not correct"}.get(record.expected, record.expected)  # type: ignore[arg-type]
    why = f" ({verdict.detail})" if verdict.detail else ""
    return (
        f"{record.id}: expected {expected}, got {verdict.outcome}{why}; type {record.request.answer_type}, "
        f"reference {_short(record.request.answer)}, extracted {_short(verdict.extracted)}, "
        f"completion ends {_short(record.request.completion, end=True)}"
    )


def _short(text: str | None, end: bool = False) -> str:
    if text is None:
        return "nothing"
    if len(text) > _SHOWN_CHARS:
        text = "…" + text[-_SHOWN_CHARS:] if end else text[:_SHOWN_CHARS] + "…"
    return ascii(text)
