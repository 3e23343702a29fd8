"""Ranks of one run, forked from a process that has torch loaded, with something planted in one of them.

A plant is a rank, a spot ``module:Class.method N`` (just before the N-th call there) and what happens: a
function of this module that is given the call's arguments, or a signal.
"""

import importlib
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from killed_run import fork
from launched import MARK, free_port

from mathrl.training.sentinel import SyncError

TAG = f"forked by {os.getpid()}"


@dataclass(frozen=True)
class Plant:
    rank: int
    spot: str
    happens: Callable[..., None] | signal.Signals
    everywhere: bool = False  # on all ranks, not on this one alone


def fail(*args: Any) -> None:
    raise ZeroDivisionError("planted")


def make_not_finite(trainer: Any, batch: Any, *rest: Any) -> None:
    batch.advantages[0] = torch.nan


def fill_the_disk(tracker: Any, *rest: Any) -> None:
    tracker.metrics_file.unlink()
    tracker.metrics_file.symlink_to("/dev/full")
    (tracker.metrics_file.parent / "checkpoints").symlink_to("/dev/full")


def move_the_weights(trainer: Any, *rest: Any) -> None:
    with torch.no_grad():
        trainer.policy.trainable_parameters()[0].add_(0.01)


def not_arrived(sentinel: Any) -> None:
    raise SyncError("only 0% ± 1% of the policy's move has arrived at the engine")


def place_of(rank: int, world: int, port: int) -> dict[str, Any]:
    """What torchrun would tell this rank; rank 0 keeps the store of all."""
    return {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, MARK: TAG,
    }  # fmt: skip


def run_ranks(world: int, work: Callable[..., None], *args: Any, timeout_s: float = 240.0) -> None:
    """``work`` with these arguments on every rank, until all have ended well."""
    port, deadline = free_port(), time.monotonic() + timeout_s
    processes = [fork(_run, place_of(rank, world, port), work, args) for rank in range(world)]
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * world, codes


def _run(place: dict[str, Any], work: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    work(*args)


class ForkedRanks:
    """``mathrl`` with these arguments on every rank, in the folder ``at``; what each says goes to a file.

    ``more`` goes to the ranks' environment.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        at: Path,
        *plants: Plant,
        world: int = 2,
        own_folders: bool = False,
        **more: str,
    ) -> None:
        self.logs = [at / f"rank{rank}.log" for rank in range(world)]
        port = free_port()
        self.begin = time.monotonic()
        self.processes = []
        for rank in range(world):
            folder = at / f"home{rank if own_folders else 0}"
            folder.mkdir(exist_ok=True)
            place = place_of(rank, world, port) | more
            own = [plant for plant in plants if plant.everywhere or plant.rank == rank]
            self.processes.append(fork(_work, list(arguments), own, place, folder, self.logs[rank]))

    @property
    def at_work(self) -> bool:
        return all(process.exitcode is None for process in self.processes)

    def wait(self, timeout_s: float = 180.0) -> list[int]:
        """Exit codes by rank; whoever has not ended by then is killed, and it is a failure."""
        late = []
        for rank, process in enumerate(self.processes):
            process.join(max(0.1, self.begin + timeout_s - time.monotonic()))
            if process.exitcode is None:
                late.append(rank)
                process.kill()
                process.join()
        assert not late, f"ranks {late} did not end: {self.told}"
        return [process.exitcode for process in self.processes]

    @property
    def told(self) -> str:
        """All that was said, by rank."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self.logs)

    @property
    def sentences(self) -> list[str]:
        """What was said as the reason of the end."""
        return re.findall(r"^mathrl: (.*)$", self.told, re.MULTILINE)


def _work(arguments: list[str], plants: list[Plant], place: dict[str, Any], folder: Path, log: Path) -> None:
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    from mathrl.cli import main

    for plant in plants:
        _arm(plant)
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)


def _arm(plant: Plant) -> None:
    path, nth = plant.spot.split(" ")
    module, _, name = path.partition(":")
    owner = importlib.import_module(module)
    *classes, method = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    original, calls = getattr(owner, method), itertools.count(1)

    def called(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == int(nth):
            if isinstance(plant.happens, signal.Signals):
                os.kill(os.getpid(), plant.happens)
            else:
                plant.happens(*args)
        return original(*args, **kwargs)

    setattr(owner, method, called)
