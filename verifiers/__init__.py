"""Verifiers for mathematical answers: extract the final answer, read it exactly, compare it by its type."""

from typing import Any

from verifiers.base import AnswerType, Outcome, ParseError, Verdict
from verifiers.verify import parse_reference, verify

OWNER = "mathrl"
"""Another distribution installs a package of this name as well: mathrl looks for this line first."""

__all__ = [
    "AnswerType",
    "Outcome",
    "ParseError",
    "Verdict",
    "as_trl_reward",
    "compute_score",
    "parse_reference",
    "read",
    "verify",
]


def read(text: str) -> Any:
    """The exact sympy object of an answer; `verifiers.sympy_objects.objects` says which answer becomes what.

    Imports sympy when it is first called. Raises `ParseError`, one sentence, for text that cannot be read and
    for answers without a counterpart in sympy.
    """
    from verifiers.sympy_objects.objects import read as read_symbolic

    return read_symbolic(text)


def as_trl_reward(column: str = "solution", **settings: Any) -> Any:
    """A function for TRL's `reward_funcs`; see `verifiers.tools.trainers.as_trl_reward` for the settings."""
    from verifiers.tools import trainers

    return trainers.as_trl_reward(column, **settings)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None, **settings: Any
) -> float:
    """1.0 or 0.0, as verl's custom reward function; see `verifiers.tools.verl_reward.compute_score`."""
    from verifiers.tools import verl_reward

    return verl_reward.compute_score(data_source, solution_str, ground_truth, extra_info, **settings)
