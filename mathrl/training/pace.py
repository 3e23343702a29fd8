"""Which of two ways through a step is the faster one, found out by the first steps of a run."""

from __future__ import annotations

from statistics import median

_WARM_UP, _MEASURED = 2, 6  # steps; each way has half of them, in turns


class Pace:
    """Overlapped steps and those one after the other take turns, then the faster way stays.

    They make the same updates, so trying them costs nothing but time: training and sampling on one GPU slow
    each other down, and what is won depends on model, lengths and machine.
    """

    def __init__(self) -> None:
        self.overlaps = True  # the step under way
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # a token
        self._steps = 0

    def note(self, seconds: float, tokens: float) -> str:
        """A step's seconds and sampled tokens; what was decided, in a sentence, once it is."""
        self._steps += 1
        if self._steps > _WARM_UP + _MEASURED:
            return ""
        if self._steps > _WARM_UP:
            self._seconds[self.overlaps].append(seconds / max(tokens, 1.0))
        self.overlaps = not self.overlaps
        if self._steps < _WARM_UP + _MEASURED:
            return ""
        meanwhile, in_turn = (1e6 * median(self._seconds[way]) for way in (True, False))
        self.overlaps = meanwhile <= in_turn
        chosen = "while it samples" if self.overlaps else "after sampling"
        return (
            f"trains {chosen} from here on: {meanwhile:.3g} µs a token overlapped, {in_turn:.3g} one after "
            "the other"
        )
