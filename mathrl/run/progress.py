"""What one sees while a run works: bars on a terminal, now and then a line anywhere else."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from mathrl.distributed.environment import place

_LINE_EVERY_S = 10.0  # between plain lines: a log file of an hour has some hundred of them

_FILE_WIDTH = 160
_FIRST_GUESS = 0.02  # share of the work before which the time left is anybody's guess
_RECENT_S = 20.0  # what the rate of tokens is taken from
_LEAST_RECENT_S = 1.0
_TOKENS = "tokens"

_NUMBERS = (  # metric, how it is shown
    ("reward/mean", "reward {:.3f}"),
    ("held_out/accuracy", "held-out {:.1%}"),
    ("policy/kl_ref", "KL {:.4f}"),
    ("ranking/loss", "loss {:.3f}"),
    ("ranking/held_out_accuracy", "held-out pairs {:.1%}"),
    ("tokens/per_s", "{:,.0f} tok/s"),
    ("sft/loss", "loss {:.3f}"),
    ("sft/held_out_loss", "held-out {:.3f}"),
    ("sft/held_out_exact", "exact {:.1%}"),
    (_TOKENS, ""),
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
                TextColumn("{task.fields[count]}", markup=False),
                TextColumn("{task.fields[numbers]}", markup=False),
                TextColumn("{task.fields[left]}", markup=False),
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
        self.share: float | None = None  # of this process's work, where tokens tell it
        self.recent: deque[tuple[float, int]] = deque()  # (time, tokens so far) of the last seconds
        self.inner = progress.depth > 0
        self.task: TaskID | None = None
        if progress.bars is not None:
            self.task = progress.bars.add_task(title, total=1.0, count="", numbers="", left="")

    def __call__(self, done: int, total: int) -> None:
        """``done`` of ``total`` units are done."""
        self.done, self.total = done, total
        if self.first_done is None:
            self.first_done, self.start = done, time.monotonic()
        if self.progress.bars is not None and self.task is not None:
            self.progress.bars.update(
                self.task,
                completed=done / max(total, 1) if self.share is None else self.share,
                count=f"{done}/{total}",
                numbers=self._text(),
                left=self._left(),
            )
        elif not self.inner and time.monotonic() - self.last_line >= _LINE_EVERY_S:
            self.last_line = time.monotonic()
            self.progress.console.print(self.line(), soft_wrap=True)

    def show(self, done: int, metrics: Mapping[str, float]) -> None:
        """``done`` units are done, with these metrics; shows the last of each number that matters."""
        for name, template in _NUMBERS:
            if name in metrics:
                self.numbers[name] = template.format(metrics[name])
        self(done, self.total)

    def sampled(self, tokens: int, share: float | None) -> None:
        """So many tokens are sampled, a share of all that will be; None: nobody can tell yet."""
        now = time.monotonic()
        self.numbers[_TOKENS] = f"{tokens:,} tokens"
        self.recent.append((now, tokens))
        while len(self.recent) > 2 and now - self.recent[0][0] > _RECENT_S:
            self.recent.popleft()
        self.share = share
        self(self.done, self.total)

    def line(self) -> str:
        """The stage in one line."""
        return self._join(self._text(), self._left())

    def end(self) -> None:
        """Say what was reached, and how long it took; stages within another one end silently."""
        if self.progress.bars is not None and self.task is not None:
            self.progress.bars.remove_task(self.task)
        self.numbers.pop(_TOKENS, None)
        if not self.inner:
            seconds = time.monotonic() - self.start
            self.progress.console.print(self._join(self._text(), f"{seconds:.1f} s"), soft_wrap=True)

    def _join(self, *parts: str) -> str:
        return "  ".join(part for part in (f"{self.title} {self.done}/{self.total}", *parts) if part)

    def _text(self) -> str:
        return " · ".join(self.numbers[name] for name, _ in _NUMBERS if name in self.numbers)

    def _left(self) -> str:
        if self.numbers.get(_TOKENS):
            seconds = self._left_by_tokens()
        else:
            work = self.total - (self.first_done or 0)
            worked = self.done - (self.first_done or 0)
            if worked <= 0 or worked < _FIRST_GUESS * work:
                return ""
            seconds = (time.monotonic() - self.start) / worked * (self.total - self.done)
        if seconds is None:
            return ""
        minutes = int(seconds) // 60
        hours = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
        return f"{hours}:{int(seconds) % 60:02d} left"

    def _left_by_tokens(self) -> float | None:
        """Seconds for the tokens that are left, at the rate of late: it falls with the completions."""
        (then, first), (now, tokens) = self.recent[0], self.recent[-1]
        if self.share is None or self.share < _FIRST_GUESS:
            return None
        if now - then < _LEAST_RECENT_S or tokens == first:
            return None
        return tokens * (1.0 / self.share - 1.0) * (now - then) / (tokens - first)
