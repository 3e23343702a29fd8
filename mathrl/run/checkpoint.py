"""Checkpoints: everything a run needs to go on as if it had never stopped, written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mathrl.errors import UserError, cannot_write
from mathrl.run.files import atomic, json_default, sweep, write_json
from mathrl.types import Adapter

_FORMAT = 1
_STEP = re.compile(r"step-(\d{8})")
_STATE, _BEST = "state.pt", "best.json"


class CheckpointStore:
    """The folder ``checkpoints/`` of a run: ``step-00000040/state.pt`` …, with ``best.json`` in the best.

    A checkpoint appears under its name only when all of it is on the disk, its mark with it. The newest
    ``keep_last`` stay, and the best one besides.

    Args:
        folder: made when the first checkpoint is saved.
        keep_last: newest checkpoints kept, >= 1.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def save(self, step: int, state: Mapping[str, Any], *, best: bool = False) -> Path:
        """Write the state and the state of all random generators after ``step`` steps.

        Args:
            step: steps done.
            state: nested dicts, lists, tuples, tensors, numbers, strings, None and ``Adapter``s.
            best: mark this one as the best so far; a step that was marked keeps its mark.

        Raises:
            UserError: the disk is full or cannot be written; the checkpoints before are untouched.
        """
        path, best = self.path(step), best or step == self._best_step()
        data = {"format": _FORMAT, "step": step, "generators": _generators(), "state": _plain(state)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with atomic(path) as temporary:
                temporary.mkdir()
                if best:
                    write_json(temporary / _BEST, {"step": step})
                _write(temporary / _STATE, data)
            _sync(self.folder)
        except OSError as error:
            raise UserError(self._cannot_write(step, error)) from error
        self._forget()
        return path

    def latest(self) -> Path | None:
        """The newest checkpoint, or None."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def best(self) -> Path | None:
        """The checkpoint last marked as the best, or None."""
        step = self._best_step()
        return None if step is None else self.path(step)

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are, in order."""
        if not self.folder.is_dir():
            return []
        names = [_STEP.fullmatch(p.name) for p in self.folder.iterdir() if (p / _STATE).is_file()]
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def load(self, path: Path) -> dict[str, Any]:
        """The saved state; puts Python's, NumPy's and torch's random generators back where they were.

        Nothing but tensors and plain values is unpickled: a checkpoint cannot run code.

        Raises:
            UserError: no checkpoint there, damaged, or of another format.
        """
        data = read_checkpoint(path)
        _restore_generators(data["generators"])
        return data["state"]

    def _best_step(self) -> int | None:
        steps = self.steps()
        marked = {step for step in steps if (self.path(step) / _BEST).is_file()}
        file = self.folder / _BEST  # checkpoints of before had one mark for all
        if file.is_file():
            marked |= {json.loads(file.read_text(encoding="utf-8"))["step"]} & {*steps}
        return max(marked, default=None)

    def _sweep(self) -> None:
        """Remove what a killed process left half-written."""
        sweep(self.folder)

    def _forget(self) -> None:
        kept = {*self.steps()[-self.keep_last :], self._best_step()}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))

    def _cannot_write(self, step: int, error: OSError) -> str:
        steps = self.steps()
        good = f"the last good one is of step {steps[-1]}" if steps else "there is none before it"
        return (
            f"the checkpoint of step {step} cannot be written to {self.folder}: {cannot_write(error)}; "
            f"{good}: make room and go on with --resume"
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint: format, step, generators, state.

    Raises:
        UserError: no checkpoint there, damaged, or of another format.
    """
    file = path / _STATE
    if not file.is_file():
        raise UserError(f"there is no checkpoint in {path}")
    try:
        data = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"the checkpoint {file} is damaged: delete its folder, --resume then goes on from the one before"
        ) from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise UserError(f"the checkpoint {file} was written by another version of mathrl: start anew")
    data["state"] = _revived(data["state"])
    return data


def _plain(value: Any) -> Any:
    """The value with each Adapter as a marked dict; its configuration as JSON types."""
    if isinstance(value, Adapter):
        config = json.loads(json.dumps(dict(value.config), default=json_default))
        return {"__adapter__": {"config": config, "tensors": dict(value.tensors)}}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _revived(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"__adapter__"}:
            return Adapter(**value["__adapter__"])
        return {key: _revived(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_revived(item) for item in value)
    return value


def _write(file: Path, data: Any) -> None:
    buffer = io.BytesIO()  # torch reports a full disk as a damaged archive; a plain write says what happened
    torch.save(data, buffer)
    with file.open("wb") as out:
        out.write(buffer.getbuffer())
        out.flush()
        os.fsync(out.fileno())
    _sync(file.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _generators() -> dict[str, Any]:
    legacy: dict[str, Any] = dict(np.random.get_state(legacy=False))
    legacy["state"] = legacy["state"] | {"key": torch.from_numpy(legacy["state"]["key"].astype(np.int64))}
    return {
        "python": random.getstate(),
        "numpy": legacy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_generators(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    legacy = states["numpy"]
    key = legacy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(legacy | {"state": legacy["state"] | {"key": key}})
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
