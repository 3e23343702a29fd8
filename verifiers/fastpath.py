"""The easy majority: plain numbers, decided without a grammar, without sympy and within microseconds."""

from __future__ import annotations

import time
from collections.abc import Sequence

from verifiers.base import MAX_COMPLETION_CHARS, Outcome, Verdict
from verifiers.extraction.rules import extract as extract_answer
from verifiers.grammar.plain import read_plain, same_plain
from verifiers.plugins import is_module_path

MAX_FAST_CHARS = 100_000
"""Longer completions are judged by a worker, under its time limit."""

_NUMERIC_TYPES = frozenset({"auto", "number"})


def try_fast(
    completion: str,
    answer: str,
    answer_type: str = "auto",
    extract: str = "auto",
    options: Sequence[str] = (),
    prompt: str = "",
) -> Verdict | None:
    """The verdict if both are plain numbers, or there is no answer; None leaves it to `verify`.

    Agrees with `verify` wherever it decides. Time is linear in the length of the completion: an extraction
    rule of the user's own, which may take any, decides nothing here.
    Raises `ValueError` only for an unknown extraction rule.
    """
    if answer_type not in _NUMERIC_TYPES or options or is_module_path(extract):
        return None
    start = time.perf_counter()
    if len(completion) > MAX_COMPLETION_CHARS:
        detail = f"completion of {len(completion)} characters, at most {MAX_COMPLETION_CHARS} are read"
        return Verdict(Outcome.UNPARSED, None, detail, time.perf_counter() - start)
    if len(completion) > MAX_FAST_CHARS:
        return None
    reference = read_plain(answer)
    if reference is None:
        return None
    extracted = extract_answer(completion, extract, prompt)
    if extracted is None:
        return Verdict(Outcome.NO_ANSWER, None, "", time.perf_counter() - start)
    given = read_plain(extracted)
    if given is None:
        return None
    outcome = Outcome.CORRECT if same_plain(reference, given) else Outcome.WRONG
    return Verdict(outcome, extracted, "", time.perf_counter() - start)
