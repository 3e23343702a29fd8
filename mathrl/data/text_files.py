"""Rows of JSON and CSV files as they were written: no type is guessed that would change a value.

Readers that make a table of typed columns first shift the columns of a row with one comma too many, turn
texts into dates, lose the last digits of long numbers, and refuse a file where a late row's answer is of
another kind than the first ones'.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathrl.types import read_json

Row = Mapping[str, Any]

_MOST_INNER = 200  # names inside of a column; above, they are data and no names


def read_text_file(path: Path) -> list[Row]:
    """The rows of a ``.csv``, ``.json`` or ``.jsonl`` file; every row has the columns of all, null if absent.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what its ending says; the message says where and why.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8 text (byte {error.object[error.start]:#x} at {error.start})"
        ) from None
    return csv_rows(text) if path.suffix.lower() == ".csv" else json_rows(text)


def json_rows(text: str) -> list[Row]:
    """Rows of an array, or of one object a line; rows that are arrays have columns "0", "1", …

    Raises:
        ValueError: it is neither, or a row is neither object nor array.
    """
    values = _json_values(text)
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict | list):
            raise ValueError(f"row {number} is {json.dumps(value)[:40]}, not an object with named fields")
    if len({type(value) for value in values}) > 1:
        raise ValueError("it mixes lists with other rows")
    rows = [dict(zip(map(str, range(len(v))), v, strict=True)) if isinstance(v, list) else v for v in values]
    return _same_fields([row for row in rows if row])


def _json_values(text: str) -> list[Any]:
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    values = []
    for number, line in lines:
        try:
            values.append(read_json(line))
        except ValueError as error:
            if values:
                raise ValueError(f"line {number}: {error}") from None
            break  # a value of several lines
    else:
        several = len(values) == 1 and isinstance(values[0], list)
        return list(values[0]) if several else values
    value = read_json(text)
    return value if isinstance(value, list) else [value]


def _same_fields(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows with the fields of all, also of objects inside of them."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name, column in columns.items():
        inner = [value for value in column if value is not None]
        if (
            inner
            and all(isinstance(value, Mapping) for value in inner)
            and len({key for value in inner for key in value}) <= _MOST_INNER
        ):
            filled = iter(_same_fields(inner))
            columns[name] = [None if value is None else next(filled) for value in column]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def csv_rows(text: str) -> list[Row]:
    """Rows under a line of names; empty cells are null, columns of nothing but numbers are numbers.

    Raises:
        ValueError: a row has more fields than there are names, or quotes are not closed.
    """
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    header: list[str] | None = None
    found: list[list[str]] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = _names(cells)
                continue
            if any(cells[len(header) :]):
                raise ValueError(
                    f"row {len(found) + 1} has {len(cells)} fields and the header {len(header)}: put texts "
                    "that hold a comma in double quotes"
                )
            found.append(cells[: len(header)] + [""] * (len(header) - len(cells)))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    if header is None or not found:
        return []
    columns = [_typed(column) for column in zip(*found, strict=True)]
    return [dict(zip(header, values, strict=True)) for values in zip(*columns, strict=True)]


def _names(cells: Sequence[str]) -> list[str]:
    if len(cells) == 1 and (other := next((sign for sign in ";\t|" if sign in cells[0]), "")):
        raise ValueError(f"its columns are parted by {other!r}: part them by commas")
    names: list[str] = []
    for place, cell in enumerate(cells, 1):
        name = cell.strip() or f"column {place}"
        if name in names:
            raise ValueError(f"two columns are named {name!r}: rename one")
        names.append(name)
    return names


def _typed(cells: Sequence[str]) -> list[Any]:
    """A column's values; as numbers where these say all that was written."""
    numbers = [_number(cell) for cell in cells]
    if all(number is not None for number, cell in zip(numbers, cells, strict=True) if cell):
        return numbers
    return [cell if cell else None for cell in cells]


def _number(cell: str) -> int | float | None:
    """The number that is written in just this way; None for any other text, such as 007 and 2.50."""
    for kind in (int, float):
        try:
            value: int | float = kind(cell)
        except ValueError:
            continue
        if str(value) == cell and math.isfinite(value):
            return value
    return None
