"""What the start of vLLM's core takes, told by the core itself (core_time.py mixes this into its worker).

vLLM imports the module once the core's own imports are done, before its worker touches the device.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import mathrl.rollout.core.extension  # noqa: F401 - as in a run

PARTS = {
    "init_device": "device",
    "load_model": "weights",
    "determine_available_memory": "a largest step, for the memory it takes",
    "initialize_from_config": "cache",
    "compile_or_warm_up_model": "other warm-ups",
}
INSIDE = {  # of a part, and not counted with it
    "vllm.v1.worker.gpu_worker": {"kernel_warmup": "kernels", "warmup_kernels": "first steps"},
    "vllm.v1.worker.gpu.model_runner.GPUModelRunner": {"capture_model": "graphs"},
}
_WORKERS = ("vllm.v1.worker.gpu_worker.Worker", "vllm.v1.worker.cpu_worker.CPUWorker")


class StartClock:
    """What vLLM mixes into its workers: nothing; their methods carry a clock by then."""


class _Told:
    """Seconds by part, written anew after each."""

    def __init__(self, file: Path) -> None:
        process = psutil.Process()
        self.file = file
        self.inside: list[float] = []  # seconds that parts of those under way have taken
        self.seconds = {"imports": time.time() - process.create_time()}
        self.begun = process.create_time()

    def timed(self, part: str, function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self.inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                seconds = time.perf_counter() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + seconds - self.inside.pop()
                if self.inside:
                    self.inside[-1] += seconds
                self.file.write_text(json.dumps({"begun": self.begun, "seconds": self.seconds}))

        return run


def _wind_up() -> None:
    told = _Told(Path(os.environ["CORE_CLOCK"]).with_suffix(".start.json"))
    for path, parts in {**dict.fromkeys(_WORKERS, PARTS), **INSIDE}.items():
        owner = _found(path)
        for method, part in parts.items():
            if owner is not None and method in vars(owner):
                setattr(owner, method, told.timed(part, getattr(owner, method)))


def _found(path: str) -> Any:
    """A module or a class of one, where this process has imported it."""
    module, _, name = path.rpartition(".")
    return sys.modules.get(path) or getattr(sys.modules.get(module), name, None)


if "CORE_CLOCK" in os.environ:
    _wind_up()
