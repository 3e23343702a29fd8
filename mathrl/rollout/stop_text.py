"""Completions that end where a text appears: a base model goes on with a question of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mathrl.rollout.base import Engine, OnCompletion, OnTokens, PromptEncoder
from mathrl.types import Adapter, Completion, Group, Problem, Sampling


class StopText:
    """An engine whose completions end where ``stop`` appears.

    A completion keeps the tokens up to the one that completes the text, as what was done to end it: they
    train like an end token. Its own text ends before ``stop``. Tokens sampled after it are thrown away.
    """

    def __init__(self, engine: Engine, stop: str, tokenizer: Any) -> None:
        self.engine, self.stop, self.tokenizer = engine, stop, tokenizer
        self.name, self.exact_logprobs = engine.name, engine.exact_logprobs

    @property
    def version(self) -> int:
        return self.engine.version

    @version.setter
    def version(self, version: int) -> None:
        self.engine.version = version

    @property
    def streams(self) -> bool:
        return self.engine.streams

    @property
    def encode(self) -> PromptEncoder:
        return self.engine.encode

    @property
    def on_tokens(self) -> OnTokens | None:
        return self.engine.on_tokens

    @on_tokens.setter
    def on_tokens(self, on_tokens: OnTokens | None) -> None:
        self.engine.on_tokens = on_tokens

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        """As ``Engine.sample``; every completion is cut before it is handed on."""

        def cut_first(problem: int, index: int, completion: Completion) -> None:
            if on_completion is not None:
                on_completion(problem, index, self.cut(completion))

        groups = self.engine.sample(
            problems, group_size, sampling, seed=seed, on_completion=cut_first if on_completion else None
        )
        return [replace(g, completions=tuple(self.cut(c) for c in g.completions)) for g in groups]

    def load(self, adapter: Adapter | None, version: int, **written: Any) -> None:
        self.engine.load(adapter, version, **written)

    def close(self) -> None:
        self.engine.close()

    def __getattr__(self, name: str) -> Any:  # what only one kind of engine has
        return getattr(self.engine, name)

    def cut(self, completion: Completion) -> Completion:
        """The completion up to ``stop``, or as it is where that does not appear."""
        if self.stop not in completion.text:
            return completion
        ids = completion.token_ids
        low, high = 1, len(ids)
        while low < high:  # the fewest tokens whose text holds it
            middle = (low + high) // 2
            low, high = (low, middle) if self.stop in self._text(ids[:middle]) else (middle + 1, high)
        logprobs = completion.sampling_logprobs
        return replace(
            completion,
            token_ids=ids[:low],
            text=completion.text[: completion.text.index(self.stop)],
            finish_reason="stop",
            sampling_logprobs=None if logprobs is None else logprobs[:low],
        )

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def with_stop(engine: Engine, stop: str, tokenizer: Any) -> Engine:
    """The engine itself where there is no text to stop at."""
    return StopText(engine, stop, tokenizer) if stop else engine
