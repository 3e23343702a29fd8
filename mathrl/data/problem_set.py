"""The problems of a role and what was left out of them: counted, shown, parted, joined, and enough or not."""

from __future__ import annotations

import math
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
    part: str = ""  # of a mix

    def __str__(self) -> str:
        return f"row {self.row}: {self.reason} ({self.text[:60]!r})"


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rows that are not among the problems though nothing is wrong with them."""

    what: str  # what they are, with the field that says so
    num: int
    part: str = ""  # of a mix


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """The problems of a role, and what was left out of them."""

    name: str
    problems: tuple[Problem, ...]
    skipped: tuple[SkippedRow, ...] = ()
    demonstration: bool = False  # generated to demonstrate, no benchmark
    words: frozenset[str] = frozenset()  # ids of problems whose reference is read only as words
    shares: Mapping[str, float] = field(default_factory=dict)  # of a mix: part -> its weight; else empty
    aside: tuple[SetAside, ...] = ()

    def __len__(self) -> int:
        return len(self.problems)

    def numbered(self) -> Iterator[tuple[int, Problem]]:
        """Each problem with the number of its row, counted from 1; with its place where none was read."""
        for place, problem in enumerate(self.problems, 1):
            yield place if self.demonstration else row_of(problem), problem

    def account(self, part: str = "") -> str:
        """Where all rows are (of a mix, of one part): "of 60 rows (5 held out …; 2 skipped, …)".

        Empty where every row is a problem of the set.
        """
        gone: Counter[str] = Counter()
        for other in self.aside:
            if part in ("", other.part):
                gone[other.what] += other.num
        for row in self.skipped:
            if part in ("", row.part):
                gone[f"skipped, {row.reason}"] += 1
        if not gone:
            return ""
        there = sum(part in ("", part_of(p)) for p in self.problems)
        told = "; ".join(f"{num} {what}" for what, num in gone.most_common())
        return f"of {there + gone.total()} rows ({told})"

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
                skipped.append(_skipped(problem, ASKED_BEFORE))
            else:
                seen.add(question_key(problem))
                problems.append(problem)
    words = frozenset().union(*(found.words for found in sets))
    aside = tuple(other for found in sets for other in found.aside)
    return ProblemSet(name, tuple(problems), tuple(skipped), words=words, shares=dict(shares), aside=aside)


def labelled(found: ProblemSet, part: str) -> ProblemSet:
    """The set as a part of a mix: its name is on all that is known of it, and ids are its own."""
    ids = {p.id: f"{part}/{p.id.rsplit('/', 1)[1]}" for p in found.problems}
    return replace(
        found,
        problems=tuple(replace(p, id=ids[p.id], meta={**p.meta, "part": part}) for p in found.problems),
        skipped=tuple(replace(row, part=part) for row in found.skipped),
        words=frozenset(ids[i] for i in found.words if i in ids),  # the rest is on the other side
        aside=tuple(replace(other, part=part) for other in found.aside),
    )


def of_part(found: ProblemSet, part: str) -> ProblemSet:
    """What a mix has of one part."""
    return replace(
        found,
        name=part,
        problems=tuple(p for p in found.problems if part_of(p) == part),
        skipped=tuple(row for row in found.skipped if row.part == part),
        aside=tuple(other for other in found.aside if other.part == part),
        shares={},
    )


def _skipped(problem: Problem, reason: str) -> SkippedRow:
    return SkippedRow(row_of(problem), reason, problem.question, part=part_of(problem))


def row_of(problem: Problem) -> int:
    """The number of the row that a problem was read from, counted from 1."""
    return int(problem.id.rsplit("/", 1)[1])


def question_key(problem: Problem) -> str:
    """What makes two problems the same question: their text but for case and spacing."""
    return " ".join("\n".join([problem.question, *problem.options]).casefold().split())


def question_keys(found: ProblemSet) -> set[str]:
    return {question_key(p) for p in found.problems}


def kept_of(found: ProblemSet, kept: Iterable[Problem], others: str) -> ProblemSet:
    """Some of the problems; the others as set aside, being ``others``."""
    problems = tuple(kept)
    gone = Counter(map(part_of, found.problems)) - Counter(map(part_of, problems))
    aside = (SetAside(others, num, part) for part, num in gone.items())
    return replace(found, problems=problems, aside=(*found.aside, *aside))


def part_by_question(
    found: ProblemSet, purpose: str, fraction: float, *, inside: bool, others: str
) -> ProblemSet:
    """A share of the problems, or the rest; by the question alone, so it holds for every run and order.

    Args:
        others: what the problems of the other side are.
    """
    return kept_of(found, (p for p in found.problems if _in_share(p, purpose, fraction) == inside), others)


def without_share(found: ProblemSet, fraction: float) -> ProblemSet:
    """What the supervised stage leaves: all but its share, of which it takes the worked ones alone."""
    kept = (p for p in found.problems if not (p.solution and _in_share(p, "sft", fraction)))
    return kept_of(found, kept, f"the supervised stage's by data.sft_fraction {fraction:g}")


def _in_share(problem: Problem, purpose: str, fraction: float) -> bool:
    return derive_seed(purpose, question_key(problem)) < fraction * 2**63


def without(found: ProblemSet, asked: set[str], reason: str) -> ProblemSet:
    """The problems whose question is not among ``asked``; the others as skipped."""
    same = [p for p in found.problems if question_key(p) in asked]
    if not same:
        return found
    skipped = [_skipped(p, reason) for p in same]
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
        skipped.append(SkippedRow(row, called, problem.question, part=part_of(problem)))
    if not kept:
        raise UserError(
            f"no problem is left of {found.name}{_comma(found.account())}: all are too long ({reason})"
        )
    return replace(found, problems=tuple(kept), skipped=(*found.skipped, *skipped))


def check_enough(needed: int, found: ProblemSet) -> None:
    """Refuse a step that needs more different problems than there are, of a mix in any part.

    Raises:
        UserError: how many there are, where the other rows went, and what to change.
    """
    refuse_too_few(needed, len(found), f" in {found.name}{_comma(found.account())}", found.demonstration)
    total, counts = sum(found.shares.values()), Counter(map(part_of, found.problems))
    for name, weight in found.shares.items():
        refuse_small_part(name, needed * weight / total, needed, counts[name], found.account(name))


def refuse_too_few(needed: int, there: int, where: str = "", generated: bool = False) -> None:
    """Refuse a step that needs more different problems than there are.

    Raises:
        UserError: so it is.
    """
    if there < needed:
        more = "raise data.num_train_problems" if generated else "load more problems"
        raise UserError(
            f"a step needs {needed} different problems and there are {there}{where}: lower "
            f"rollout.problems_per_step or {more}"
        )


def refuse_small_part(name: str, share: float, needed: int, there: int, account: str = "") -> None:
    """Refuse a part of a mix that has fewer problems than its share of a step, rounded up.

    Raises:
        UserError: so it is; or the part has none.
    """
    if not there:
        raise UserError(
            f"no problem is left of {name!r} in data.mix{_comma(account)}: take it out of the mix"
        )
    if there < math.ceil(share - 1e-9):
        raise UserError(
            f"{name!r} gives {round(share, 1):g} of a step's {needed} problems and has "
            f"{there}{_comma(account)}: lower its weight in data.mix or rollout.problems_per_step"
        )


def _comma(text: str) -> str:
    return f", {text}" if text else ""
