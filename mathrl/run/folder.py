"""A run is a folder: what lies where, who may write into it, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.recipes import differences, dump, load_config

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
    def summary(self) -> Path:
        return self.path / "summary.json"

    @classmethod
    def of(cls, config: Config) -> RunFolder:
        return cls(Path(config.run.output_dir) / (config.run.name or config.recipe))

    def check(self, config: Config, *, resume: bool, overwrite: bool) -> None:
        """Refuse before anything is written.

        Raises:
            UserError: the folder exists and neither ``resume`` nor ``overwrite`` is given; it is no run; its
                configuration is another one.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a run folder: choose another --run.name")
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if not self.config.is_file():
            raise UserError(
                f"{self.path} exists and is not a run (no config.toml): choose another --run.name"
            )
        if overwrite:
            return
        if not resume:
            raise UserError(
                f"the run folder {self.path} exists: go on with --resume, start anew with --overwrite, "
                "or choose another --run.name"
            )
        changed = {
            k: v for k, v in differences(config, load_config(self.config)).items() if k not in FREE_FIELDS
        }
        if changed:
            field, (old, new) = next(iter(changed.items()))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise UserError(
                f"the run in {self.path} was made with another configuration: {field} is {old!r} there and "
                f"{new!r} here{more}; start anew with --overwrite or choose another --run.name"
            )

    def open(self, config: Config, *, overwrite: bool) -> None:
        """Make the folder and save the configuration in it."""
        if overwrite and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, dump(config))

    def read_summary(self) -> dict[str, Any] | None:
        """summary.json, or None before it is written."""
        return json.loads(self.summary.read_text(encoding="utf-8")) if self.summary.is_file() else None


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` (file or folder) that takes its place once the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
        if path.is_dir():  # a folder cannot be replaced in one step: move it aside first
            aside = path.with_name(f".{path.name}.{os.getpid()}.old")
            _remove(aside)
            path.rename(aside)
            temporary.rename(path)
            _remove(aside)
        else:
            temporary.replace(path)
    finally:
        _remove(temporary)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
