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

import mathrl.rollout.core_extension  # noqa: F401 - as in a run

PARTS = {
    "init_device": "device",
    "load_model": "weights",
    "determine_available_memory": "a largest step, for the memory it takes",
    "initialize_from_config": "cache",
    "compile_or_warm_up_model": "graphs",
}
_WORKERS = ("vllm.v1.worker.gpu_worker.Worker", "vllm.v1.worker.cpu_worker.CPUWorker")


class StartClock:
    """What vLLM mixes into its workers: nothing; their methods carry a clock by then."""


class _Told:
    """Seconds by part, written anew after each."""

    def __init__(self, file: Path) -> None:
        process = psutil.Process()
        self.file, self.under_way = file, False
        self.seconds = {"imports": time.time() - process.create_time()}
        self.begun = process.create_time()

    def timed(self, part: str, function: Any) -> Any:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.under_way:  # a worker's method may call its parent's
                return function(*args, **kwargs)
            self.under_way, start = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.under_way = False
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
                self.file.write_text(json.dumps({"begun": self.begun, "seconds": self.seconds}))

        return run


def _wind_up() -> None:
    told = _Told(Path(os.environ["CORE_CLOCK"]).with_suffix(".start.json"))
    for path in _WORKERS:
        module, _, name = path.rpartition(".")
        worker = getattr(sys.modules.get(module), name, None)
        for method, part in PARTS.items():
            if worker is not None and method in vars(worker):
                setattr(worker, method, told.timed(part, getattr(worker, method)))


if "CORE_CLOCK" in os.environ:
    _wind_up()
