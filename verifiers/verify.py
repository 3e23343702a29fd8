"""Judge a completion: extract -> parse -> equal -> `Verdict`, whatever the answer type."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from verifiers import registry
from verifiers.answers.choice import option_letter
from verifiers.answers.stated import parse_stated
from verifiers.base import MAX_COMPLETION_CHARS, AnswerType, Outcome, ParseError, Verdict
from verifiers.extraction.rules import extract as extract_answer
from verifiers.extraction.rules import find_rule
from verifiers.fastpath import try_fast

_REFERENCE_CACHE_SIZE = 4096


@functools.lru_cache(maxsize=_REFERENCE_CACHE_SIZE)
def parse_reference(answer: str, answer_type: str = "auto") -> Any:
    """Read a data set's reference answer; parsed references are cached, so a value must not be changed.

    Raises `ParseError` when the reference cannot be read, `ValueError` for an unknown answer type, and
    whatever else a type of the user's own raises.
    """
    kind = registry.get(answer_type)
    if type(kind).parse_reference is not AnswerType.parse_reference:
        return kind.parse_reference(answer)
    # Data sets hold bare answers; some hold the sentence or the whole solution that ends in one.
    return parse_stated(kind, answer)


def verify(
    completion: str,
    answer: str,
    answer_type: str = "auto",
    extract: str = "auto",
    options: Sequence[str] = (),
    prompt: str = "",
    row: Mapping[str, Any] | None = None,
) -> Verdict:
    """Judge one completion against a reference answer, in this process and without a time limit.

    answer_type: a name from `registry.names()`. extract: the name of an extraction rule.
    options: the texts of a multiple-choice question's options, first is A.
    prompt: what the completion was written after, or its end: a thought that it opened must be closed.
    row: the data set's row, for answer types whose `equal` asks for it.
    Never raises on model text; raises `ValueError` for an unknown answer type or extraction rule.
    """
    start = time.perf_counter()
    find_rule(extract)  # an unknown one is no fault of the completion
    if len(completion) > MAX_COMPLETION_CHARS:
        detail = f"completion of {len(completion)} characters, at most {MAX_COMPLETION_CHARS} are read"
        return Verdict(Outcome.UNPARSED, None, detail, time.perf_counter() - start)
    fast = try_fast(completion, answer, answer_type, extract, options, prompt)
    if fast is not None:
        return fast

    def verdict(outcome: Outcome, extracted: str | None = None, detail: str = "") -> Verdict:
        return Verdict(outcome, extracted, detail, time.perf_counter() - start)

    kind = registry.get(answer_type)
    try:
        if options:
            answer = option_letter(answer, options)
        reference = parse_reference(answer, answer_type)
    except ParseError as error:
        return verdict(Outcome.BAD_REFERENCE, detail=str(error))
    try:
        extracted = extract_answer(completion, extract, prompt)
    except Exception as error:  # noqa: BLE001  a rule of the user's own may raise anything
        return verdict(Outcome.ERROR, detail=f"{type(error).__name__} while extracting: {error}")
    if extracted is None:
        return verdict(Outcome.NO_ANSWER)
    try:
        given = kind.parse(option_letter(extracted, options, answer) if options else extracted)
    except ParseError as error:
        # A reference is read more patiently than an answer; its very text is right all the same.
        same_text = extracted.strip() == answer.strip()
        return verdict(
            Outcome.CORRECT if same_text else Outcome.UNPARSED, extracted, "" if same_text else str(error)
        )
    except Exception as error:  # noqa: BLE001  a plug-in may raise anything; model text must not end the run
        return verdict(Outcome.ERROR, extracted, f"{type(error).__name__} while parsing: {error}")
    try:
        same = _equal(kind, reference, given, row)
    except ParseError as error:
        return verdict(Outcome.UNPARSED, extracted, str(error))  # read, and too large to be worked out
    except Exception as error:  # noqa: BLE001  as above
        return verdict(Outcome.ERROR, extracted, f"{type(error).__name__} while comparing: {error}")
    return verdict(Outcome.CORRECT if same else Outcome.WRONG, extracted)


def _equal(kind: AnswerType, reference: Any, given: Any, row: Mapping[str, Any] | None) -> bool:
    compare: Callable[..., bool] = kind.equal
    return compare(reference, given, row=row or {}) if kind.takes_row else compare(reference, given)
