"""A stage of a study: a command of the package, which goes on where it was stopped."""

from __future__ import annotations

import subprocess
import sys

from mathrl.errors import UserError


def mathrl(*words: str) -> None:
    """Run the command to its end.

    Raises:
        UserError: it ended with another status than 0.
    """
    print("mathrl", *words, flush=True)
    status = subprocess.run([sys.executable, "-m", "mathrl", *words], check=False).returncode
    if status:
        raise UserError(f"mathrl {words[0]} ended with status {status}: the same stage goes on from there")
