"""Ranked pairs from verdicts: a right and a wrong answer to the same problem, balanced by problem and length.

An outcome reward model needs no human labels (arXiv:2110.14168); what it needs is that nothing but being
right tells the two sides apart. A problem that is answered often both ways must not fill the set, and where
right answers are longer than wrong ones, length alone would rank most pairs.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mathrl.evaluation.result import Judged, Record
from mathrl.types import Problem, derive_seed

RIGHT, WRONG = ("correct",), ("wrong", "no_answer", "unparsed")
"""Outcomes that say something of an answer; what timed out or failed in the verifier is neither."""

_STEP = 1.25  # lengths in one bin differ by less than this factor
Cell = tuple[int, int]  # bins of the right and of the wrong side


@dataclass(frozen=True, slots=True)
class VerdictPair:
    """A right and a wrong answer to one problem."""

    problem: Problem
    right: Judged
    wrong: Judged

    @property
    def cell(self) -> Cell:
        return length_bin(self.right.num_tokens), length_bin(self.wrong.num_tokens)

    def to_row(self) -> dict[str, Any]:
        """JSON values; the question is what the answers were given to, options and all."""
        return {
            "problem_id": self.problem.id,
            "question": self.problem.question_with_options,
            "chosen": self.right.text,
            "rejected": self.wrong.text,
            "chosen_tokens": self.right.num_tokens,
            "rejected_tokens": self.wrong.num_tokens,
        }


@dataclass(frozen=True)
class Balance:
    """Ranked pairs, and what they were chosen from."""

    pairs: tuple[VerdictPair, ...]
    num_candidates: int
    num_problems: int  # that were answered
    num_mixed: int  # that were answered both ways

    @property
    def num_used(self) -> int:
        """Problems that have a pair."""
        return len({pair.problem.id for pair in self.pairs})

    @property
    def longer(self) -> tuple[int, int, int]:
        """Pairs whose right side is longer, shorter, and as long."""
        more = [pair.right.num_tokens - pair.wrong.num_tokens for pair in self.pairs]
        return sum(d > 0 for d in more), sum(d < 0 for d in more), sum(d == 0 for d in more)

    @property
    def ranked_by_length(self) -> float:
        """Share of pairs that the best rule from the two sides' bins of length alone ranks right."""
        cells = Counter(pair.cell for pair in self.pairs)
        lengths = {(min(cell), max(cell)) for cell in cells}
        right = sum(max(cells[i, j], cells[j, i]) if i != j else cells[i, j] / 2 for i, j in lengths)
        return right / max(len(self.pairs), 1)


def length_bin(num_tokens: int) -> int:
    return int(math.log(max(num_tokens, 1)) / math.log(_STEP))


def make_pairs(records: Iterable[Record], *, per_problem: int, length_ratio: float, seed: int = 0) -> Balance:
    """Right-against-wrong pairs of the same problem.

    Args:
        records: judged; greedy completions and samples count alike, equal texts once.
        per_problem: pairs of a problem at most.
        length_ratio: r >= 1. For any two bins of length, pairs whose right side is in the one and whose wrong
            side is in the other are at most r times as many as the other way round. Whatever is guessed from
            the bins of two lengths is then right in at most r / (r + 1) of the pairs of different bins: half
            of them with r = 1, and as often as it happens with r = inf.
        seed: which pairs are taken where there are more.
    """
    records = list(records)
    rng = random.Random(derive_seed(seed, "pairs"))
    cells: dict[Cell, list[VerdictPair]] = defaultdict(list)
    mixed, num = 0, 0
    for record in records:
        found = _candidates(record)
        mixed, num = mixed + bool(found), num + len(found)
        for pair in found:
            cells[pair.cell].append(pair)
    take = _Supply(per_problem, rng)
    chosen: list[VerdictPair] = []
    for i, j in sorted({(min(c), max(c)) for c in cells if c[0] != c[1]}):
        few, many = sorted((take.queue(cells[i, j]), take.queue(cells[j, i])), key=len)
        chosen += _two_directions(take, few, many, length_ratio)
    for cell in sorted(c for c in cells if c[0] == c[1]):
        queue = take.queue(cells[cell])
        while (equal := take(queue)) is not None:
            chosen.append(equal)
    rng.shuffle(chosen)
    return Balance(tuple(chosen), num, len(records), mixed)


def _candidates(record: Record) -> list[VerdictPair]:
    """Every right answer against every wrong one, each text once."""
    right: dict[str, Judged] = {}
    wrong: dict[str, Judged] = {}
    for judged in (record.greedy, *record.samples):
        text = judged.text.strip()
        if text and judged.outcome in RIGHT:
            right.setdefault(text, judged)
        elif text and judged.outcome in WRONG:
            wrong.setdefault(text, judged)
    return [VerdictPair(record.problem, a, b) for a in right.values() for b in wrong.values()]


Queue = list[tuple[int, int, float, VerdictPair]]


class _Supply:
    """Hands out pairs: of problems that have fewest so far, and of their answers those used least."""

    def __init__(self, per_problem: int, rng: random.Random) -> None:
        self.per_problem, self.rng = per_problem, rng
        self.taken: Counter[str] = Counter()  # pairs of a problem
        self.used: Counter[int] = Counter()  # pairs of an answer

    def queue(self, pairs: Iterable[VerdictPair]) -> Queue:
        queue = [(*self._rank(pair), self.rng.random(), pair) for pair in pairs]
        heapq.heapify(queue)
        return queue

    def __call__(self, queue: Queue) -> VerdictPair | None:
        """The next pair of the queue; None where there is none within the limit of its problem."""
        while queue:
            *rank, tie, pair = heapq.heappop(queue)
            now = self._rank(pair)
            if now[0] >= self.per_problem:
                continue
            if now != tuple(rank):  # others of its problem were taken meanwhile
                heapq.heappush(queue, (*now, tie, pair))
                continue
            self._count(pair, 1)
            return pair
        return None

    def put_back(self, pair: VerdictPair) -> None:
        self._count(pair, -1)

    def _rank(self, pair: VerdictPair) -> tuple[int, int]:
        return self.taken[pair.problem.id], self.used[id(pair.right)] + self.used[id(pair.wrong)]

    def _count(self, pair: VerdictPair, step: int) -> None:
        self.taken[pair.problem.id] += step
        self.used[id(pair.right)] += step
        self.used[id(pair.wrong)] += step


def _two_directions(take: _Supply, few: Queue, many: Queue, ratio: float) -> list[VerdictPair]:
    """Pairs of two bins of length, the abundant direction at most ``ratio`` times the scarce one."""
    chosen: list[VerdictPair] = []
    scarce = abundant = 0
    while (first := take(few)) is not None:
        second = take(many)
        if second is None:
            take.put_back(first)
            break
        chosen += [first, second]
        scarce, abundant = scarce + 1, abundant + 1
    while abundant + 1 <= ratio * scarce or ratio == math.inf:
        pair = take(many)
        if pair is None:
            break
        chosen.append(pair)
        abundant += 1
    return chosen
