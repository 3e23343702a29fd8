"""A run in a process of its own that gets a signal at a chosen spot, without waiting for the clock.

A spot is ``rename NAME`` (just before a file or folder takes its place under this name) or
``call module:Class.method N`` (just before the N-th call). The processes are forked from one that has torch
loaded already and has computed nothing.
"""

import importlib
import itertools
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["mathrl.commands.train"])


def run_with_signal(
    arguments: Sequence[str], spot: str, signum: signal.Signals, log: Path, timeout_s: float = 120.0
) -> int:
    """Run ``mathrl`` with these arguments; the exit code, negative where a signal ended it."""
    process = _FORKS.Process(target=_work, args=(list(arguments), spot, int(signum), str(log)))
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{spot} was not reached or not left: {log.read_text()}")
    return process.exitcode


def _work(arguments: list[str], spot: str, signum: int, log: str) -> None:
    with open(log, "wb") as file:
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
