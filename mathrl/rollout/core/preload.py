"""Loads what cores need: imported by the process they are forked from (server.py), and nowhere else.

A fork keeps what was loaded and no thread, and CUDA does not survive it at all: nothing that is loaded here
may start CUDA, and a first process is forked only to see that.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

DEVICE = "MATHRL_CORE_DEVICE"  # in this process's environment
CUDA_STARTED = 3  # an exit code
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
    gc.enable()
    gc.freeze()  # a core that looked through these objects would copy the memory that it shares with this one
    atexit.register(lambda: os.getpid() == own and os._exit(0))  # libraries complain of what is taken down


def try_out() -> None:
    """In a process that is forked for a trial: end with ``CUDA_STARTED`` where a core could not use CUDA."""
    torch: Any = sys.modules.get("torch")
    if cuda_has_started(Path("/proc/self/fd")) or (torch is not None and torch.cuda._is_in_bad_fork()):
        raise SystemExit(CUDA_STARTED)


def cuda_has_started(files: Path) -> bool:
    """Whether a process with these open files has begun to use a GPU; to ask about it (NVML) opens others."""
    opened = (os.readlink(file) for file in files.iterdir() if file.is_symlink())
    return any(name.startswith("/dev/nvidia-uvm") for name in opened)


if DEVICE in os.environ:
    load()
