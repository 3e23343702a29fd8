"""The process group of a run: made once a process, with one channel for tensors and one for waiting.

On GPUs tensors go through NCCL, whose calls must not wait for anyone: it takes a rank that comes ten minutes
late for a dead one. All waiting is done before, over gloo on the CPU (agreement.py), where it may last as
long as a stage of another rank does; who has ended or fallen silent meanwhile is the lookout's business.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from mathrl.distributed.environment import Place, settle_in
from mathrl.errors import UserError

if TYPE_CHECKING:  # one process, which may have no tensor at all, does without torch here
    import torch.distributed as dist

_WAIT = timedelta(days=30)  # over gloo; the lookout notices what has gone wrong


@dataclass
class Ranks:
    """What this process knows of its ranks."""

    place: Place
    waiting: dist.ProcessGroup  # gloo: for tensors on the CPU, objects and agreements
    tensors: dist.ProcessGroup | None  # NCCL: for tensors on GPUs; None on the CPU
    local_work: str = ""  # what ``together`` is around at the moment: nothing in it may ask other ranks
    raise_if_stopped: Callable[[], None] = lambda: None  # run/stop.py: whoever is told to stop, all do
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # since last taken
    agreements: list[float] = field(default_factory=list)  # seconds of each, since last taken


_group: Ranks | None = None  # of this process, as torch's own process group is
_is_alone = False


def current() -> Ranks | None:
    """The group, or None in a run of one process and inside ``alone``."""
    return None if _is_alone else _group


def joined() -> Ranks | None:
    """The group, also inside ``alone``."""
    return _group


def start() -> Place:
    """Join the ranks that the environment tells of; one process needs nothing.

    Raises:
        UserError: some ranks have a GPU and others none.
    """
    global _group
    own = settle_in()
    if own.world == 1 or _group is not None:
        return own
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_WAIT)
    with_gpu: list[bool] = [False] * own.world
    dist.all_gather_object(with_gpu, torch.cuda.is_available())
    tensors = None
    if any(with_gpu):
        if not all(with_gpu):
            raise UserError(
                f"rank {with_gpu.index(False)} finds no GPU on its host and others do: start as many ranks a "
                "host as it has GPUs"
            )
        device = torch.device("cuda", 0)  # its only one
        torch.cuda.set_device(device)
        tensors = dist.new_group(backend="nccl", device_id=device)
    assert dist.group.WORLD is not None
    _group = Ranks(own, dist.group.WORLD, tensors)
    return own


def stop() -> None:
    """Leave the group; all ranks do at the same time."""
    global _group
    if _group is not None:
        import torch.distributed as dist

        _group = None
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this rank computes for itself: sums and agreements see no others.

    For work that not all ranks do, or whose result is nobody else's.
    """
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before
