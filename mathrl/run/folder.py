"""A run is a folder: what lies where, who may write into it, and nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.errors import UserError, cannot_write
from mathrl.recipes import dump, load_config
from mathrl.run.files import write_text
from mathrl.run.lock import FolderLock
from mathrl.run.owned import OwnedFolder
from mathrl.run.resumable import hindrances

_VALUE_CHARS = 60  # of a value in a message
_VALUES_TOLD = 3  # of the fields for which a run cannot go on; of the others the names


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
    def sft_adapter(self) -> Path:
        """What the supervised stage learnt, where it trained an adapter; ``reference`` has it merged."""
        return self.path / "sft-adapter"

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
    def owned(self) -> OwnedFolder:
        """The same folder, as one that has an owner, a lock and an end."""
        return OwnedFolder(self.path, "run", "--run.name or --run.output_dir")

    @property
    def lock(self) -> FolderLock:
        return self.owned.lock

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
        if self.owned.is_blank():
            return False
        self.owned.refuse_others()
        if not self.config.is_file():
            raise UserError(
                f"{self.path} exists and is not a run (no config.toml): choose another --run.name"
            )
        self.lock.refuse_if_held()
        if overwrite:
            self.owned.check_deletable()
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
        with self.owned.open(empty=overwrite, swept=(self.evaluations, self.batches, self.checkpoints)):
            try:
                write_text(self.config, dump(config))
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {cannot_write(error)}") from error
            yield

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json, or None before it is written."""
        return json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.is_file() else None

    def set_results_aside(self) -> Path | None:
        """Make room for new results: those that are there go to ``earlier/step-…``, the summary last.

        Returns that folder; None where there are no results. Killed meanwhile, it goes on from there when it
        is called again.
        """
        summary = self.read_summary()
        if summary is None:
            return None
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
        return folder

    def set_evaluation_aside(self, file: Path) -> Path:
        """Move an evaluation that is not the one wanted to ``earlier/``; where it is now."""
        self.earlier.mkdir(exist_ok=True)
        number = 1
        while (kept := self.earlier / f"{file.stem}-{number}.jsonl").exists():
            number += 1
        if file.with_suffix(".json").exists():
            file.with_suffix(".json").rename(kept.with_suffix(".json"))
        return file.rename(kept)

    def _check_same(self, config: Config) -> None:
        found = hindrances(config, load_config(self.config))
        if not found:
            return
        told = [
            f"{field} is {_short(old)} there and {_short(new)} here"
            for field, (old, new) in list(found.items())[:_VALUES_TOLD]
        ]
        others = list(found)[_VALUES_TOLD:]
        also = f", and {', '.join(others)} differ" if others else ""
        raise UserError(
            f"the run in {self.path} was made with another configuration, and cannot go on with this one: "
            f"{', '.join(told)}{also}; choose another --run.name (--overwrite deletes the run there)"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"
