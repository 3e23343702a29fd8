"""Whether all ranks see the folder that rank 0 writes to."""

from __future__ import annotations

import platform
import time
import uuid
from pathlib import Path

from mathrl.distributed.agreement import on_rank_0, together
from mathrl.distributed.collectives import gather, world_size
from mathrl.errors import UserError, cannot_write

_PATIENCE_S = 15.0  # a network file system may take a while to show a new file elsewhere


def check_shared(folder: Path) -> None:
    """Write a file on rank 0 and look for it on the others.

    Raises:
        UserError: on all ranks; one of them does not see it.
    """
    if world_size() == 1:
        return
    name = gather(f".seen-{uuid.uuid4().hex}")[0]
    on_rank_0("writing the run folder", lambda: _write(folder / name))
    try:
        with together("looking at the run folder"):
            deadline = time.monotonic() + _PATIENCE_S
            while not (folder / name).is_file():
                if time.monotonic() > deadline:
                    raise UserError(
                        f"{folder.absolute()} on {platform.node()} is not the folder that rank 0 writes to: "
                        "put run.output_dir on a file system that all hosts share"
                    )
                time.sleep(0.05)
    finally:
        (folder / name).unlink(missing_ok=True)


def _write(file: Path) -> None:
    try:
        file.touch()
    except OSError as error:
        raise UserError(f"{file.parent} cannot be written: {cannot_write(error)}") from error
