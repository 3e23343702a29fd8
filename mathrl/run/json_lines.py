"""JSON lines: one way to write and to read every file that grows while something works.

A row ends at a line feed and nowhere else: model text may hold any other separator that Unicode has (U+2028,
U+0085), so ``str.splitlines`` would tear rows apart. And a process may be killed in the middle of a row, even
of a character: what stands after the last line feed is no row yet.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mathrl.errors import UserError, cannot_write
from mathrl.run.files import to_json, write_bytes
from mathrl.types import read_json

Row = dict[str, Any]


def to_line(row: Mapping[str, Any], *, allow_nan: bool = False) -> bytes:
    """The row as UTF-8 with its line feed.

    Raises:
        ValueError: a number is not finite and ``allow_nan`` is not set.
    """
    return to_json(row, allow_nan=allow_nan) + b"\n"


def append_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows; they are with the operating system when this returns.

    Raises:
        UserError: the file cannot be written.
    """
    lines = b"".join(to_line(row) for row in rows)
    if not lines:
        return
    try:
        with file.open("ab") as out:
            out.write(lines)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {cannot_write(error)}; make room and go on with --resume"
        ) from error


def read_rows(file: Path, *, growing: bool = False) -> Iterator[tuple[int, Row]]:
    """(line number, row) of every line that is not blank; what is no UTF-8, and half a character, is U+FFFD.

    Args:
        growing: something appends to it, or was killed while it did: an unfinished last line is no row.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip() or (growing and not line.endswith(b"\n")):
                    continue
                yield number, _parse(file, number, line)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def keep_rows(file: Path, wanted: Callable[[Row], bool]) -> None:
    """Drop the rows that are not wanted, and an unfinished last one; a file that is not there stays so.

    Raises:
        UserError: as ``read_rows``.
    """
    if not file.is_file():
        return
    lines = _lines(file)
    kept = [
        line
        for number, line in enumerate(lines, start=1)
        if line.endswith(b"\n") and line.strip() and wanted(_parse(file, number, line))
    ]
    if kept != lines:
        write_bytes(file, b"".join(kept))


def cut_unfinished(file: BinaryIO) -> None:
    """Drop what stands after the last line feed of a file open for reading and writing, and go to its end."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, 2)


def _lines(file: Path) -> list[bytes]:
    with file.open("rb") as lines:
        return list(lines)


def _parse(file: Path, number: int, line: bytes) -> Row:
    try:
        row = read_json(line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {number}: not JSON ({error.msg})") from None
    if not isinstance(row, dict):
        raise UserError(f"{file}, line {number}: not a JSON object")
    return row
