"""The engine seam: how the trainer asks for completions and hands over new weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mathrl.errors import UserError
from mathrl.types import Adapter, Completion, Group, Problem, Sampling

OnCompletion = Callable[[int, int, Completion], None]
"""Called as (problem index, completion index, completion) as soon as a completion has finished."""

OnTokens = Callable[[int], None]
"""Called now and then while an engine samples, with the tokens so far of the completions under way.

What it or ``OnCompletion`` raises breaks the sampling off, with nothing left under way."""

PromptEncoder = Callable[[Problem], Sequence[int]]
"""Problem -> prompt token ids; engines and the trainer share one, so that both see the same prompt."""


class Scores(Protocol):
    """What an engine owes since ``score_with_next``: it is computed beside the completions sampled next."""

    def result(self) -> list[list[float]]:
        """As ``score`` gives them; where nothing has been sampled to its end since, they are computed now.

        Raises:
            RuntimeError: the engine has been given other weights before.
        """
        ...


class Engine(Protocol):
    """Samples completions from the newest policy it was given.

    Beyond the protocol, one that has a copy of the weights can be asked what it makes of given tokens:
    ``score(prompts, continuations)``, n lists of token ids each, gives n lists of log-probabilities at
    temperature 1, and ``score_with_next(prompts, continuations)`` gives ``Scores``. One that gets weights as
    files has ``write(adapter)``, whose result ``load`` takes as ``written``, so that only the waiting goes on
    beside other work.
    """

    name: str
    version: int  # of the adapter it samples from
    exact_logprobs: bool  # its logprobs are the trainer's own up to rounding: no correction is needed
    on_tokens: OnTokens | None  # for who wants to show progress; not every engine knows

    @property
    def streams(self) -> bool:
        """Whether groups may be trained while others are sampled: it tells of completions as they finish, and
        its model is not the one that is trained."""
        ...

    @property
    def encode(self) -> PromptEncoder:
        """Problem -> token ids of its prompt."""
        ...

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        """Sample ``group_size`` completions a problem, in the problems' order.

        ``sampling`` None takes the engine's default (the recipe's rollout settings). Completion ``i`` of a
        problem draws from ``derive_seed(seed, problem.id, i)``: it does not depend on its neighbours.

        Raises:
            UserError: a prompt and ``max_completion_tokens`` do not fit the model's context.
        """
        ...

    def load(self, adapter: Adapter | None, version: int) -> None:
        """Sample from these weights from now on; None is the reference (no adapter)."""
        ...

    def close(self) -> None:
        """Free memory and end every process the engine started; safe to call twice."""
        ...


def check_lengths(
    problems: Sequence[Problem], prompts: Sequence[Sequence[int]], limit: int, room: int
) -> None:
    """Raise UserError where a prompt is empty, or does not fit ``room`` tokens with ``limit`` more."""
    for problem, prompt in zip(problems, prompts, strict=True):
        if not prompt:
            raise UserError(
                f"problem {problem.id!r} has an empty prompt: check the question and the template"
            )
        if len(prompt) + limit > room:
            raise UserError(
                f"problem {problem.id!r}: a prompt of {len(prompt)} tokens and max_completion_tokens {limit} "
                f"exceed the engine's {room} tokens; lower max_completion_tokens or drop the problem"
            )


def eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokenizer's EOS and those the model's generation settings add (chat models have several)."""
    extra = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(extra if isinstance(extra, (list, tuple)) else [extra])} - {None}
    if not ids:
        raise UserError("the tokenizer names no EOS token: set eos_token in its tokenizer_config.json")
    return sorted(ids)
