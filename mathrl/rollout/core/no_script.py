"""The script that starts an engine is not run again in the engine's process.

multiprocessing imports the main script anew in every process that it spawns or forks from its server, for
what the process is given may be defined there. vLLM's core is given nothing of the kind; and a script that
trains without ``if __name__ == "__main__":`` would begin to train once more, inside the engine.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

_usual = spawn.get_preparation_data
_here = threading.local()


def _prepared(name: str) -> dict[str, Any]:
    told: dict[str, Any] = _usual(name)
    if getattr(_here, "depth", 0):
        for key in ("init_main_from_name", "init_main_from_path"):
            told.pop(key, None)
    return told


@contextmanager
def script_left_out() -> Iterator[None]:
    """Processes that this thread starts meanwhile are not told of the main script; other threads' are."""
    spawn.get_preparation_data = _prepared
    _here.depth = getattr(_here, "depth", 0) + 1
    try:
        yield
    finally:
        _here.depth -= 1
