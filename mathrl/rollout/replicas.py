"""Several engines of one device, each with its share of the problems.

A vLLM core prepares every decode step in one Python thread, a few microseconds a sequence. For a small model
that takes longer than the step on the GPU, which then waits. Cores side by side prepare theirs at the same
time, each with fewer sequences; they cost another copy of the weights and of the context each.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mathrl.rollout.base import OnCompletion, OnTokens, PromptEncoder, Scores
from mathrl.types import Adapter, Completion, Group, Problem, Sampling

T = TypeVar("T")


class Replicas:
    """Engines behind the protocol of one: problem ``p`` is sampled by engine ``p % N``.

    What is sampled does not depend on N: a completion draws from a seed of its own.

    Args:
        start: makes the engine of an index; the N calls run at the same time.
        num: N, 2 or more.

    Raises:
        UserError: an engine does not start; the others are closed then.
    """

    def __init__(self, start: Callable[[int], Any], num: int) -> None:
        self.num_replicas = num
        self._threads = ThreadPoolExecutor(num, thread_name_prefix="replica")
        started = [self._threads.submit(start, index) for index in range(num)]
        wait(started)
        self.engines = [future.result() for future in started if future.exception() is None]
        if len(self.engines) < num:
            self.close()
            _results(started)
        self.name, self.version = self.engines[0].name, 0
        self.exact_logprobs: bool = self.engines[0].exact_logprobs
        self.sync_metrics: dict[str, float] = {}  # of the last load
        self.on_tokens: OnTokens | None = None
        self._under_way = [0] * num  # tokens, by engine
        for index, engine in enumerate(self.engines):
            engine.on_tokens = partial(self._tell, index)

    @property
    def streams(self) -> bool:
        return all(engine.streams for engine in self.engines)

    @property
    def encode(self) -> PromptEncoder:
        encode: PromptEncoder = self.engines[0].encode
        return encode

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        """See ``mathrl.rollout.base.Engine.sample``; ``on_completion`` is called by one thread at a time."""
        num, lock = self.num_replicas, threading.Lock()

        def part(index: int, engine: Any) -> list[Group]:
            def finished(p: int, i: int, completion: Completion) -> None:
                if on_completion is not None:
                    with lock:
                        on_completion(index + p * num, i, completion)

            own = problems[index::num]
            self._under_way[index] = 0
            return engine.sample(own, group_size, sampling, seed=seed, on_completion=finished) if own else []

        return _interleave(self.each(part))

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Row ``n`` by engine ``n % N``; see ``VllmEngine.score``."""
        num = self.num_replicas
        return _interleave(
            self.each(lambda index, e: e.score(prompts[index::num], continuations[index::num]))
        )

    def score_with_next(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
    ) -> Scores:
        """Row ``n`` by engine ``n % N``, beside what that one samples next."""
        num = self.num_replicas
        return _Parts(
            self,
            [e.score_with_next(prompts[i::num], continuations[i::num]) for i, e in enumerate(self.engines)],
        )

    def write(self, adapter: Adapter) -> Path | None:
        """Once, not once an engine: their threads share one interpreter."""
        written: Path | None = self.engines[0].write(adapter)
        return written

    def load(self, adapter: Adapter | None, version: int, *, written: Path | None = None) -> None:
        """Every engine samples from these weights from now on."""
        if written is None and adapter is not None:
            written = self.write(adapter)
        self.each(lambda _, engine: engine.load(adapter, version, written=written))
        self.version = version
        metrics = [engine.sync_metrics for engine in self.engines]
        self.sync_metrics = {name: max(m[name] for m in metrics) for name in metrics[0]}

    def close(self) -> None:
        """Close every engine; safe to call twice."""
        for engine in self.engines:
            engine.close()
        self._threads.shutdown()

    def _tell(self, index: int, tokens: int) -> None:
        self._under_way[index] = tokens
        if self.on_tokens is not None:
            self.on_tokens(sum(self._under_way))

    def each(self, work: Callable[[int, Any], T]) -> list[T]:
        """``work`` of every engine at the same time; an error is raised when all have ended."""
        parts = [self._threads.submit(work, index, engine) for index, engine in enumerate(self.engines)]
        wait(parts)
        return _results(parts)


class _Parts:
    """``Scores`` of engines side by side."""

    def __init__(self, replicas: Replicas, parts: Sequence[Scores]) -> None:
        self._replicas, self._parts = replicas, parts

    def result(self) -> list[list[float]]:
        """An engine that has had nothing to sample is asked now."""
        return _interleave(self._replicas.each(lambda index, _: self._parts[index].result()))


def _results(parts: Sequence[Future[T]]) -> list[T]:
    return [part.result() for part in parts]


def _interleave(parts: Sequence[Sequence[T]]) -> list[T]:
    """The inverse of ``rows[index::N]`` for all indices."""
    num = len(parts)
    return [parts[n % num][n // num] for n in range(sum(len(part) for part in parts))]
