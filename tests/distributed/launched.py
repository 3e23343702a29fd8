"""Processes of a test: what they are started with, and whether one lives on."""

import os
import socket
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
RECIPE = str(TESTS / "tiny.toml")
MARK = "MATHRL_TEST"
"""In the environment of all that a test starts, and so of what that starts."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(**more: str) -> dict[str, str]:
    """For processes that import the package and the tests' helpers."""
    paths = f"{ROOT}:{TESTS}:{TESTS / 'distributed'}"
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | more


def marked(tag: str) -> list[psutil.Process]:
    """Live processes, other than this one, that bear a test's mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == tag:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def left_behind(tag: str, patience_s: float = 15.0) -> None:
    """Fail where a process of a test lives on."""
    deadline = time.monotonic() + patience_s
    while left := marked(tag):
        if time.monotonic() > deadline:
            raise AssertionError([(p.pid, p.cmdline()) for p in left])
        time.sleep(0.2)
