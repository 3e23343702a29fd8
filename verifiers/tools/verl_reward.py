"""For verl's setting `custom_reward_function`: its `path` is this file, its `name` is compute_score.

The first four parameters are those that verl's documentation names (docs/preparation/reward_function.rst).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verifiers.base import Outcome
from verifiers.tools.trainers import Judge

_judges: dict[tuple[Any, ...], Judge] = {}


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    answer_type: str = "auto",
    extract: str = "auto",
    lists: str = "any_of",
    prompt_end: str = "",
    timeout_s: float = 5.0,
    memory_mb: int = 1024,
    **_: Any,
) -> float:
    """The score of a solution: 1.0 where it is right, else 0.0, also where the reference cannot be read.

    extra_info: the row, for answer types that ask for it; its `options` are those of a multiple-choice
    question, and its `question` says whether a percentage is asked for. data_source is not looked at. The
    keyword arguments are what `reward_kwargs` may hold; they mean what the fields of
    `verifiers.tools.trainers.Judge` mean. Others that verl passes are ignored.
    """
    key = (answer_type, extract, lists, prompt_end, timeout_s, memory_mb)
    if key not in _judges:
        _judges[key] = Judge(answer_type, extract, lists, prompt_end, 1, timeout_s, memory_mb)
    judge, row = _judges[key], dict(extra_info or {})
    question = row.get("question")
    request = judge.request(
        solution_str,
        ground_truth,
        "",
        row.get("options"),
        row,
        question if isinstance(question, str) else "",
    )
    (verdict,) = judge.verdicts([request])
    return float(verdict.outcome is Outcome.CORRECT)
