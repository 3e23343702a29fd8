"""One worker process as its parent sees it: started, spoken to in lines of JSON, killed, reaped."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

_READ_BYTES = 1 << 16


class WorkerDied(Exception):
    """The child's end of a pipe is closed."""


class Child:
    """One worker process and its two pipes; messages are lines of JSON."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        # The parent's import path goes along, so that answer types are found wherever the parent found them.
        # A fixed hash seed makes sympy's orderings, and so every verdict, the same in all workers and runs.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
        entry = "from verifiers.pool.worker import main; main()"
        # Not multiprocessing: its spawned children import the parent's main module again, torch and all.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", entry, str(timeout_s), str(memory_mb), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin: IO[bytes] = self.process.stdin
        self._stdout: IO[bytes] = self.process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._buffer = b""
        self.loaded: set[str] = set()  # names of the answer types that it has imported

    def send(self, message: Any, limit_s: float) -> None:
        """Write one line; raises `WorkerDied` if the child does not read it within `limit_s` seconds."""
        data = memoryview(json.dumps(message, default=str).encode("ascii") + b"\n")
        deadline = time.monotonic() + limit_s
        while data:
            if not _wait(self._stdin, select.POLLOUT, deadline):
                raise WorkerDied
            try:
                data = data[os.write(self._stdin.fileno(), data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise WorkerDied from error

    def messages(
        self, limit_s: float, slow_s: float = float("inf"), on_slow: Callable[[], None] = lambda: None
    ) -> Iterator[Any]:
        """What the child says, until it has been silent for `limit_s`; raises `WorkerDied` at its end.

        `on_slow` is called whenever it has been silent for `slow_s`.
        """
        deadline = time.monotonic() + limit_s
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                try:
                    message = json.loads(line)
                except ValueError as error:
                    raise WorkerDied from error
                yield message
                deadline = time.monotonic() + limit_s
                continue
            if not _wait(self._stdout, select.POLLIN, min(deadline, time.monotonic() + slow_s)):
                if time.monotonic() >= deadline:
                    return
                on_slow()
                if not _wait(self._stdout, select.POLLIN, deadline):
                    return
            data = os.read(self._stdout.fileno(), _READ_BYTES)
            if not data:
                raise WorkerDied
            self._buffer += data

    def await_exit(self) -> None:
        """Let a child whose pipe is closed end by itself, a moment later: its exit code tells the cause."""
        deadline = time.monotonic() + 1.0
        while self._exited() is None and time.monotonic() < deadline:
            time.sleep(0.002)

    def _exited(self) -> object:
        """Something once it has ended; it stays a zombie, so that its number still names its group."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    def kill(self) -> None:
        """Kill the process and whatever it may have started, also where it has ended by itself."""
        if self.process.returncode is None:  # not reaped, so the number is still its group's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Make sure it is dead; returns the exit code, negative for the signal that ended it."""
        self.kill()
        code = self.process.wait()
        self._stdin.close()
        self._stdout.close()
        return code


def _wait(pipe: IO[bytes], event: int, deadline: float) -> bool:
    """Whether the pipe is ready (or broken) before the deadline; unlike select, for any file number."""
    poller = select.poll()
    poller.register(pipe, event)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
