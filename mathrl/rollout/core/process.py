"""In the process of a vLLM core: it ends with its trainer, and by nobody else's signal.

Ctrl-C reaches every process of a terminal, and SIGTERM every process of a job (timeout, SLURM, Kubernetes). A
core that obeyed would be gone while the trainer still wants its step finished. The trainer ends it by
``END``, and where the trainer is killed the core follows.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

END = signal.SIGUSR2
"""By which its trainer asks it to end."""
_IGNORED = (signal.SIGINT, signal.SIGTERM)


def belong_to_trainer() -> None:
    """In a core: ignore both signals, whatever vLLM sets for them, and end when the trainer has ended."""
    trainer = multiprocessing.parent_process()
    if trainer is None or getattr(signal.signal, "by_trainer", False):
        return
    threading.Thread(target=_end_with, args=(trainer,), daemon=True).start()
    if threading.current_thread() is not threading.main_thread():
        return
    set_handler = signal.signal

    def guarded(signum: int, handler: Any) -> Any:
        if signum not in _IGNORED:
            return set_handler(signum, handler)
        if callable(handler):
            set_handler(END, handler)  # vLLM's own way to end well
        return set_handler(signum, signal.SIG_IGN)

    guarded.by_trainer = True  # type: ignore[attr-defined]
    signal.signal = guarded  # type: ignore[assignment]
    for signum in _IGNORED:
        set_handler(signum, signal.SIG_IGN)


def runs_vllm(versions: Sequence[str], switch: str) -> bool:
    """Whether this is the process of one of these versions of vLLM ("0.26"), to be changed.

    ``switch`` is a variable of the environment that forbids it by being 0.
    """
    version = getattr(sys.modules.get("vllm"), "__version__", "")
    return ".".join(version.split(".")[:2]) in versions and os.environ.get(switch) != "0"


def _end_with(trainer: Any) -> None:
    """Nobody else would end the core of a killed trainer, and it holds the device's memory."""
    trainer.join()
    os._exit(1)
