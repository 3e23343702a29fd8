"""A reward function that adds nothing, and does what PLANT says in the processes of a run."""

import os
import signal
import time
from pathlib import Path

_calls = 0


def planted(problem, completions, verdicts):
    """``slow``: takes its time. ``kill FILE``, also behind it: kills rank 1 at its fourth group, once."""
    global _calls
    _calls += 1
    slow, _, file = os.environ.get("PLANT", "").partition("kill ")
    if slow:
        time.sleep(0.4)
    if file and os.environ.get("RANK") == "1" and _calls == 4 and not Path(file).exists():
        Path(file).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return [0.0] * len(completions)
