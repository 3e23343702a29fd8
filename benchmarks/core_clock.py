"""A clock in vLLM's core: where the seconds of a decoding step go (core_time.py starts it there).

A scheduler class is all of ours that runs in the core's process, so that is where the clock is wound up.
"""

from __future__ import annotations

import cProfile
import functools
import io
import json
import os
import pstats
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import vllm.v1.engine.core as engine_core
from vllm.v1.executor import uniproc_executor

from mathrl.rollout.core.scheduler import FinishedOnlyAsyncScheduler, FinishedOnlyScheduler

_PROFILED = 60  # steps of every profile
_FIRST = 6  # steps of a profile of those that take requests in


class Clocked:
    """Before a scheduler of ours: a clock around each part of a step of the core."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        clock = Clock(Path(os.environ["CORE_CLOCK"]), self)
        for name in ("schedule", "update_from_output"):
            setattr(self, name, clock.timed(name, getattr(self, name)))
        executor = uniproc_executor.UniProcExecutor
        for owner, name in (
            (executor, "execute_model"),
            (executor, "sample_tokens"),
            (uniproc_executor.AsyncOutputFuture, "result"),
        ):
            setattr(owner, name, clock.timed(name, getattr(owner, name)))
        core = engine_core.EngineCore
        for name in ("step", "step_with_batch_queue"):
            setattr(core, name, clock.step(getattr(core, name)))


class ClockedAsyncScheduler(Clocked, FinishedOnlyAsyncScheduler):
    """On a GPU."""


class ClockedScheduler(Clocked, FinishedOnlyScheduler):
    """On a CPU."""


SCHEDULERS = {"cuda": ClockedAsyncScheduler, "cpu": ClockedScheduler}


class Clock:
    """Sums of seconds by the number of running completions; profiles where a file asks for them.

    The trainer's side writes ``ask`` beside the result file: "cpu" profiles Python's calls, "cuda" kernels,
    "first" Python's calls of the steps that take requests in.
    """

    def __init__(self, file: Path, scheduler: Any) -> None:
        self.file, self.scheduler = file, scheduler
        self.parts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self.now: dict[str, float] = defaultdict(float)
        self.steps = 0
        self.profile: Any = None
        self.what = ""
        self.left = 0

    def timed(self, name: str, function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.now[name] += time.perf_counter() - start

        return run

    def step(self, function: Any) -> Any:
        @functools.wraps(function)
        def run(core: Any) -> Any:
            running = len(self.scheduler.running)
            self.ask(running)
            start = time.perf_counter()
            result = function(core)
            self.now["step"] += time.perf_counter() - start
            key = str(1 << (running - 1).bit_length()) if running else "0"
            for name, seconds in self.now.items():
                self.parts[key][name] += seconds
            self.parts[key]["steps"] += 1
            self.now.clear()
            self.steps += 1
            if self.left:
                self.left -= 1
                if not self.left:
                    self.end_profile()
            if self.steps % 100 == 0 or not running:
                new = self.file.with_suffix(".new")
                new.write_text(json.dumps(self.parts))
                new.replace(self.file)
            return result

        return run

    def ask(self, running: int) -> None:
        asked = self.file.with_suffix(".ask")
        if self.left or (running and self.steps % 20) or not asked.exists():
            return
        what = asked.read_text()
        if running and what == "first":
            return
        self.what = what
        asked.unlink()
        if self.what != "cuda":
            self.profile = cProfile.Profile()
            self.profile.enable()
        else:
            import torch

            if not torch.cuda.is_available():
                return
            self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profile.start()
        self.left = _FIRST if self.what == "first" else _PROFILED

    def end_profile(self) -> None:
        out = self.file.with_suffix(f".{self.what}.txt")
        if self.what != "cuda":
            self.profile.disable()
            text = io.StringIO()
            pstats.Stats(self.profile, stream=text).sort_stats("tottime").print_stats(45)
            out.write_text(text.getvalue())
            return
        self.profile.stop()
        rows = sorted(self.profile.key_averages(), key=lambda row: -row.self_device_time_total)
        each = [(r.self_device_time_total / 1000 / _PROFILED, r.count / _PROFILED, r.key) for r in rows]
        lines = [f"{ms:8.4f} ms {count:7.1f} x {name[:110]}" for ms, count, name in each[:40]]
        out.write_text("\n".join([f"kernels: {sum(r[0] for r in each):.3f} ms a step", *lines, ""]))
