"""Loads what cores need: imported by the process they are forked from (server.py), and nowhere else.

A fork keeps what was loaded and no thread, and CUDA does not survive it at all: nothing that is loaded here
may start CUDA, and a first process is forked only to see that. It asks CUDA's driver, for what a process has
open is no sign: vLLM asks NVML about the GPUs when it is imported, and NVML (driver 580) loads libcuda and
opens /dev/nvidia-uvm too, after which a fork can still start CUDA.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

DEVICE = "MATHRL_CORE_DEVICE"  # in this process's environment
_NOT_INITIALIZED, _NO_DEVICE = 3, 100  # of cuda.h's CUresult; 0 is success
_SHORT_S = 0.01  # to start CUDA takes longer
_OF_A_CORE = (
    "vllm.v1.engine.core",
    "mathrl.rollout.core.scheduler",
    "mathrl.rollout.core.server",  # by it a forked process knows what it is
    "vllm.lora.model_manager",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.qwen2",  # with it what nearly all models have in common
    "vllm.model_executor.models.llama",
)
_WORKERS = {
    "cpu": ("vllm.v1.worker.cpu_worker",),
    "cuda": (
        "vllm.v1.worker.gpu_worker",
        "vllm.v1.worker.gpu.model_runner",
        "vllm.v1.attention.backends.flash_attn",
        "vllm.lora.punica_wrapper.punica_gpu",
        "vllm.v1.worker.gpu.model_states.default",
    ),
}


class Watch:
    """Sees between which two imports CUDA was started: a finder that finds nothing.

    Attributes:
        seen: when that was, as a part of a sentence; empty: CUDA has not been started.
    """

    def __init__(self) -> None:
        self.seen = ""
        self.last = ""
        self._at = time.perf_counter()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Called before each import."""
        if time.perf_counter() - self._at > _SHORT_S:
            self.look(f"between the imports of {self.last} and {name}")
        self.last, self._at = name, time.perf_counter()

    def look(self, when: str) -> None:
        """Note this, where CUDA has been started since the last look."""
        if not self.seen and cuda_has_started():
            self.seen = when


watch = Watch()
"""Of the process that loads; a process forked from it tells what was seen."""


def load() -> None:
    """Load all, deaf to the signals of the job; end where nobody waits for it any more."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    with suppress(ImportError):  # it comes with vLLM; a core can name itself only where its server has
        importlib.import_module("setproctitle").setproctitle("mathrl::core_server")
    logging.getLogger("vllm").setLevel(
        os.environ.get("VLLM_LOGGING_LEVEL", "ERROR")
    )  # it warns before it reads it
    trainer, own = os.getppid(), os.getpid()
    sys.meta_path.insert(0, watch)
    gc.disable()  # nearly all of it stays: to look for what does not takes a fifth of the time
    for module in (*_OF_A_CORE, *_WORKERS[os.environ[DEVICE]]):
        if os.getppid() != trainer:
            os._exit(1)
        try:
            importlib.import_module(module)
        except ImportError:  # another version of vLLM: the core finds its own
            continue
        except Exception:  # noqa: BLE001 - a vLLM that does not load: the trainer says so
            os._exit(1)
    watch.look(f"after the import of {watch.last}")
    sys.meta_path.remove(watch)
    gc.enable()
    gc.freeze()  # a core that looked through these objects would copy the memory that it shares with this one
    atexit.register(lambda: os.getpid() == own and os._exit(0))  # libraries complain of what is taken down


def try_out(to: Connection) -> None:
    """In a process that is forked for a trial: send why a core could not use CUDA there; empty: it could."""
    torch: Any = sys.modules.get("torch")
    driver = _driver()
    answer = driver.cuInit(0) if driver is not None else 0
    with to:
        if answer == _NOT_INITIALIZED or (torch is not None and torch.cuda._is_in_bad_fork()):
            started = "CUDA has been started in the process to fork it from"
            to.send(f"{started}, {watch.seen}" if watch.seen else started)
        elif answer not in (0, _NO_DEVICE):
            to.send(f"CUDA's driver answers a process forked for a trial with error {answer}")
        else:
            to.send("")


def cuda_has_started() -> bool:
    """Whether this process has begun to use a GPU: to ask for their number does not begin it."""
    driver = _driver()
    return driver is not None and driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) == 0


def _driver() -> Any:
    """CUDA's driver, where this process has loaded it; it is not loaded here for that."""
    try:
        return ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return None


if DEVICE in os.environ:
    load()
