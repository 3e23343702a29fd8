"""What torchrun tells a process of its place, read and acted upon before torch is loaded."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mathrl.errors import UserError

_OF_THE_LAUNCHER = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_PREFIXES_OF_THE_LAUNCHER = ("TORCHELASTIC_", "GROUP_", "ROLE_")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process stands among the processes of its run."""

    rank: int = 0  # 0 … world - 1; rank 0 writes the run folder and the console
    world: int = 1
    local_rank: int = 0  # among those of its host
    local_world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """This process's place; rank 0 of 1 where nothing says otherwise.

    Raises:
        UserError: a rank without a number of ranks, or numbers that cannot be.
    """
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Place()
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local = int(environment.get("LOCAL_RANK", rank))
        local_world = int(environment.get("LOCAL_WORLD_SIZE", world))
    except ValueError as error:
        raise UserError(
            f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them: {error}"
        ) from None
    if not (0 <= rank < world and 0 <= local < max(local_world, 1) <= world):
        raise UserError(
            f"the environment says rank {rank} of {world}, {local} of {local_world} on this host: "
            "start the ranks with --gpus N or with torchrun"
        )
    return Place(rank, world, local, local_world)


_settled = False


def settle_in() -> Place:
    """Let this rank see its own GPU alone, and be silent where it is not rank 0; does nothing a second time.

    The processes that it starts, the engine's among them, see that GPU alone as well. Call it before CUDA
    starts, which reads the variable once: every ``cuda`` of the program is then the rank's own, in all
    threads. NCCL finds the others' GPUs by their bus addresses all the same.

    Raises:
        UserError: the host shows fewer GPUs than it has ranks.
    """
    global _settled
    own = place()
    if own.world == 1 or _settled:
        return own
    _settled = True
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost rank is told of in a sentence
    _keep_to_own_gpu(own)
    if not own.is_main:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    return own


def _keep_to_own_gpu(own: Place) -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible == "":
        return
    devices = [str(n) for n in range(own.local_world)] if visible is None else visible.split(",")
    if own.local_rank >= len(devices):
        raise UserError(
            f"rank {own.rank} is number {own.local_rank + 1} of {own.local_world} on its host, which shows "
            f"{len(devices)} GPUs (CUDA_VISIBLE_DEVICES={visible}): start as many ranks as there are GPUs"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[own.local_rank].strip()


@contextmanager
def hidden_from_children() -> Iterator[None]:
    """Inside, the environment knows nothing of the ranks.

    A child that makes a process group of its own (a vLLM core) would else take it for a part of this one and
    wait for a server that is not there.
    """
    names = [n for n in os.environ if n in _OF_THE_LAUNCHER or n.startswith(_PREFIXES_OF_THE_LAUNCHER)]
    before = {name: os.environ.pop(name) for name in names}
    try:
        yield
    finally:
        os.environ.update(before)


def workers_a_rank(wanted: int) -> int:
    """Helper processes of this rank: as many as wanted, within its share of the host's cores but one."""
    own = place()
    if own.local_world == 1:
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(wanted, cores // own.local_world - 1))
