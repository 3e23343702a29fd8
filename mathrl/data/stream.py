"""The order in which a run asks its problems."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from mathrl.data.history import History
from mathrl.data.problem_set import ProblemSet, part_of, refuse_small_part, refuse_too_few
from mathrl.types import Group, Problem, derive_seed


class ProblemStream:
    """Problems in a seeded order, a new order every epoch, with a cursor that can be saved.

    Args:
        history: what the run has seen of each problem; some that taught nothing are then passed over.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, history: History | None = None) -> None:
        self.problems, self.seed, self.history = list(problems), seed, history
        self.epoch, self.position = 0, 0
        self._changed = False
        self._order = self._shuffled()

    @property
    def changed(self) -> bool:
        """Whether the restored state is of other problems: these began an epoch of their own then."""
        return self._changed

    def take(self, n: int) -> list[Problem]:
        """The next ``n`` problems, all different; what is left of an epoch and too short is passed over.

        With a history nothing is passed over for being at an epoch's end: the next one goes on from there.

        Raises:
            UserError: there are fewer than ``n`` problems.
        """
        refuse_too_few(n, len(self.problems))
        if self.history is not None:
            return self._take_by_history(n, self.history)
        if self.position + n > len(self.problems):
            self._next_epoch()
        taken = self._order[self.position : self.position + n]
        self.position += n
        return [self.problems[i] for i in taken]

    def observe(self, groups: Sequence[Group]) -> dict[str, float]:
        """Note how a step's problems went; metrics of the history (none without one)."""
        return self.history.observe(groups) if self.history is not None else {}

    def state(self) -> dict[str, Any]:
        """The cursor, and the history where there is one, for ``restore``."""
        return self._cursor() | ({"history": self.history.state()} if self.history is not None else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, from a stream of the same seed.

        A place in the order of other problems says nothing of these, so they begin a new epoch.
        """
        self.epoch, self.position = state["epoch"], state["position"]
        self._changed = state.get("problems", self._digest) != self._digest
        if self._changed:
            self.epoch, self.position = self.epoch + 1, 0
        self._order = self._shuffled()
        if self.history is not None:
            self.history.restore(state.get("history", {}))

    def _cursor(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "problems": self._digest}

    @cached_property
    def _digest(self) -> str:
        """Of the problems, in their order."""
        digest = hashlib.blake2b(digest_size=8)
        for problem in self.problems:
            text = "\x1f".join((problem.id, problem.question, problem.answer, "\x1e"))
            digest.update(text.encode(errors="replace"))
        return digest.hexdigest()

    def _take_by_history(self, n: int, history: History) -> list[Problem]:
        taken: dict[str, Problem] = {}
        while len(taken) < n:
            if self.position == len(self.problems):
                self._next_epoch()
            problem = self.problems[self._order[self.position]]
            self.position += 1
            if problem.id not in taken and not history.skips(problem.id, self.seed, self.epoch):
                taken[problem.id] = problem
        return list(taken.values())

    def _next_epoch(self) -> None:
        self.epoch, self.position = self.epoch + 1, 0
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        order = list(range(len(self.problems)))
        random.Random(derive_seed(self.seed, "order", self.epoch)).shuffle(order)
        return order


class MixedStream(ProblemStream):
    """Several parts, each in an order and with epochs of its own, drawn from in proportion to their weights.

    Of n problems a part gives n · weight / sum of weights. What does not come out even is carried over, so
    that after every step each part has given its share of all problems so far up to a problem or two.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        seed: int,
        shares: Mapping[str, float],
        history: History | None = None,
    ) -> None:
        """Raises UserError: a part has no problem left."""
        self.problems, self.seed, self.history = list(problems), seed, history
        total = sum(shares.values())
        self.shares = {name: weight / total for name, weight in shares.items()}
        self._owed = dict.fromkeys(shares, 0.0)  # problems a part is behind its share
        self._parts = {}
        for name in shares:
            own = [p for p in self.problems if part_of(p) == name]
            refuse_small_part(name, 0, 0, len(own))
            self._parts[name] = ProblemStream(own, derive_seed(seed, "part", name), history)

    @property
    def changed(self) -> bool:
        return any(part.changed for part in self._parts.values())

    def take(self, n: int) -> list[Problem]:
        """The next ``n`` problems, all different.

        Raises:
            UserError: a part has fewer problems than its share of ``n``.
        """
        for name, share in self.shares.items():
            self._owed[name] += n * share
        taken: list[Problem] = []
        counts = self._counts(n)
        for name, count in counts.items():
            self._owed[name] -= count
            refuse_small_part(name, count, n, len(self._parts[name].problems))
            taken += self._parts[name].take(count)
        return taken

    def state(self) -> dict[str, Any]:
        """The cursors of all parts, and the history where there is one, for ``restore``."""
        parts = {name: part._cursor() for name, part in self._parts.items()}
        state: dict[str, Any] = {"parts": parts, "owed": dict(self._owed)}
        return state | ({"history": self.history.state()} if self.history is not None else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, from a stream of the same shares and seed; changed parts anew."""
        history = state.get("history", {})
        for name, part in self._parts.items():
            part.restore(state["parts"][name] | {"history": history})
        self._owed = dict(state["owed"])

    def _counts(self, n: int) -> dict[str, int]:
        """Problems of each part, n together, none below 0: one after the other from the part owed most.

        No part gives more than its share of n, rounded up: that many it was found to have at the start.
        """
        counts, owed = dict.fromkeys(self.shares, 0), dict(self._owed)
        most = {name: math.ceil(n * share - 1e-9) for name, share in self.shares.items()}
        for _ in range(n):
            free = [name for name in owed if counts[name] < most[name]]
            chosen = max(free, key=lambda name: round(owed[name], 9))  # equal but for rounding: the first
            owed[chosen] -= 1
            counts[chosen] += 1
        return counts


def make_stream(found: ProblemSet, seed: int, history: History | None = None) -> ProblemStream:
    """The stream of a run's training problems: by the weights of their mix, where they are one."""
    if found.shares:
        return MixedStream(found.problems, seed, found.shares, history)
    return ProblemStream(found.problems, seed, history)
