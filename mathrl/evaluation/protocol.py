"""What two evaluations must share to be compared: problems, prompt, limits, extraction, verifiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mathrl.evaluation.result import problems_hash, protocol_hash
from mathrl.evaluation.source_hash import verifiers_hash
from mathrl.types import Problem


@dataclass(frozen=True, slots=True)
class EvaluationSettings:
    """How every problem is asked; all of it is part of the protocol."""

    max_completion_tokens: int
    num_samples: int = 0  # k samples a problem beside the greedy completion; 0: greedy only
    temperature: float = 1.0  # of the samples
    top_p: float = 1.0  # of the samples
    prompt: Mapping[str, Any] = field(default_factory=dict)  # describes the prompt template
    stop: str = ""  # completions are cut before this text (few-shot prompts make a base model go on asking)


def make_protocol(
    problems: Sequence[Problem], settings: EvaluationSettings, *, extract: str
) -> dict[str, Any]:
    """Everything that two evaluations must share to be compared. Seeds and engines are not in it."""
    further: dict[str, Any] = {"stop": settings.stop} if settings.stop else {}
    if settings.num_samples:
        further |= {"temperature": settings.temperature, "top_p": settings.top_p}
    return {
        "problems": problems_hash(problems),
        "num_problems": len(problems),
        "prompt": dict(settings.prompt),
        "extract": extract,
        "verifiers": verifiers_hash(),
        "max_completion_tokens": settings.max_completion_tokens,
        "num_samples": settings.num_samples,
        **further,
    }


def resume_key(
    protocol: Mapping[str, Any], seed: int, version: int, info: Mapping[str, Any] | None = None
) -> str:
    """16 hex digits that change with anything completions depend on: what an interrupted file goes on with.

    The verifiers are left out: completions that are there already are judged by those of today.
    """
    made_by = {k: v for k, v in protocol.items() if k != "verifiers"}
    return protocol_hash({"protocol": made_by, "seed": seed, "version": version, "info": dict(info or {})})


def key_of(numbers: Mapping[str, Any]) -> str:
    """The ``resume_key`` of an evaluation's numbers (``Evaluation.to_dict``), also as JSON has them."""
    info = {k: v for k, v in numbers["info"].items() if k != "engine"}
    return resume_key(numbers["protocol"], numbers["seed"], numbers["version"], info)
