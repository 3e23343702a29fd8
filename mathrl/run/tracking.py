"""What a run leaves behind as it goes: metrics and completions, for files, TensorBoard and trackers."""

from __future__ import annotations

import importlib
import math
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mathrl.config import Config, TrackingConfig
from mathrl.errors import UserError
from mathrl.run.files import write_text
from mathrl.run.folder import RunFolder
from mathrl.run.json_lines import append_rows, keep_rows
from mathrl.types import Group, Problem

PROJECT = "mathrl"


class Sink(Protocol):
    """A place metrics go to besides metrics.jsonl."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JudgedText(Protocol):
    """A completion with its verdict."""

    @property
    def text(self) -> str: ...
    @property
    def outcome(self) -> str: ...
    @property
    def extracted(self) -> str | None: ...
    @property
    def finish_reason(self) -> str: ...


class Watched(Protocol):
    """A held-out problem and its greedy completion."""

    @property
    def problem(self) -> Problem: ...
    @property
    def greedy(self) -> JudgedText: ...


class Tracker:
    """Writes ``metrics.jsonl`` (a row a step), ``samples.jsonl`` (a row a problem) and the sinks asked for.

    Of several ranks, ``ranks.jsonl`` has each one's seconds.

    Each row is on its way to the disk when ``log`` returns, so a killed run keeps all its rows. A resumed run
    continues after its checkpoint: rows of later steps, which will be made again, are dropped first.

    Args:
        folder: the run's.
        config: ``tracking`` says which sinks; all of it goes to the trackers.
        steps_done: rows of steps beyond are dropped.

    Raises:
        UserError: a tracker that was asked for is not installed, or cannot begin.
    """

    def __init__(self, folder: RunFolder, config: Config, steps_done: int) -> None:
        check_trackers(config.tracking)
        self.config = config.tracking
        self.metrics_file, self.samples_file = folder.path / "metrics.jsonl", folder.path / "samples.jsonl"
        self.ranks_file = folder.path / "ranks.jsonl"
        for file in (self.metrics_file, self.samples_file, self.ranks_file):
            keep_rows(file, lambda row: row.get("step", math.inf) <= steps_done)
        self.sinks: list[Sink] = []
        if self.config.tensorboard:
            self.sinks.append(TensorBoard(folder.path / "tensorboard", steps_done))
        settings: dict[str, Any] = config.model_dump()
        if self.config.wandb:
            self.sinks.append(WeightsAndBiases(folder.path, settings))
        if self.config.trackio:
            self.sinks.append(Trackio(folder.path, settings))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; a value that is not finite becomes null."""
        row = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        append_rows(self.metrics_file, [{"step": step} | row])
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for sink in self.sinks:
            sink.log(step, finite)

    def ranks(self, step: int, seconds: Sequence[Mapping[str, float]]) -> None:
        """Write every rank's seconds of a step by phase, to ``ranks.jsonl``."""
        append_rows(self.ranks_file, [{"step": step, "ranks": [dict(row) for row in seconds]}])

    def samples(self, step: int, groups: Sequence[Group]) -> None:
        """Write the first ``tracking.samples_per_step`` groups of a step, with their scores."""
        append_rows(
            self.samples_file,
            [_train_row(step, group) for group in groups[: self.config.samples_per_step]],
        )

    def watch(self, step: int, records: Sequence[Watched]) -> None:
        """Write the greedy completions of held-out problems, the same ones at every evaluation."""
        append_rows(self.samples_file, [_watch_row(step, record) for record in records])

    def close(self) -> None:
        """Flush and close the sinks; safe to call twice."""
        while self.sinks:
            self.sinks.pop().close()


class SftTracker:
    """Writes the losses of the supervised stage to ``sft_metrics.jsonl`` and TensorBoard, anew each time.

    Args:
        folder: the run's.
        config: whether TensorBoard is asked for.
    """

    def __init__(self, folder: RunFolder, config: TrackingConfig) -> None:
        self.file = folder.sft_metrics
        write_text(self.file, "")
        events = folder.path / "tensorboard" / "sft"
        shutil.rmtree(events, ignore_errors=True)
        self.tensorboard = TensorBoard(events, 0) if config.tensorboard else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of an SFT step."""
        append_rows(self.file, [{"step": step} | dict(metrics)])
        if self.tensorboard:
            self.tensorboard.log(step, metrics)

    def close(self) -> None:
        """Flush and close."""
        if self.tensorboard:
            self.tensorboard.close()


def check_trackers(config: TrackingConfig) -> None:
    """Refuse a tracker that is not installed.

    Raises:
        UserError: naming what to install.
    """
    for name in ("wandb", "trackio"):
        if getattr(config, name):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise UserError(
                    f"tracking.{name} needs the package {name}: pip install 'mathrl[{name}]', or leave it off"
                ) from error


class TensorBoard:
    """Event files for ``tensorboard --logdir RUN``."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # events of steps that are made again are hidden by the newer ones
        self.writer = SummaryWriter(str(folder), purge_step=steps_done + 1 if steps_done else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run; a resumed run goes on in the same one."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        with _refusals("wandb", "log in with `wandb login`, or keep the run here with WANDB_MODE=offline"):
            self.run = wandb.init(
                project=PROJECT,
                name=folder.name,
                id=_remembered_id(folder / "wandb_id"),
                resume="allow",
                dir=str(folder),
                config=settings,
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """A trackio run, kept on this machine."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import trackio

        self.trackio = trackio
        with _refusals("trackio", "look at what it needs"):
            trackio.init(project=PROJECT, name=folder.name, config=settings, resume="allow")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        self.trackio.finish()


@contextmanager
def _refusals(name: str, advice: str) -> Iterator[None]:
    """A tracker that cannot begin (logged out, out of reach) is one sentence."""
    try:
        yield
    except Exception as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"tracking.{name} cannot begin ({first}): {advice}, or leave it off") from error


def _remembered_id(file: Path) -> str:
    """The id in this file, made and written the first time."""
    if not file.is_file():
        write_text(file, uuid.uuid4().hex)
    return file.read_text(encoding="utf-8")


def _train_row(step: int, group: Group) -> dict[str, Any]:
    rows = [
        {
            "text": completion.text,
            "outcome": score.outcome,
            "reward": score.reward,
            "extracted": score.extracted,
            "finish_reason": completion.finish_reason,
        }
        for completion, score in zip(group.completions, group.scores, strict=True)
    ]
    return _problem_row(step, "train", group.problem, rows)


def _watch_row(step: int, record: Watched) -> dict[str, Any]:
    greedy = record.greedy
    row = {
        "text": greedy.text,
        "outcome": greedy.outcome,
        "extracted": greedy.extracted,
        "finish_reason": greedy.finish_reason,
    }
    return _problem_row(step, "watch", record.problem, [row])


def _problem_row(step: int, kind: str, problem: Problem, completions: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "step": step,
        "kind": kind,
        "problem_id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "completions": completions,
    }
