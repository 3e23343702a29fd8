"""The problems of a role and what was left out of them: counted, shown, parted, joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mathrl.types import Problem, derive_seed

ASKED_BEFORE = "question asked before"


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that became no problem."""

    row: int  # counted from 1
    reason: str
    text: str  # what the row held

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason} ({self.text[:60]!r})"


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems of a role, and what was left out of them."""

    name: str
    problems: tuple[Problem, ...]
    skipped: tuple[SkippedRow, ...] = ()
    demonstration: bool = False  # generated to demonstrate, no benchmark
    words: frozenset[str] = frozenset()  # ids of problems whose reference is read only as words
    shares: Mapping[str, float] = field(default_factory=dict)  # of a mix: part -> its weight; else empty

    def __len__(self) -> int:
        return len(self.problems)

    def describe(self) -> str:
        """One line: how many problems, rows skipped for each reason, and references that are only words."""
        line = f"{self.name}: {len(self.problems)} problems"
        if self.shares:
            total, counts = sum(self.shares.values()), Counter(map(part_of, self.problems))
            parts = (f"{n} {counts[n]} ({w / total:.0%} of a step)" for n, w in self.shares.items())
            line += f": {', '.join(parts)}"
        if self.demonstration:
            line += " (generated, for demonstration only)"
        for reason, count in Counter(s.reason for s in self.skipped).most_common():
            first = next(s for s in self.skipped if s.reason == reason)
            line += f"; {count} skipped, such as {first}"
        worded = [p for p in self.problems if p.id in self.words]
        if worded:
            line += f"; {len(worded)} judged by their words alone, such as {worded[0].answer[:60]!r}"
        return line


def part_of(problem: Problem) -> str:
    """The part of a mix that a problem comes from; empty outside a mix."""
    return str(problem.meta.get("part", ""))


def mixed(name: str, sets: Sequence[ProblemSet], shares: Mapping[str, float]) -> ProblemSet:
    """Several sets as one; a question that two of them ask is asked once, as the first has it."""
    problems: list[Problem] = []
    skipped: list[SkippedRow] = []
    seen: set[str] = set()
    for found in sets:
        skipped += found.skipped
        for problem in found.problems:
            if question_key(problem) in seen:
                skipped.append(SkippedRow(row_of(problem), ASKED_BEFORE, problem.question))
            else:
                seen.add(question_key(problem))
                problems.append(problem)
    words = frozenset().union(*(found.words for found in sets))
    return ProblemSet(name, tuple(problems), tuple(skipped), words=words, shares=dict(shares))


def row_of(problem: Problem) -> int:
    """The number of the row that a problem was read from, counted from 1."""
    return int(problem.id.rsplit("/", 1)[1])


def question_key(problem: Problem) -> str:
    """What makes two problems the same question: their text but for case and spacing."""
    return " ".join("\n".join([problem.question, *problem.options]).casefold().split())


def question_keys(found: ProblemSet) -> set[str]:
    return {question_key(p) for p in found.problems}


def part_by_question(found: ProblemSet, purpose: str, fraction: float, *, inside: bool) -> ProblemSet:
    """A share of the problems, or the rest; by the question alone, so it holds for every run and order."""
    threshold = fraction * 2**63
    kept = tuple(p for p in found.problems if (derive_seed(purpose, question_key(p)) < threshold) == inside)
    return replace(found, problems=kept)


def without(found: ProblemSet, asked: set[str], reason: str) -> ProblemSet:
    """The problems whose question is not among ``asked``; the others as skipped."""
    same = [p for p in found.problems if question_key(p) in asked]
    if not same:
        return found
    skipped = [SkippedRow(row_of(p), reason, p.question) for p in same]
    kept = tuple(p for p in found.problems if question_key(p) not in asked)
    return replace(found, problems=kept, skipped=(*found.skipped, *skipped))
