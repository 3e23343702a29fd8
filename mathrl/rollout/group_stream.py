"""Groups as they are finished and judged, while their engine goes on sampling in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Self

from mathrl.rollout.base import Engine
from mathrl.types import Completion, Group, Problem


class _BrokenOff(Exception):
    """Raised in the sampling thread, where nobody wants its groups any more."""


class GroupStream:
    """``with GroupStream(…) as stream: for groups in stream: …``; sampling lasts no longer than the block.

    Iterating gives lists of (problem index, group): all that are whole since the last list, one at least,
    until every problem has had its turn. An error of the engine is raised there.

    Leaving the block, by an exception or not, breaks the sampling off and waits until it has ended; the
    engine hears of it with its next completion or count of tokens.

    Args:
        engine: ``engine.streams``; nobody else may ask it meanwhile.
        judge: starts judging a completion; called in the sampling thread, by one caller at a time.
    """

    def __init__(
        self,
        engine: Engine,
        problems: Sequence[Problem],
        group_size: int,
        seed: int,
        judge: Callable[[Problem, Completion], Future[Any]],
    ) -> None:
        self.sampling = True  # until the last completion
        self.seconds = 0.0  # that it took
        self._engine, self._problems, self._judge = engine, problems, judge
        self._group_size, self._seed = group_size, seed
        self._prompts = [tuple(engine.encode(problem)) for problem in problems]  # one thread asks a tokenizer
        self._completions: list[dict[int, Completion]] = [{} for _ in problems]
        self._unjudged = [group_size] * len(problems)
        self._lock = threading.Lock()  # of ``_unjudged``: verdicts come from several threads
        self._whole: SimpleQueue[int | None] = SimpleQueue()  # problems; None: look at ``_error``
        self._error: BaseException | None = None
        self._left_alone = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="sampling", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        self._left_alone.set()
        self._thread.join()
        if kind is None and self._error is not None and not isinstance(self._error, _BrokenOff):
            raise self._error

    def __iter__(self) -> Iterator[list[tuple[int, Group]]]:
        left = len(self._problems)
        while left:
            whole = [self._whole.get()]
            with suppress(Empty):
                while True:
                    whole.append(self._whole.get_nowait())
            if self._error is not None:
                raise self._error
            groups = [(p, self._group(p)) for p in whole if p is not None]
            left -= len(groups)
            if groups:
                yield groups

    def _group(self, p: int) -> Group:
        problem, found = self._problems[p], self._completions[p]
        completions = tuple(found[i] for i in range(self._group_size))
        return Group(problem, self._prompts[p], completions, policy_version=self._engine.version)

    # --- in the sampling thread -----------------------------------------------------------------------------

    def _sample(self) -> None:
        start, before, self._engine.on_tokens = time.perf_counter(), self._engine.on_tokens, self._go_on
        try:
            if self._problems:
                self._engine.sample(
                    self._problems, self._group_size, seed=self._seed, on_completion=self._finished
                )
            told = sum(map(len, self._completions))
            if told < self._group_size * len(self._problems):
                raise RuntimeError(f"the engine ended after {told} completions")
        except BaseException as error:  # noqa: BLE001 - raised by the one that waits
            self._error = error
        finally:
            self.sampling, self.seconds = False, time.perf_counter() - start
            self._engine.on_tokens = before
            self._whole.put(None)

    def _go_on(self, tokens: int = 0) -> None:
        if self._left_alone.is_set():
            raise _BrokenOff

    def _finished(self, p: int, i: int, completion: Completion) -> None:
        self._go_on()
        self._completions[p][i] = completion
        judged = self._judge(self._problems[p], completion)
        judged.add_done_callback(lambda _: self._one_judged(p))

    def _one_judged(self, p: int) -> None:
        with self._lock:
            self._unjudged[p] -= 1
            whole = not self._unjudged[p]
        if whole:
            self._whole.put(p)
