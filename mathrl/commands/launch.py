"""``--gpus N`` and ``--ranks N``: the command once more on every rank, under torchrun's agent.

This process is the agent of its host. Several hosts start the ranks by themselves:
``torchrun --nnodes … -m mathrl train RECIPE``.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import psutil
from cyclopts import Parameter

from mathrl.distributed.environment import place
from mathrl.errors import UserError

_FINAL = (130, 143, 2)  # exit statuses after which no restart helps: stopped twice, the user's to put right
OPTIONS = "MATHRL_LAUNCH_OPTIONS"
"""In the ranks' environment: what the command line was given to start them, such as ``--gpus 2``."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """On how many ranks a command runs."""

    gpus: Annotated[
        int, Parameter(help="train on N GPUs of this host together, a process each", show_default=False)
    ] = 0
    ranks: Annotated[int, Parameter(help="the same with N processes on the CPU", show_default=False)] = 0
    max_restarts: Annotated[
        int,
        Parameter(
            help="with --gpus or --ranks: when a process is lost, go on from the last checkpoint, so often",
            show_default=False,
        ),
    ] = 0

    @property
    def wanted(self) -> bool:
        """Whether this process is to start the ranks, and not to do the work itself.

        Raises:
            UserError: numbers that mean nothing.
        """
        if min(self.gpus, self.ranks, self.max_restarts) < 0:
            raise UserError("--gpus, --ranks and --max-restarts count: they cannot be below 0")
        if self.gpus and self.ranks:
            raise UserError("--gpus and --ranks exclude each other: ranks are on GPUs or on the CPU")
        if self.max_restarts and not (self.gpus or self.ranks):
            raise UserError("--max-restarts needs --gpus N or --ranks N, and N may be 1")
        if (self.gpus or self.ranks) and place().world > 1:
            raise UserError("torchrun has started the ranks already: leave --gpus and --ranks out")
        return bool(self.gpus or self.ranks)

    def __str__(self) -> str:
        """The options as they are typed."""
        words = [f"--gpus {self.gpus}" if self.gpus else f"--ranks {self.ranks}"]
        return " ".join(words + ([f"--max-restarts {self.max_restarts}"] if self.max_restarts else []))


ALONE = LaunchOptions()


def launch(words: Sequence[str], options: LaunchOptions) -> int:
    """Run ``mathrl`` with these words on every rank; the exit status of the ranks.

    A run that has lost a rank is started again ``max_restarts`` times at most, from its last checkpoint; what
    the user must put right, and what was stopped, is not.

    Args:
        words: the command line without the launch options.

    Raises:
        UserError: there are not so many GPUs here.
    """
    import torch  # the agent is torch's: nothing is lost by loading it here

    if options.gpus and (found := torch.cuda.device_count()) < options.gpus:
        raise UserError(f"--gpus {options.gpus}: there are {found} CUDA devices here")
    environment = {OPTIONS: str(options)} | ({} if options.gpus else {"CUDA_VISIBLE_DEVICES": ""})
    words, num_ranks = list(words), options.gpus or options.ranks
    for attempt in range(options.max_restarts + 1):
        status = _run_agent(words, num_ranks, environment)
        if status in (0, *_FINAL) or attempt == options.max_restarts:
            return status
        words = [word for word in words if word != "--overwrite"]
        if words[0] != "eval" and "--resume" not in words:  # an evaluation goes on unasked
            words.append("--resume")
        print(
            f"mathrl: restart {attempt + 1} of {options.max_restarts}, from the last checkpoint",
            file=sys.stderr,
        )
    raise AssertionError("unreachable")


def _run_agent(words: Sequence[str], num_ranks: int, environment: Mapping[str, str]) -> int:
    """One start of all ranks, by a new agent with a new store; the largest exit status of a rank."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the ranks say what is to be said
    os.environ.update(environment)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: ranks share the cores
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # torch would keep the store, in which the dead ranks' addresses stand
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
    )
    before = _children()
    try:
        elastic_launch(config, sys.executable)("-m", "mathrl", *words)
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        return next((status for status in _FINAL if status in statuses), 1)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    except KeyboardInterrupt:
        return 130
    finally:
        for left in _children() - before:  # by a second signal, in the agent's own end
            with suppress(psutil.NoSuchProcess):
                left.kill()
    return 0


def _children() -> set[psutil.Process]:
    """All processes that this one has started, theirs too."""
    return set(psutil.Process().children(recursive=True))
