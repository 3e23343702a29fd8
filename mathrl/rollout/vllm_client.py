"""What the vLLM engine asks of vLLM, whichever of its interfaces is used.

``vllm_core`` speaks to vLLM's core process itself and is fast; it knows the versions that we have tried.
``vllm_public`` uses what vLLM documents for everyone, and so any version.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mathrl.rollout.base import OnTokens
from mathrl.rollout.core.process import END
from mathrl.types import FinishReason, Sampling

Row = tuple[Sequence[int], Sequence[int]]
"""Token ids that are given: a prompt, and those after it whose log-probabilities are wanted."""


class Ask(NamedTuple):
    """Completions wanted of one prompt."""

    prompt: tuple[int, ...]
    seeds: Sequence[int]  # one a completion


class Output(NamedTuple):
    """A finished completion."""

    ask: int  # which Ask
    seed: int  # which of its seeds
    token_ids: tuple[int, ...]
    reason: FinishReason
    logprobs: tuple[float, ...] | None


class CoreEnded(Exception):
    """vLLM's process is gone, or is of no use any more; then it says why."""


class AdapterRefused(Exception):
    """vLLM does not take the adapter; its first line says why."""


class Client(Protocol):
    """A started vLLM. Every call may raise ``CoreEnded``."""

    @property
    def streams(self) -> bool:
        """Whether ``on_outputs`` hears of completions while others are sampled."""
        ...

    @property
    def processes(self) -> Sequence[Any]:
        """multiprocessing's, of vLLM's core."""
        ...

    def sample(
        self,
        asks: Sequence[Ask],
        sampling: Sampling,
        eos_ids: Sequence[int],
        on_outputs: Callable[[list[Output]], None],
        on_tokens: OnTokens | None = None,
        at_once: int = 0,
        rows: Sequence[Row] = (),
    ) -> list[list[float]]:
        """Sample all that is asked for; nothing is left under way when this ends, by an exception or not.

        Where vLLM's core is asked directly ``on_tokens`` is called, and at most ``at_once`` completions (0:
        all) are under way: another one begins when one has finished.

        Returns:
            The scores of ``rows``, which are computed beside the completions.
        """
        ...

    def score(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probabilities at temperature 1 of each row's second part after its first, token by token."""
        ...

    def set_adapter(self, name: str, number: int, folder: Path | None) -> None:
        """Compute with the adapter in ``folder`` from now on, and with no other; None: with none.

        Raises:
            AdapterRefused: it is no adapter of this model, or too large.
        """
        ...

    def reload_weights(self, folder: Path) -> None:
        """Take the model's weights from this folder."""
        ...

    def reset_prefix_cache(self) -> bool:
        """Forget the keys and values of all prompts; false where it could not be done yet."""
        ...

    def close(self) -> None:
        """End vLLM's processes."""
        ...


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def ask_to_end(processes: Sequence[Any]) -> None:
    """Tell cores that ignore other signals to end."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, END)


def end_processes(processes: Sequence[Any], timeout_s: float = 10.0) -> None:
    """Wait for processes that have been told to end; kill those that do not."""
    for process in processes:
        process.join(timeout=timeout_s)
        if process.is_alive():
            process.kill()
            process.join()


def exit_codes(processes: Sequence[Any]) -> str:
    """Of processes that are ending; the system tells them a moment after it has closed their pipes."""
    deadline = time.monotonic() + 2.0
    while any(process.exitcode is None for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return "exit code " + ", ".join(str(process.exitcode) for process in processes)
