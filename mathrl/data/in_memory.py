"""Problems from Python: kept as a file beside the runs, so that a run can be resumed by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from mathrl.data.fields import is_single, json_value, single
from mathrl.data.source import rows_of
from mathrl.errors import UserError, cannot_write
from mathrl.types import Problem, whole_text

_OWN = tuple(f.name for f in fields(Problem) if f.name not in ("id", "row", "meta"))


def write_rows(rows: Iterable[Any], folder: Path, name: str = "problems") -> Path:
    """Write rows as JSON lines in ``folder``; equal rows give the same file, whoever writes them.

    Args:
        rows: mappings, ``Problem`` records, a ``datasets.Dataset``, or a pandas table.

    Raises:
        UserError: no row, or one that is neither a mapping nor a Problem; the file cannot be written.
    """
    if hasattr(rows, "itertuples"):  # a pandas table, which gives its columns' names when one goes through it
        rows = _records(rows)
    elif hasattr(rows, "to_list") and hasattr(rows, "features"):  # a datasets.Dataset
        rows = rows_of(rows)
    if isinstance(rows, Mapping | str | bytes) or not isinstance(rows, Iterable):
        raise UserError(f"{name} must be a list of rows, each a dictionary, not a {type(rows).__name__}")
    lines = [json.dumps(_row(row, number, name), ensure_ascii=False) for number, row in enumerate(rows, 1)]
    if not lines:
        raise UserError(f"{name} is empty: give at least one row")
    text = whole_text("\n".join(lines) + "\n")
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = folder / f"{name}-{digest}.jsonl"
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {cannot_write(error)}") from error
    return path


def _records(table: Any) -> list[dict[Any, Any]]:
    """The rows of a pandas table."""
    rows: list[dict[Any, Any]] = table.to_dict("records")
    for name in (name for name, dtype in table.dtypes.items() if is_single(dtype)):
        for row in rows:
            row[name] = single(row[name])
    return rows


def _row(row: Any, number: int, name: str) -> dict[str, Any]:
    if isinstance(row, Problem):
        own = {key: getattr(row, key) for key in _OWN}
        return {**row.meta, **row.row, **{key: json_value(value) for key, value in own.items() if value}}
    if not isinstance(row, Mapping):
        raise UserError(f"{name}, row {number}: a {type(row).__name__}, not a dictionary such as a question "
                        "and an answer")  # fmt: skip
    return {str(key): json_value(value) for key, value in row.items()}
