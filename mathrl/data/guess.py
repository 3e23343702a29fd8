"""Which columns of a file hold question, answer and worked solution: tried, not only read off their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mathrl.data.datasets import DATASETS, GENERATED, UNKNOWN, DatasetRow
from mathrl.data.fields import UnusableRow
from mathrl.data.rows import make_problem
from mathrl.data.source import Row, field_names, find_column
from mathrl.errors import UserError, did_you_mean
from mathrl.rewards.scorer import check_reference
from mathrl.types import Problem

_TRIED = 200  # rows
_MISSING = object()
_ENOUGH = 0.9  # share of the rows that a guess must make problems of
_QUESTION = ("question", "problem", "prompt", "messages", "query", "input", "instruction", "task", "text")
_ANSWER = (
    "answer", "answerkey", "final_answer", "ground_truth", "expected_answer", "gold", "target", "label",
    "correct", "solution", "output", "response",
)  # fmt: skip
_SOLUTION = ("solution", "rationale", "explanation", "reasoning", "worked_solution", "response", "output")
_OPTIONS = ("options", "choices")


@dataclass(frozen=True, slots=True)
class Guess:
    """Columns of a file, and what they make of its first rows."""

    row: DatasetRow
    problems: tuple[Problem, ...]
    tried: int  # rows
    num_rows: int  # of the file
    known: bool  # the columns of a known data set

    @property
    def share(self) -> float:
        """Of the rows that were tried, those that make a problem whose reference is read."""
        return len(self.problems) / self.tried


def guess_columns(
    rows: Sequence[Row], name: str, sure: DatasetRow | None = None, question: str = "", answer: str = ""
) -> Guess:
    """The columns that make problems of most rows.

    Args:
        sure: columns that are known.
        question, answer: of these the name, where it is known.

    Raises:
        UserError: no columns do; lists those that there are.
    """
    tried = rows[:_TRIED]
    for column in filter(None, (question, answer)):
        if all(find_column(row, column, _MISSING) is _MISSING for row in tried):
            raise UserError(f"{name} has no column {column!r}: {did_you_mean(column, field_names(tried[0]))}")
    found: list[Guess] = []
    asked = [(sure, sure.name in DATASETS)] if sure else _candidates(tried, question, answer)
    for row, known in asked:
        problems = tuple(_problems(row, tried))
        found.append(Guess(row, problems, len(tried), len(rows), known))
        if found[-1].share >= _ENOUGH:
            break
    best = max(found, key=lambda guess: guess.share, default=None)
    if best is None or not best.problems:
        raise UserError(
            f"{name}: no column holds questions and another one answers that can be read "
            f"(columns: {', '.join(field_names(rows[0]))}): say which with --question and --answer"
        )
    answer_type = _answer_type(best)
    # numbers stand well after ####; other mathematics is what models put in boxes
    extract = best.row.extract if best.known or answer_type == "number" else "boxed"
    return replace(best, row=replace(best.row, answer_type=answer_type, extract=extract))


def _candidates(rows: Sequence[Row], question: str, answer: str) -> Iterator[tuple[DatasetRow, bool]]:
    """Rows of columns to try, the likeliest first: those of known sets, then by their names."""
    names = list(dict.fromkeys(name for row in rows for name in field_names(row)))
    there = set(names) | {name for row in rows for name in row}
    for row in DATASETS.values():
        unusual = set(row.question) != set(UNKNOWN.question) or row.answer != UNKNOWN.answer
        said = {question, answer} - {""} <= {*row.question, row.answer}
        here = _has(rows, [*row.question, row.answer]) and _is_this_set(row, there)
        if row.name != GENERATED and unusual and said and here:
            yield row, True
    options = next(_named(there, _OPTIONS), "options")
    for asked in [question] if question else _named(there, _QUESTION):
        for told in [answer] if answer else _named(there, _ANSWER):
            if told != asked and not told.startswith(f"{options}."):  # the options' own letters
                solution = next((s for s in _named(there, _SOLUTION) if s not in (told, asked)), "")
                row = replace(UNKNOWN, question=(asked,), answer=told, solution=solution)
                yield replace(row, options=options), False


def _is_this_set(row: DatasetRow, there: set[str]) -> bool:
    """Whether the other columns are the set's as well: many a file has the same two names.

    Question and Answer alone tell no set, and worked solutions in a column that the set lacks would be lost.
    """
    usual = {name.lower() for name in (*row.question, row.answer)} == {"question", "answer"}
    solutions = set(_named(there, _SOLUTION)) - {row.answer, *row.question}
    return (not usual or any(name in there for name in row.meta)) and (row.solution in there or not solutions)


def _named(there: set[str], wanted: Sequence[str]) -> Iterator[str]:
    """The columns whose name, or the last part of it, is one of these, in their order."""
    for name in wanted:
        yield from sorted(
            (column for column in there if column.lower().rpartition(".")[2] == name),
            key=lambda column: (column.count("."), column),
        )


def _has(rows: Sequence[Row], columns: Sequence[str]) -> bool:
    return any(all(find_column(row, column) is not None for column in columns) for row in rows)


def _problems(row: DatasetRow, rows: Sequence[Row]) -> Iterator[Problem]:
    for number, fields in enumerate(rows, 1):
        try:
            problem = make_problem(row, fields, f"row {number},", f"{number}")
        except (UnusableRow, UserError):
            continue
        if check_reference(problem) is None:
            yield problem


def _answer_type(guess: Guess) -> str:
    """The narrowest type that reads nearly all references."""
    problems = guess.problems
    if guess.row.answer_type != "auto":
        return guess.row.answer_type
    narrow = "choice" if sum(bool(p.options) for p in problems) >= _ENOUGH * len(problems) else "number"
    read = sum(check_reference(replace(p, answer_type=narrow)) is None for p in problems)
    return narrow if read >= 0.98 * len(problems) else "auto"
