"""How a row of a data set becomes a Problem."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from mathrl.config import DataConfig, MixConfig
from mathrl.data.datasets import DATASETS, GENERATED, UNKNOWN, DatasetRow
from mathrl.data.fields import (
    UnusableRow,
    field_text,
    join_questions,
    json_value,
    list_in,
    read_answer,
    read_answers,
    read_options,
    read_question,
)
from mathrl.data.source import Row, find_column, get_field
from mathrl.errors import UserError, did_you_mean
from mathrl.rewards.scorer import check_answer_type, check_extract_rule, extract_answer
from mathrl.types import Problem

_IN_MIX = tuple(name for name in MixConfig.model_fields if name not in ("name", "weight"))
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's notes for a calculator repeat the equation beside them


class LeftOut(UnusableRow):
    """A row of a kind that the data set's row leaves out."""


def dataset_row(data: DataConfig) -> DatasetRow:
    """The row of a recipe's data set, with the recipe's own field names, answer type and extraction rule.

    Raises:
        UserError: neither a known data set nor a name on the hub (``owner/name``); unknown answer type or
            extraction rule.
    """
    if data.path and data.source in (GENERATED, ""):
        row = UNKNOWN  # a local file and nothing said about it
    elif data.source in DATASETS:
        row = DATASETS[data.source]
    elif "/" in data.source:
        row = replace(UNKNOWN, name=data.source, hub=data.source)
    else:
        raise UserError(f"unknown data set {data.source!r}: {did_you_mean(data.source, DATASETS)}")
    changes: dict[str, Any] = {
        "question": (data.question_field,) if data.question_field else (),
        "answer": data.answer_field,
        "solution": data.solution_field,
        "options": data.options_field,
        "answer_type": data.answer_type,
        "answer_type_field": data.answer_type_field,
        "extract": data.extract,
        "config": data.config,
        "split": data.split,
        "eval_split": data.eval_split,
    }
    row = replace(row, **{key: value for key, value in changes.items() if value})
    check_answer_type(row.answer_type)
    check_extract_rule(row.extract, "data.extract")
    return row


def parts_of(data: DataConfig) -> list[tuple[str, DataConfig, float]]:
    """(name, its ``[data]``, weight) of each part of a mix; names are made different.

    Raises:
        UserError: two parts were given the same name.
    """
    parts: dict[str, tuple[DataConfig, float]] = {}
    for part in data.mix:
        said = {key: value for key in _IN_MIX if (value := getattr(part, key))}
        own = data.model_copy(update={"mix": (), **said})
        name = part.name or (PurePath(part.path).stem if part.path else part.source)
        if name in parts and part.name:
            raise UserError(f"two [[data.mix]] tables are named {name!r}: give each a name of its own")
        if name in parts:
            name = f"{name} {len(parts) + 1}"
        parts[name] = (own, part.weight)
    return [(name, own, weight) for name, (own, weight) in parts.items()]


def extract_rule(data: DataConfig) -> str:
    """The extraction rule by which completions of this data set are read; of a mix the first part's."""
    return dataset_row(parts_of(data)[0][1] if data.mix else data).extract


def make_problem(row: DatasetRow, raw: Row, where: str, problem_id: str) -> Problem:
    """A row of a data set as a Problem.

    Raises:
        UserError: there is no such field (``where``, its name and the fields there are).
        LeftOut: a kind of row that the data set's row leaves out.
        UnusableRow: the answer field holds no answer, or the question is empty or of no form that is read.
    """
    for name, values in row.keep:
        value = field_text(find_column(raw, name))
        if value and value not in values:
            raise LeftOut(f"{name} is {value!r}")
    asked = join_questions([read_question(get_field(raw, name, where)) for name in row.question])
    given = list_in(get_field(raw, row.answer, where))
    answer, answer_type = _reference(_own_type(row, raw, where), raw, given)
    solution = find_column(raw, row.solution) if row.solution else None
    if isinstance(solution, list | tuple):
        solution = solution[0] if solution else None
    rule = row.rule or ("gsm8k" if isinstance(given, str) and "####" in given else "")
    if rule:
        solution, extracted = answer, extract_answer(answer, rule)
        if extracted is None:
            raise UnusableRow(f"no answer in the form {rule!r}")
        answer = extracted
    options = read_options(find_column(raw, row.options))
    if _is_place(answer, options):
        raise UnusableRow(
            f"the answer {answer} is a place among the {len(options)} options: give the right one's letter"
        )
    meta = {key: json_value(find_column(raw, key)) for key in row.meta}
    return Problem(
        id=problem_id,
        question=_unwrapped(asked.question, *row.wrapper),
        answer=answer,
        answer_type=answer_type,
        solution=_CALCULATOR.sub("", solution).strip() if isinstance(solution, str) and solution else None,
        options=options,
        meta={key: value for key, value in meta.items() if value is not None},
        system_prompt=asked.system_prompt,
        row={key: json_value(value) for key, value in raw.items()},
    )


def _is_place(answer: str, options: Sequence[str]) -> bool:
    """Whether a reference counts the options, from 0 or 1: no option has this number in it."""
    if not re.fullmatch(r"\d\d?", answer) or int(answer) > len(options):
        return False
    return bool(options) and not any(re.search(rf"(?<!\d)0*{int(answer)}(?!\d)", o) for o in options)


def _reference(row: DatasetRow, raw: Row, given: Any) -> tuple[str, str]:
    """The reference and its answer type; a list of several is written as JSON, which its types read."""
    if not isinstance(given, list | tuple):
        return read_answer(given), row.answer_type
    values = read_answers(given)
    if len(values) == 1 and not isinstance(values[0], list):
        return read_answer(values[0]), row.answer_type
    all_needed = str(find_column(raw, row.all_needed)).lower() == "true"
    return json.dumps(values, ensure_ascii=False), "all_of" if all_needed else row.lists


def _own_type(row: DatasetRow, raw: Row, where: str) -> DatasetRow:
    """The row with the answer type that this very line of data names, where it may.

    Raises:
        UserError: it is no registered name: data may not name a module, for importing one runs its code.
    """
    if not row.answer_type_field:
        return row
    own = str(get_field(raw, row.answer_type_field, where))
    if ":" in own:
        raise UserError(
            f"{where} {row.answer_type_field} {own!r} names a module, and data may name registered types "
            "alone: give it for all with --data.answer_type"
        )
    try:
        check_answer_type(own)
    except UserError as error:
        raise UserError(f"{where} {str(error).removeprefix('data.answer_type: ')}") from None
    return replace(row, answer_type=own)


def _unwrapped(question: str, before: str, after: str) -> str:
    """A question without the sentences around it that ask for a form of answer; the recipe has its own."""
    return question.removeprefix(before).removesuffix(after).strip() or question
