"""Verdicts as rewards for other trainers: how they are asked for, and the function for TRL's `reward_funcs`.

Completions are judged in worker processes under limits, started when the first reward is asked for and kept.
A process that forks, or is given the function pickled, starts its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifiers import registry
from verifiers.base import Outcome, Verdict
from verifiers.extraction.rules import find_rule
from verifiers.policy import as_asked
from verifiers.pool.pool import Request, VerifierPool

_LISTS = ("any_of", "all_of")


@dataclass
class Judge:
    """How completions are judged, and the pool that does it.

    answer_type, extract: as in `verify`. lists: any_of or all_of, the type of a reference that is a list
    where `answer_type` is neither. prompt_end: what the chat template writes last before a completion, where
    it is not part of the prompts, such as "<think>\\n" of thinking models. num_workers, timeout_s, memory_mb:
    as in `VerifierPool`. Raises `ValueError` for an unknown type or rule.
    """

    answer_type: str = "auto"
    extract: str = "auto"
    lists: str = "any_of"
    prompt_end: str = ""
    num_workers: int = 2
    timeout_s: float = 5.0
    memory_mb: int = 1024
    _pools: dict[int, VerifierPool] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        registry.get(self.answer_type)
        find_rule(self.extract)
        if self.lists not in _LISTS:
            raise ValueError(f"lists must be any_of or all_of, got {self.lists!r}")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pools": {}}  # a pool belongs to its process

    def request(
        self,
        completion: str,
        reference: Any,
        prompt: str = "",
        options: Any = None,
        row: Mapping[str, Any] = {},
        question: str = "",
    ) -> Request:
        """One judgement. A reference may be a text, a number, true or false, or a list of these.

        question: what was asked, where it is known: a reference of 75 is 75 percent where it asks for that.
        """
        if hasattr(reference, "tolist"):  # an array or a scalar of numpy, as columns of tables come
            reference = reference.tolist()
        answer_type = self.answer_type
        if isinstance(reference, list | tuple):
            answer_type = answer_type if answer_type in _LISTS else self.lists
            reference = json.dumps(list(reference), default=str)
        texts = tuple(str(option) for option in options) if isinstance(options, list | tuple) else ()
        text = as_asked(str(reference), question, answer_type, texts)
        return Request(completion, text, answer_type, self.extract, texts, prompt or self.prompt_end, row)

    def verdicts(self, requests: Sequence[Request]) -> list[Verdict]:
        """One verdict a request, in order."""
        pool = self._pools.get(os.getpid())
        if pool is None:
            pool = self._pools[os.getpid()] = VerifierPool(self.num_workers, self.timeout_s, self.memory_mb)
        return pool.map(requests)


class TrlReward:
    """A reward function for TRL; `as_trl_reward` makes one. TRL's log names it `verifiers`."""

    def __init__(self, column: str, correct: float, wrong: float, judge: Judge) -> None:
        self.column, self.correct, self.wrong, self.judge = column, correct, wrong, judge
        self.__name__ = "verifiers"

    def __call__(
        self,
        completions: Sequence[Any],
        prompts: Sequence[Any] | None = None,
        completion_ids: Any = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward a completion; None, which TRL leaves out, where the reference cannot be read.

        Raises `ValueError` where the data set lacks the reference's column.
        """
        if self.column not in columns:
            there = ", ".join(name for name, values in columns.items() if isinstance(values, list))
            raise ValueError(
                f"the data set has no column {self.column!r} with the reference (columns: {there}); "
                "name it with as_trl_reward(column=...)"
            )
        of_rows = {k: v for k, v in columns.items() if isinstance(v, list) and len(v) == len(completions)}
        requests = []
        for i, completion in enumerate(completions):
            row = {name: values[i] for name, values in of_rows.items()}
            prompt = _prompt_text(prompts[i]) if prompts else ""
            requests.append(
                self.judge.request(
                    _completion_text(completion),
                    row[self.column],
                    prompt,
                    row.get("options"),
                    row,
                    _question_text(prompts[i]) if prompts else "",
                )
            )
        verdicts = self.judge.verdicts(requests)
        if log_extra is not None:
            log_extra("extracted", [verdict.extracted or "" for verdict in verdicts])
        if log_metric is not None:
            for outcome in Outcome:
                share = sum(verdict.outcome is outcome for verdict in verdicts) / max(len(verdicts), 1)
                log_metric(f"verify/{outcome.value}_frac", share)
        return [
            None if verdict.correct is None else self.correct if verdict.correct else self.wrong
            for verdict in verdicts
        ]


def as_trl_reward(
    column: str = "solution", *, correct: float = 1.0, wrong: float = 0.0, **judge: Any
) -> TrlReward:
    """A function for TRL's `reward_funcs`: completions and the reference's column in, one reward each out.

    column: the data set's column that holds the reference. judge: the fields of `Judge`, such as
    `answer_type="number"`, `extract="boxed"`, `prompt_end="<think>\\n"`. Raises `ValueError` for an unknown
    type or rule, `TypeError` for a field that `Judge` does not have.
    """
    return TrlReward(column, correct, wrong, Judge(**judge))


def _completion_text(completion: Any) -> str:
    """A text as it is; of a conversation, what the assistant said last."""
    if isinstance(completion, list | tuple):
        said = [m for m in completion if isinstance(m, Mapping) and m.get("role") == "assistant"]
        return _content(said[-1] if said else completion[-1] if completion else None)
    return completion if isinstance(completion, str) else ""


def _prompt_text(prompt: Any) -> str:
    """A text as it is; of a conversation, the assistant's turn that the completion goes on with, if any."""
    if isinstance(prompt, list | tuple):
        last = prompt[-1] if prompt else None
        return _content(last) if isinstance(last, Mapping) and last.get("role") == "assistant" else ""
    return prompt if isinstance(prompt, str) else ""


def _question_text(prompt: Any) -> str:
    """A text as it is; of a conversation, what the user said last."""
    if isinstance(prompt, list | tuple):
        asked = [m for m in prompt if isinstance(m, Mapping) and m.get("role") == "user"]
        return _content(asked[-1]) if asked else ""
    return prompt if isinstance(prompt, str) else ""


def _content(message: Any) -> str:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, list | tuple):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
