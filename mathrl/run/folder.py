"""A run is a folder: what lies where, who may write into it, and nothing half-written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathrl import __version__
from mathrl.config import Config
from mathrl.errors import UserError, cannot_write
from mathrl.recipes import differences, dump, load_config
from mathrl.run.files import is_left_over, remove, sweep, write_json, write_text
from mathrl.run.lock import FolderLock, opened

FREE_FIELDS = (
    "run.name",
    "run.output_dir",
    "run.num_threads",
    "train.num_steps",
    "train.max_seconds",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "tracking.tensorboard",
    "tracking.wandb",
    "tracking.trackio",
    "tracking.save_batch_steps",
)
"""What may differ when a run is resumed: none of it changes the steps that were made."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def reference(self) -> Path:
        return self.path / "reference"

    @property
    def sft_metrics(self) -> Path:
        return self.path / "sft_metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def batches(self) -> Path:
        return self.path / "batches"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def earlier(self) -> Path:
        """Results of an end that was gone beyond."""
        return self.path / "earlier"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def marker(self) -> Path:
        """Says that the folder is ours: only a folder that has it is ever emptied."""
        return self.path / ".mathrl-run"

    @property
    def lock(self) -> FolderLock:
        return FolderLock(self.path, self._what)

    @property
    def _what(self) -> str:
        return f"the run in {self.path}"

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        """The folder of a recipe's run.

        Raises:
            UserError: the name is not one component of a path.
        """
        name = config.run.name or config.recipe
        if name in (".", "..") or "/" in name or "\\" in name or not name.isprintable():
            raise UserError(
                f"run.name {name!r} must be the name of one folder: say where runs lie with --run.output_dir"
            )
        return cls(Path(config.run.output_dir) / name)

    def check(self, config: Config, *, resume: bool, overwrite: bool) -> bool:
        """Refuse before anything is written; whether a run goes on that has begun in it.

        Raises:
            UserError: the folder cannot be made; it exists and neither ``resume`` nor ``overwrite`` is given;
                it is no run, or not one that may be deleted; another process works in it; its configuration
                is another one.
        """
        try:
            self._check_place()
            if not self.path.exists() or self._is_blank():
                return False
        except OSError as error:  # such as a name that is too long
            raise UserError(f"{self.path} cannot be made: {cannot_write(error)}") from error
        if not self.config.is_file():
            raise UserError(
                f"{self.path} exists and is not a run (no config.toml): choose another --run.name"
            )
        self.lock.refuse_if_held()
        if overwrite:
            self._check_deletable()
            return False
        if not resume:
            raise UserError(
                f"the run folder {self.path} exists: go on with --resume, or choose another --run.name "
                "(--overwrite deletes it and starts anew)"
            )
        self._check_same(config)
        return True

    @contextmanager
    def open(self, config: Config, *, overwrite: bool) -> Iterator[None]:
        """Inside, the folder is there, this process alone works in it, and it holds the configuration.

        Call ``check`` first.

        Raises:
            UserError: it cannot be made, or another process works in it.
        """
        with opened(self.path, self._what):
            try:
                if overwrite or self._half_emptied():
                    self._empty()
                for folder in (self.path, self.evaluations, self.batches):
                    sweep(folder)
                self._mark()
                write_text(self.config, dump(config))
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {cannot_write(error)}") from error
            yield

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json, or None before it is written."""
        return json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.is_file() else None

    def set_results_aside(self) -> None:
        """Make room for new results: those that are there go to ``earlier/step-…``, the summary last.

        Killed meanwhile, it goes on from there when it is called again.
        """
        summary = self.read_summary()
        if summary is None:
            return
        name, number = f"step-{summary['steps']:08d}", 1
        folder = self.earlier / name
        while (folder / self.summary.name).exists():  # other results after as many steps
            number += 1
            folder = self.earlier / f"{name}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        results = [*self.evaluations.glob("*after.json*"), self.adapter, self.report]
        for path in (*results, self.summary):
            if path.exists():
                path.rename(folder / path.name)

    def set_evaluation_aside(self, file: Path) -> Path:
        """Move an evaluation that is not the one wanted to ``earlier/``; where it is now."""
        self.earlier.mkdir(exist_ok=True)
        number = 1
        while (kept := self.earlier / f"{file.stem}-{number}.jsonl").exists():
            number += 1
        if file.with_suffix(".json").exists():
            file.with_suffix(".json").rename(kept.with_suffix(".json"))
        return file.rename(kept)

    def _check_place(self) -> None:
        if self.path.exists():
            if not self.path.is_dir():
                raise UserError(f"{self.path} is a file, not a run folder: choose another --run.name")
            return
        above = self.path.parent
        while not above.exists() and above != above.parent:
            above = above.parent
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            why = "you may not write there" if above.is_dir() else f"{above} is no folder"
            raise UserError(f"{self.path} cannot be made: {why}; choose another --run.output_dir")

    def _is_blank(self) -> bool:
        """Nothing in it counts: it is empty, has just been made, or was being emptied."""
        own = {self.marker.name, FolderLock.NAME}
        left = [p.name for p in self.path.iterdir() if p.name not in own and not is_left_over(p)]
        return not left or self._half_emptied()

    def _check_deletable(self) -> None:
        if self.path.is_symlink() or not self.marker.is_file():
            raise UserError(
                f"--overwrite deletes only folders that mathrl has made, and {self.path} has no "
                f"{self.marker.name}: delete it yourself, or choose another --run.name"
            )
        inner = next((p for p in self.path.iterdir() if (p / self.marker.name).is_file()), None)
        if inner is not None:
            raise UserError(
                f"--overwrite would delete {inner}, a run that lies in {self.path}: choose another --run.name"
            )

    def _check_same(self, config: Config) -> None:
        changed = {
            k: v for k, v in differences(config, load_config(self.config)).items() if k not in FREE_FIELDS
        }
        if changed:
            field, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise UserError(
                f"the run in {self.path} was made with another configuration: {field} is {old!r} there and "
                f"{new!r} here{more}; choose another --run.name (--overwrite deletes the run there)"
            )

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
