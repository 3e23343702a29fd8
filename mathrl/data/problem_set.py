"""The problems of a role and what was left out of them: counted, shown, parted, joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mathrl.errors import UserError
from mathrl.types import Problem, derive_seed

ASKED_BEFORE = "question asked before"


@dataclass(frozen=True, slots=True)
class SkippedRow:
    """A row that became no problem."""

    row: int  # counted from 1
    reason: str
    text: str  # what the row held
    unread: bool = False  # it holds a problem, and its reference was not read

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

    def numbered(self) -> Iterator[tuple[int, Problem]]:
        """Each problem with the number of its row, counted from 1; with its place where none was read."""
        for place, problem in enumerate(self.problems, 1):
            yield place if self.demonstration else row_of(problem), problem

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
    kept = (p for p in found.problems if _in_share(p, purpose, fraction) == inside)
    return replace(found, problems=tuple(kept))


def without_share(found: ProblemSet, fraction: float) -> ProblemSet:
    """What the supervised stage leaves: all but its share, of which it takes the worked ones alone."""
    kept = (p for p in found.problems if not (p.solution and _in_share(p, "sft", fraction)))
    return replace(found, problems=tuple(kept))


def _in_share(problem: Problem, purpose: str, fraction: float) -> bool:
    return derive_seed(purpose, question_key(problem)) < fraction * 2**63


def without(found: ProblemSet, asked: set[str], reason: str) -> ProblemSet:
    """The problems whose question is not among ``asked``; the others as skipped."""
    same = [p for p in found.problems if question_key(p) in asked]
    if not same:
        return found
    skipped = [SkippedRow(row_of(p), reason, p.question) for p in same]
    kept = tuple(p for p in found.problems if question_key(p) not in asked)
    return replace(found, problems=kept, skipped=(*found.skipped, *skipped))


def keep_fitting(
    found: ProblemSet, reasons: Iterable[str], *, called: str, skip: bool, most: int | None = None
) -> ProblemSet:
    """The first ``most`` problems (all: None) that nothing stands against; the others as skipped rows.

    Args:
        reasons: one a problem, in order: what is too long for what; "" where it fits.
        called: what rows are skipped for, in the count of them.
        skip: data.skip_long_prompts; else the first that does not fit is refused.

    Raises:
        UserError: a problem does not fit and ``skip`` is false, or none does.
    """
    kept: list[Problem] = []
    skipped: list[SkippedRow] = []
    reason = ""
    for (row, problem), against in zip(found.numbered(), reasons, strict=True):
        if most is not None and len(kept) == most:
            break
        if not against:
            kept.append(problem)
            continue
        reason = against
        if not skip:
            raise UserError(
                f"{found.name}, problem {problem.id}: {reason}: change the limit, or leave such problems out "
                "with --data.skip_long_prompts"
            )
        skipped.append(SkippedRow(row, called, problem.question))
    if not kept:
        raise UserError(f"no problem is left of {found.name}: all are too long ({reason})")
    return replace(found, problems=tuple(kept), skipped=(*found.skipped, *skipped))


def check_enough(needed: int, there: int, where: str = "") -> None:
    """Refuse a step that needs more different problems than there are."""
    if there < needed:
        raise UserError(
            f"a step needs {needed} different problems and there are {there}{where and f' in {where}'}: "
            "lower rollout.problems_per_step or load more problems"
        )
