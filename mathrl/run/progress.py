"""What one sees while a run works: bars on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from mathrl.distributed.environment import place

_LINE_EVERY_S = 10.0  # between plain lines: a log file of an hour has some hundred of them

_FILE_WIDTH = 160
_FIRST_GUESS = 0.02  # share of the work before which the time left is anybody's guess

_NUMBERS = (  # metric, how it is shown
    ("reward/mean", "reward {:.3f}"),
    ("held_out/accuracy", "held-out {:.1%}"),
    ("policy/kl_ref", "KL {:.4f}"),
    ("tokens/per_s", "{:,.0f} tok/s"),
    ("sft/loss", "loss {:.3f}"),
    ("sft/held_out_loss", "held-out {:.3f}"),
    ("sft/held_out_exact", "exact {:.1%}"),
)


def make_console() -> Console:
    """The console of a command; a file or pipe gets whole lines, however long. Of all ranks rank 0 speaks."""
    if not place().is_main:
        return Console(file=io.StringIO(), quiet=True)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    return console


class Progress:
    """Progress of the stages of a run; a context manager.

    Args:
        console: where it is shown; print through the same console so that lines and bars do not mix.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.depth = 0
        self.bars: Bars | None = None
        if console.is_terminal:
            self.bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}", markup=False),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("left"),
                console=console,
            )

    def __enter__(self) -> Self:
        if self.bars is not None:
            self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bars away; safe to call twice."""
        if self.bars is not None:
            self.bars.stop()

    @contextmanager
    def stage(self, title: str, total: int) -> Iterator[Stage]:
        """A stage of ``total`` units of work; one within another is shown below it while it lasts."""
        stage = Stage(self, title, total)
        self.depth += 1
        try:
            yield stage
        finally:
            self.depth -= 1
            stage.end()


class Stage:
    """Progress of one stage."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self.progress, self.title, self.total, self.done = progress, title, total, 0
        self.numbers: dict[str, str] = {}
        self.start = self.last_line = time.monotonic()
        self.first_done: int | None = None  # done when this process began: a resumed stage starts beyond 0
        self.inner = progress.depth > 0
        self.task: TaskID | None = None
        if progress.bars is not None:
            self.task = progress.bars.add_task(title, total=total, numbers="")

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` units are done."""
        self.done, self.total = done, total
        if self.first_done is None:
            self.first_done, self.start = done, time.monotonic()
        if self.progress.bars is not None and self.task is not None:
            self.progress.bars.update(self.task, completed=done, total=total, numbers=self._text())
        elif not self.inner and time.monotonic() - self.last_line >= _LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.progress.console.print(self.line(), soft_wrap=True)

    def show(self, done: int, metrics: Mapping[str, float]) -> None:
        """``done`` units are done, with these metrics; shows the last of each number that matters."""
        for name, template in _NUMBERS:
            if name in metrics:
                self.numbers[name] = template.format(metrics[name])
        self(done, self.total)

    def line(self) -> str:
        """The stage in one line."""
        return self._join(self._text(), self._left())

    def end(self) -> None:
        """Say what was reached, and how long it took; stages within another one end silently."""
        if self.progress.bars is not None and self.task is not None:
            self.progress.bars.remove_task(self.task)
        if not self.inner:
            seconds = time.monotonic() - self.start
            self.progress.console.print(self._join(self._text(), f"{seconds:.1f} s"), soft_wrap=True)

    def _join(self, *parts: str) -> str:
        return "  ".join(part for part in (f"{self.title} {self.done}/{self.total}", *parts) if part)

    def _text(self) -> str:
        return " · ".join(self.numbers[name] for name, _ in _NUMBERS if name in self.numbers)

    def _left(self) -> str:
        worked = self.done - (self.first_done or 0)
        if worked <= 0 or worked < _FIRST_GUESS * (self.total - (self.first_done or 0)):
            return ""
        seconds = (time.monotonic() - self.start) / worked * (self.total - self.done)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"
