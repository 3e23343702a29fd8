"""Where compiled layers are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def keep_compiled() -> None:
    """Let torch keep what it compiles in the user's cache, by versions and device.

    Its own place is the folder for temporary files, which is emptied when a machine or a container starts
    again, and then a run's first step compiles for a minute. What the environment says stays; so does torch's
    own place where the user's cache cannot be written.
    """
    if os.environ.get(_VARIABLE):
        return
    above = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    device = "-".join(map(str, torch.cuda.get_device_capability())) if torch.cuda.is_available() else "cpu"
    folder = above / "mathrl" / "compiled" / f"torch-{torch.__version__}-{device}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        os.environ[_VARIABLE] = str(folder)
