"""Folders of ours: a marker in them says so, and nothing without it is ever emptied."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mathrl import __version__
from mathrl.errors import UserError, cannot_write
from mathrl.run.files import is_left_over, refuse_place, remove, sweep, write_json
from mathrl.run.lock import FolderLock, opened

_MARKER = ".mathrl-"


@dataclass(frozen=True)
class OwnedFolder:
    """A folder that a command makes, goes on in and, where ``--overwrite`` says so, empties."""

    path: Path
    kind: str  # "run", "comparison"
    elsewhere: str  # the options that name another one, as in "choose another --run.name"

    @property
    def marker(self) -> Path:
        return self.path / f"{_MARKER}{self.kind}"

    @property
    def lock(self) -> FolderLock:
        return FolderLock(self.path, self._what)

    def is_blank(self) -> bool:
        """Whether there is nothing to go on from; refuses a place where no folder can be.

        Raises:
            UserError: it is a file, or cannot be made.
        """
        try:
            if self.path.exists():
                if not self.path.is_dir():
                    raise UserError(f"{self.path} is a file and no folder: choose another {self.elsewhere}")
                return self._holds_nothing()
            refuse_place(self.path, self.elsewhere)
        except OSError as error:  # such as a name that is too long
            raise UserError(f"{self.path} cannot be made: {cannot_write(error)}") from error
        return True

    def refuse_others(self) -> None:
        """Raise UserError where the folder is ours, but of another kind."""
        for marker in self.path.glob(f"{_MARKER}*"):
            if marker != self.marker and not is_left_over(marker):
                kind = marker.name.removeprefix(_MARKER)
                raise UserError(
                    f"{self.path} is a {kind} and no {self.kind}: choose another {self.elsewhere}"
                )

    def check_deletable(self) -> None:
        """Raise UserError where it has no marker, is a link, or something else of ours lies in it."""
        if self.path.is_symlink() or not self.marker.is_file():
            raise UserError(
                f"--overwrite deletes only folders that mathrl has made, and {self.path} has no "
                f"{self.marker.name}: delete it yourself, or choose another {self.elsewhere}"
            )
        inner = next((p for p in self.path.iterdir() if p.is_dir() and any(p.glob(f"{_MARKER}*"))), None)
        if inner is not None:
            raise UserError(
                f"--overwrite would delete {inner} as well, which is a run or a comparison in {self.path}: "
                f"choose another {self.elsewhere}"
            )

    @contextmanager
    def open(self, *, empty: bool, swept: Sequence[Path] = ()) -> Iterator[None]:
        """Inside, the folder is there, marked and swept, and this process alone works in it.

        Args:
            empty: it is emptied first; call ``check_deletable`` before.
            swept: folders in it where a killed process may have left something half-written.

        Raises:
            UserError: it cannot be made or written, or another process works in it.
        """
        with opened(self.path, self._what):
            try:
                if empty or self._half_emptied():
                    self._empty()
                for folder in (self.path, *swept):
                    sweep(folder)
                self._mark()
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {cannot_write(error)}") from error
            yield

    @property
    def _what(self) -> str:
        return f"the {self.kind} in {self.path}"

    def _holds_nothing(self) -> bool:
        """It is empty, has just been made, or was being emptied."""
        own = {self.marker.name, FolderLock.NAME}
        left = [p.name for p in self.path.iterdir() if p.name not in own and not is_left_over(p)]
        return not left or self._half_emptied()

    def _mark(self, *, emptying: bool = False) -> None:
        write_json(self.marker, {"mathrl": __version__, "emptying": emptying})

    def _half_emptied(self) -> bool:
        """Whether a process was killed while it emptied the folder: what is left belongs to nothing."""
        try:
            return bool(json.loads(self.marker.read_text(encoding="utf-8"))["emptying"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _empty(self) -> None:
        self._mark(emptying=True)
        for path in self.path.iterdir():
            if path.name not in (self.marker.name, FolderLock.NAME):
                remove(path)
