"""``--gpus N`` and ``--ranks N``: the command once more on every rank, under torchrun's agent.

This process is the agent of its host. Several hosts start the ranks by themselves:
``torchrun --nnodes … -m mathrl train RECIPE``.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil

from mathrl.errors import UserError

EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USER_ERROR = 130, 143, 2
RESUME = "--resume"
OPTIONS = "MATHRL_LAUNCH_OPTIONS"
"""In the ranks' environment: what the command line was given to start them, such as ``--gpus 2``."""


def launch(words: Sequence[str], num_ranks: int, *, on_gpus: bool, max_restarts: int = 0) -> int:
    """Run ``mathrl`` with these words on every rank; the exit status of the ranks.

    Args:
        words: the command line without the options that ask for ranks.
        on_gpus: a GPU each; else on the CPU, whatever GPUs there are.
        max_restarts: how often a run that lost a rank is started again, from its last checkpoint. What the
            user must put right, and what the user has stopped, is not.

    Raises:
        UserError: not so many GPUs here, or no rank at all.
    """
    if num_ranks < 1:
        raise UserError(f"a run needs one rank at least, and {num_ranks} were asked for")
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        raise UserError("torchrun has started this rank already: leave --gpus and --ranks out")
    import torch  # the agent is torch's: nothing is lost by loading it here

    if on_gpus and (found := torch.cuda.device_count()) < num_ranks:
        raise UserError(f"--gpus {num_ranks}: there are {found} CUDA devices here")
    option = f"--gpus {num_ranks}" if on_gpus else f"--ranks {num_ranks}"
    environment = {OPTIONS: option + (f" --max-restarts {max_restarts}" if max_restarts else "")}
    if not on_gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    words = list(words)
    for attempt in range(max_restarts + 1):
        status = _run_agent(words, num_ranks, environment)
        if status in (0, EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_TERMINATED) or attempt == max_restarts:
            return status
        if RESUME not in words:
            words.append(RESUME)
        if "--overwrite" in words:
            words.remove("--overwrite")
        print(f"mathrl: restart {attempt + 1} of {max_restarts}, from the last checkpoint", file=sys.stderr)
        time.sleep(1.0)
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
        return next((s for s in (EXIT_INTERRUPTED, EXIT_TERMINATED, EXIT_USER_ERROR) if s in statuses), 1)
    except (SignalException, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    finally:
        for left in _children() - before:  # by a second signal, in the agent's own end
            with suppress(psutil.NoSuchProcess):
                left.kill()
    return 0


def _children() -> set[psutil.Process]:
    """All processes that this one has started, theirs too."""
    return set(psutil.Process().children(recursive=True))
