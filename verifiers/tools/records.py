"""Labelled or unlabelled judgements as lines of JSON: what `judge` and `audit` read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from verifiers.base import Outcome
from verifiers.plugins import is_module_path
from verifiers.policy import as_asked
from verifiers.pool.supervisor import Request


@dataclass(frozen=True, slots=True)
class Record:
    """One input line: `request` to judge, or a `problem` that says why the line cannot be read.

    expected: the label, where the line has one: True and False for CORRECT and anything else, or an outcome.
    """

    id: Any
    request: Request | None = None
    expected: bool | Outcome | None = None
    problem: str = ""


def read_records(
    lines: Iterable[bytes], answer_type: str = "auto", extract: str = "auto"
) -> Iterator[Record]:
    """One record a line, in order; the defaults are for lines that name no `type` or `extract`."""
    for number, line in enumerate(lines, start=1):
        yield _read(line, number, answer_type, extract)


def _read(line: bytes, number: int, answer_type: str, extract: str) -> Record:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Record(None, problem=f"line {number} is not JSON: {error}")
    if not isinstance(fields, dict):
        return Record(None, problem=f"line {number} must be a JSON object, got {type(fields).__name__}")
    try:
        own_type, options = _name(fields, "type", answer_type), _options(fields)
        question = fields.get("question")
        request = Request(
            completion=_text(fields, "completion"),
            answer=as_asked(
                _answer(fields, own_type), question if isinstance(question, str) else "", own_type, options
            ),
            answer_type=own_type,
            extract=_name(fields, "extract", extract),
            options=options,
            prompt=_text(fields, "prompt", ""),
            row=fields,
        )
        return Record(fields.get("id"), request, _expected(fields))
    except ValueError as error:
        return Record(fields.get("id"), problem=f"line {number}: {error}")


def _text(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if value is None:
        raise ValueError(f"there is no {name!r}; give it as a string")
    # Data sets write whole references as JSON numbers; a bool is no answer in that sense.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a string, got {type(value).__name__}")
    return value


def _name(fields: dict[str, Any], name: str, flag: str) -> str:
    """The name of an answer type or rule. A module is code: a line names one only as the flag does."""
    value = _text(fields, name, flag)
    if is_module_path(value) and value != flag:
        raise ValueError(f"{name!r} names the module {value!r}: only the flag --{name} may name a module")
    return value


def _answer(fields: dict[str, Any], answer_type: str) -> str:
    """The reference; a list is written as JSON for the types that read it."""
    answer = fields.get("answer")
    if not isinstance(answer, list):
        return _text(fields, "answer")
    if answer_type not in ("any_of", "all_of"):
        raise ValueError("'answer' is a list: say with the type any_of or all_of what that means")
    return json.dumps(answer)


def _options(fields: dict[str, Any]) -> tuple[str, ...]:
    options = fields.get("options") or ()
    if not isinstance(options, list | tuple) or not all(isinstance(option, str) for option in options):
        raise ValueError("'options' must be a list of strings")
    return tuple(options)


def _expected(fields: dict[str, Any]) -> bool | Outcome | None:
    expected = fields.get("expected")
    if expected is None or isinstance(expected, bool):
        return expected
    try:
        return Outcome(expected)
    except ValueError:
        known = ", ".join(Outcome)
        raise ValueError(f"'expected' must be true, false or one of {known}, got {expected!r}") from None
