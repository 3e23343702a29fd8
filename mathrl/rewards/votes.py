"""Which answers are one answer, however they are written: what a majority vote counts together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mathrl.types import Problem
from verifiers import Outcome, Verdict
from verifiers.policy import as_asked
from verifiers.pool.pool import Request

MAX_COMPARISONS = 500
"""Of the answers to one problem: enough for 32 that are all different. Further ones go by their text."""

Judge = Callable[[Sequence[Request]], Sequence[Verdict]]
"""Requests -> their verdicts, in order: ``VerifierPool.map``."""


def same_answers(judge: Judge, asked: Sequence[tuple[Problem, Sequence[str]]]) -> list[list[int]]:
    """For every text of every problem, the place of the first text that says the same.

    Two texts say the same where each is right when the other is the reference. One way alone would not do: a
    reference forgives a missing percent sign or a rounding, and would make one answer of two.

    Args:
        asked: (problem, texts of answers to it, all different); the earlier a text, the surer it is compared.

    Returns:
        a list of places for each problem; a text that is like none before it has its own.
    """
    vote = [_Vote(problem, texts) for problem, texts in asked]
    while under_way := [v for v in vote if v.left]:
        for v in under_way:
            v.take_next()
        for backwards in (False, True):
            requests = [v.requests(backwards) for v in under_way]
            verdicts = iter(judge([request for own in requests for request in own]))
            for v, own in zip(under_way, requests, strict=True):
                v.keep([next(verdicts).outcome is Outcome.CORRECT for _ in own])
        for v in under_way:
            v.settle()
    return [v.first for v in vote]


class _Vote:
    """The answers to one problem; in each round one of them is held against all that are left."""

    def __init__(self, problem: Problem, texts: Sequence[str]) -> None:
        self.problem, self.texts = problem, texts
        self.first = list(range(len(texts)))
        self.left = list(self.first)
        self.room = MAX_COMPARISONS
        self.now = 0
        self.like: list[int] = []  # those that may say the same as ``now``

    def take_next(self) -> None:
        self.now, *self.left = self.left
        self.like = self.left[: self.room]
        self.room -= len(self.like)

    def requests(self, backwards: bool) -> list[Request]:
        pairs = [(self.now, i) if backwards else (i, self.now) for i in self.like]
        p = self.problem
        return [
            Request(
                self.texts[given],
                as_asked(self.texts[reference], p.question, p.answer_type, p.options),
                p.answer_type,
                "bare",
                p.options,
                row=p.row,
            )
            for given, reference in pairs
        ]

    def keep(self, same: Sequence[bool]) -> None:
        self.like = [i for i, alike in zip(self.like, same, strict=True) if alike]

    def settle(self) -> None:
        for i in self.like:
            self.first[i] = self.now
        self.left = [i for i in self.left if i not in self.like] if self.room else []
