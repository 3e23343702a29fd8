"""Rank processes of a test: started side by side with what torchrun would tell them, and waited for."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"


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
