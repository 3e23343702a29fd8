"""The schedulers of vLLM's core: its own, with the mixins of this room before them."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import LogprobsLists

from mathrl.rollout.core.finished_only import FinishedOnly
from mathrl.rollout.core.given_tokens import GivenTokens
from mathrl.rollout.core.steady_decoding import SteadyDecoding


class Answers:
    """vLLM's own objects, for the scheduler mixins."""

    def _output(self, name: str, tokens: list[int]) -> Any:
        return EngineCoreOutput(name, tokens)

    def _message(self) -> Any:
        return EngineCoreOutputs()

    def _lists(self, *columns: Any) -> Any:
        return LogprobsLists(*columns)


class FinishedOnlyScheduler(GivenTokens, Answers, SteadyDecoding, FinishedOnly, Scheduler):
    """vLLM's scheduler, for devices where steps are not prepared ahead."""


class FinishedOnlyAsyncScheduler(GivenTokens, Answers, SteadyDecoding, FinishedOnly, AsyncScheduler):
    """vLLM's scheduler that prepares a step while the one before it runs."""
