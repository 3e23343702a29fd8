"""Rank processes of a test: started side by side with what torchrun would tell them, and waited for."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
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


class Ranks:
    """``world`` processes of one script; rank 0 keeps their store."""

    def __init__(self, script: str, world: int, *arguments: object) -> None:
        port = str(free_port())
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(TESTS / "distributed" / script), *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(world),
                    LOCAL_WORLD_SIZE=str(world),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                ),
            )
            for rank in range(world)
        ]

    def wait(self, timeout_s: float = 600) -> None:
        """Until all have ended well; what they printed is in the failure."""
        try:
            texts = [process.communicate(timeout=timeout_s)[0] for process in self.processes]
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        told = [
            f"rank {rank} ended with {process.returncode}:\n{text}"
            for rank, (process, text) in enumerate(zip(self.processes, texts, strict=True))
        ]
        assert not any(process.returncode for process in self.processes), "\n".join(told)


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
