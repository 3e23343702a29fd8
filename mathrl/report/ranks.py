"""What each rank of a run spent its steps on, and who waited for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mathrl.distributed.timing import CALLS
from mathrl.report.pages import percent
from mathrl.report.run_record import RunRecord

_NOTE = (
    "Mean seconds a step. The first columns are a rank's own work; reduce: sums of gradients and totals; "
    "gather: groups and numbers told to all; agree: whether all is well; wait: there, for the last rank."
)


def rank_table(run: RunRecord) -> dict[str, Any] | None:
    """A row a rank, and what to read in it; None for a run of one process.

    The first step is left out where there are others: it starts what the others find started. A run that went
    on with other ranks is told of by those that it ended with.
    """
    if not run.rank_rows:
        return None
    steps = [ranks for ranks in run.rank_rows if len(ranks) == len(run.rank_rows[-1])]
    steps = steps[1:] or steps
    phases = dict.fromkeys(phase for ranks in steps for seconds in ranks for phase in seconds)
    work = [phase for phase in phases if phase not in CALLS]
    order = [*work, *(call for call in CALLS if call in phases)]
    means = [
        {phase: fmean(ranks[r].get(phase, 0.0) for ranks in steps) for phase in order}
        for r in range(len(steps[0]))
    ]
    rows = [
        [str(r), *(f"{mean[phase]:.3f}" for phase in order), f"{sum(mean.values()):.3f}"]
        for r, mean in enumerate(means)
    ]
    return {"header": ["rank", *order, "step"], "rows": rows, "told": _told(means, work), "note": _NOTE}


def _told(means: Sequence[Mapping[str, float]], work: Sequence[str]) -> str:
    busy = [sum(mean[phase] for phase in work) for mean in means]
    step = fmean(sum(mean.values()) for mean in means)
    slowest = max(range(len(busy)), key=lambda r: busy[r])
    waited = fmean(mean.get("wait", 0.0) for mean in means)
    sentence = f"{len(means)} ranks worked {percent(fmean(busy) / step)} of a step's {step:.2f} s themselves"
    return f"{sentence} and waited {percent(waited / step)} of it, mostly for rank {slowest}."
