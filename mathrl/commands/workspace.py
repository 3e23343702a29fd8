"""What the stages of a run share from its first to its last."""

from __future__ import annotations

from dataclasses import dataclass

from mathrl.commands.prepare import PreparedRun
from mathrl.run.progress import Progress
from mathrl.run.stop import StopSignals
from mathrl.run.tally import Tally


@dataclass(frozen=True)
class Workspace:
    """The run, and what is shown, heard and counted while it works."""

    run: PreparedRun
    progress: Progress
    stop: StopSignals
    tally: Tally
