"""The order in which a run asks its problems."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from mathrl.data.history import History
from mathrl.errors import UserError
from mathrl.types import Group, Problem, derive_seed


class ProblemStream:
    """Problems in a seeded order, a new order every epoch, with a cursor that can be saved.

    Args:
        history: what the run has seen of each problem; some that taught nothing are then passed over.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, history: History | None = None) -> None:
        self.problems, self.seed, self.history = list(problems), seed, history
        self.epoch, self.position = 0, 0
        self._order = self._shuffled()

    def take(self, n: int) -> list[Problem]:
        """The next ``n`` problems, all different; what is left of an epoch and too short is passed over.

        With a history nothing is passed over for being at an epoch's end: the next one goes on from there.

        Raises:
            UserError: there are fewer than ``n`` problems.
        """
        if n > len(self.problems):
            raise UserError(
                f"a step needs {n} different problems and there are {len(self.problems)}: lower "
                "rollout.problems_per_step or load more problems"
            )
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
        cursor: dict[str, Any] = {"epoch": self.epoch, "position": self.position}
        return cursor | ({"history": self.history.state()} if self.history is not None else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken from a stream of the same problems and seed."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._shuffled()
        if self.history is not None:
            self.history.restore(state.get("history", {}))

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
