"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mathrl.errors import UserError, cannot_write, says_full


def refuse_taken(path: Path, option: str, *, overwrite: bool) -> None:
    """Refuse a file that the user names, before the work for it is done.

    Args:
        option: names it, as in "choose another --out".
        overwrite: a file that is there may be replaced.

    Raises:
        UserError: it is a folder, it is there and may not be replaced, or it cannot be made.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: choose another {option}")
        taken = path.exists()
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{path} cannot be made: {cannot_write(error)}") from error
    if taken and not overwrite:
        raise UserError(f"{path} exists: choose another {option}, or replace it with --overwrite")
    refuse_place(path, option)


def refuse_place(path: Path, option: str) -> None:
    """Raise UserError where nothing can be made at ``path``: what is above it is no folder, or not ours."""
    above = path.parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "you may not write there" if above.is_dir() else f"{above} is no folder"
        raise UserError(f"{path} cannot be made: {why}; choose another {option}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around the writing of what the user names: the folders above it are made.

    Raises:
        UserError: the system refuses, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {cannot_write(error)}") from error


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` (file or folder) that takes its place once the block succeeds.

    Raises:
        UserError: a file would take the place of a folder, and all in it would be gone.
        OSError: the disk is full, whatever the writer in the block raises for that; it names ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        yield temporary
        if path.is_dir() and not temporary.is_dir():
            raise UserError(f"{path} is a folder, and a file is to be written: name a file")
        if path.is_dir():  # a folder cannot be replaced in one step: move it aside first
            aside = path.with_name(f".{path.name}.{os.getpid()}.old")
            remove(aside)
            path.rename(aside)
            temporary.rename(path)
            remove(aside)
        else:
            temporary.replace(path)
    except Exception as error:
        if says_full(error):  # safetensors has an error of its own, and a write to an open file names none
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        remove(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file or nothing."""
    write_bytes(path, to_json(value, indent=2) + b"\n")


def to_json(value: Any, *, indent: int | None = None, allow_nan: bool = False) -> bytes:
    """JSON as UTF-8.

    Raises:
        ValueError: a number is not finite and ``allow_nan`` is not set.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=allow_nan).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold and UTF-8 cannot: escaped
        return json.dumps(value, indent=indent, allow_nan=allow_nan).encode()


def json_default(value: Any) -> Any:
    """What JSON does not know of peft's settings: sets of module names, enums, mappings of other kinds."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(getattr(value, "value", value))


def is_left_over(path: Path) -> bool:
    """Whether a killed process may have left it: what ``atomic`` names its temporary files."""
    return path.name.startswith(".") and path.name.endswith((".tmp", ".old"))


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written; for a folder in which nobody else works.

    A folder that was moved aside and whose successor has not come takes its place again.
    """
    for path in folder.glob(".*.old"):
        name = path.name.removeprefix(".").rsplit(".", 2)[0]
        if not (folder / name).exists():
            path.rename(folder / name)
    for path in folder.glob(".*"):
        if is_left_over(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; what is not there is removed already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
