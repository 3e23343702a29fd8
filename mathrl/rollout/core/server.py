"""vLLM's core is forked from a process that has loaded already what a core needs.

A core would load everything again once the trainer has: half of an engine's start. The process here begins
as soon as a command knows that it will want vLLM, loads beside the trainer, and is multiprocessing's fork
server with a life of its own: it ends with the trainer, however that ends. A core has the trainer's
environment of the moment it is started in, its arguments by pickle, as a spawned one; it watches the trainer
(process.py) and the trainer watches it. All cores of a process are forked from one server, and share
its memory (some 700 MB) where they do not write to it.
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import context, forkserver, popen_forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mathrl.rollout.core.no_script import script_left_out
from mathrl.rollout.core.preload import DEVICE, try_out

_PRELOAD = "mathrl.rollout.core.preload"
_READ_ONCE = (  # when something is loaded: a server that has read another value is of no use
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "TORCH_COMPILE_DISABLE",
    "TRANSFORMERS_OFFLINE",
    "VLLM_CACHE_ROOT",
    "VLLM_LOGGING_LEVEL",
    "XDG_CACHE_HOME",
)
ONE_AT_A_TIME = threading.RLock()
"""Held by whoever begins a server or forks from one."""


class CoreServer(forkserver.ForkServer):
    """multiprocessing's server, one of our own: whoever else forks in this process keeps the usual one.

    Args:
        preload: a module that it loads.
    """

    def __init__(self, preload: str = _PRELOAD) -> None:
        super().__init__()
        self.set_forkserver_preload([preload])
        self.context: Any = _Context(self)
        self._begun = self._served = self._proved = False
        self._read_once: dict[str, str | None] = {}

    @property
    def pid(self) -> int | None:
        found: int | None = self._forkserver_pid
        return found

    def begin(self, device: str = "") -> None:
        """Start it; it loads by itself from then on, for cores on this device."""
        self._read_once = {name: os.environ.get(name) for name in _READ_ONCE}
        path = filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")))
        with _environment({"PYTHONPATH": os.pathsep.join(path)} | ({DEVICE: device} if device else {})):
            super().ensure_running()
        self._begun = True
        atexit.register(self._end_unserved)

    def ensure_running(self) -> None:
        """Called before each fork: what has ended is not started again, with another environment.

        Raises:
            ProcessLookupError: it has ended.
        """
        if self._begun and self.pid is not None and os.waitpid(self.pid, os.WNOHANG)[0]:
            self._forkserver_pid = None
        if self.pid is None:
            raise ProcessLookupError("the process to fork from has ended")

    def connect_to_new_process(self, fds: Sequence[int]) -> tuple[int, int]:
        """Fork, as soon as all is loaded."""
        found: tuple[int, int] = super().connect_to_new_process(fds)
        self._served = True
        return found

    def problem(self) -> str:
        """Why no core can be forked now; empty: it can, as another process was. Waits until all is loaded."""
        changed = [name for name, value in self._read_once.items() if os.environ.get(name) != value]
        if changed:
            return f"the process to fork it from was begun with another {', '.join(changed)}"
        try:
            self.ensure_running()
            problem = "" if self._proved else self._tried()
        except (OSError, EOFError):
            return "the process to fork it from has ended"
        self._proved = not problem
        return problem

    def _tried(self) -> str:
        """What a process forked for a trial says against a core (``try_out``)."""
        reader, writer = self.context.Pipe(duplex=False)
        with reader:
            with writer:
                trial = self.context.Process(target=try_out, args=(writer,))
                trial.start()
            with suppress(EOFError):  # it has ended without a word
                told: str = reader.recv()
                trial.join()
                return told
        trial.join()
        return f"a process forked for a trial ended with exit code {trial.exitcode}"

    def _end_unserved(self) -> None:
        """One that still loads when this process ends would keep its output open until it has loaded."""
        if not self._served and self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class _Popen(popen_forkserver.Popen):
    def __init__(self, process: CoreProcess) -> None:
        self._reading = threading.Lock()
        super().__init__(process)

    def _launch(self, process: CoreProcess) -> None:
        with ONE_AT_A_TIME:
            usual = forkserver.connect_to_new_process
            forkserver.connect_to_new_process = process.server.connect_to_new_process
            try:
                with script_left_out():
                    super()._launch(process)  # type: ignore[misc]
            finally:
                forkserver.connect_to_new_process = usual

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """The exit code comes by a pipe: one thread can read it."""
        if flag != os.WNOHANG and self.returncode is None:
            wait([self.sentinel])
        with self._reading:
            return super().poll()


class CoreProcess(context.ForkServerProcess):
    """A process forked from the server, with the environment in which it is started."""

    server: Any = None
    environment: dict[str, str]

    @staticmethod
    def _Popen(process: Any) -> Any:
        return _Popen(process)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "server"}
        return own | {"environment": dict(os.environ)}

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self.environment)
        super().run()


class _Context(context.ForkServerContext):
    def __init__(self, server: CoreServer) -> None:
        self._server = server

    def Process(self, *args: Any, **kwargs: Any) -> CoreProcess:  # type: ignore[override]
        process = CoreProcess(*args, **kwargs)
        process.server = self._server
        return process


def answer(to: Connection, call: bytes) -> None:
    """In a forked process: send what the call, by cloudpickle, returns; nothing where it raises."""
    with to, suppress(Exception):
        to.send(importlib.import_module("cloudpickle").loads(call)())


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
