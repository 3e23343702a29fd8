"""A run in a process of its own that gets a signal at a chosen spot, without waiting for the clock.

A spot is ``rename NAME`` (just before a file or folder takes its place under this name) or
``call module:Class.method N`` (just before the N-th call). The processes are forked from one that has loaded
``warm`` and has computed nothing.
"""

import fcntl
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["warm"])


def fork(work: Callable[..., None], *args: Any) -> BaseProcess:
    """``work`` with these arguments in a process forked from the one that is warm."""
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    process = _FORKS.Process(target=work, args=args)
    with mock.patch.dict(os.environ, PYTHONPATH=path):  # the first one starts the server, which finds warm
        process.start()
    return process


def run_with_signal(
    arguments: Sequence[str], spot: str, signum: signal.Signals, log: Path, timeout_s: float = 120.0
) -> int:
    """Run ``mathrl`` with these arguments; the exit code, negative where a signal ended it."""
    process = fork(_work, list(arguments), spot, int(signum), str(log))
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{spot} was not reached or not left: {log.read_text()}")
    with log.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a worker that it was starting holds its locks until it has begun
    return process.exitcode


def _work(arguments: list[str], spot: str, signum: int, log: str) -> None:
    with open(log, "wb") as file:
        fcntl.flock(os.open(log, os.O_RDONLY), fcntl.LOCK_EX)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from mathrl.cli import main

    _arm(spot, signum)
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)


def _arm(spot: str, signum: int) -> None:
    kind, *words = spot.split(" ")
    if kind == "rename":
        sys.addaudithook(lambda event, args: _at_rename(words[0], signum, event, args))
        return
    path, nth = words
    module, _, name = path.partition(":")
    owner = importlib.import_module(module)
    *classes, method = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, method), itertools.count(1)

    def called(*args, **kwargs):
        if next(calls) == int(nth):
            os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, method, called)


def _at_rename(name: str, signum: int, event: str, args: tuple) -> None:
    if event == "os.rename" and os.path.basename(os.fspath(args[1])) == name:
        os.kill(os.getpid(), signum)
