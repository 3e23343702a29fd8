"""What our scheduler does otherwise than vLLM's: less Python a token, one message a completion.

With hundreds of completions at once the core's own bookkeeping, a few Python calls a token each, takes longer
than the model's step on the GPU. scheduler.py puts this mixin before vLLM's own.
"""

from __future__ import annotations

import gc
import importlib
import time
from typing import Any

import numpy as np

from mathrl.rollout.core.many_requests import take_many
from mathrl.rollout.core.one_adapter import remember_adapters
from mathrl.rollout.core.process import belong_to_trainer
from mathrl.rollout.core.swap_adapter import take_swaps

UNDER_WAY = "under way"
"""The request of an output whose one token is a number: the tokens so far of unfinished completions."""

_TELL_S = 0.5


class FinishedOnly:
    """Scheduler mixin: a completion leaves the core's process once, when it is finished.

    The core otherwise sends one message a token and completion, whose making and unpacking takes as long as
    the model's own step. And it asks for cache blocks at every token, where one in sixteen needs one.
    """

    requests: dict[str, Any]  # of vLLM's scheduler
    kv_cache_manager: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        belong_to_trainer()
        gc.set_threshold(50_000, 20, 100)  # a step makes thousands of short-lived objects and no cycles
        _leave_adapters_unpinned()
        _remember_adapters()
        take_many()
        take_swaps()
        self._told = time.monotonic()
        self._tokens: dict[str, list[int]] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._room: dict[str, int] = {}  # request -> tokens that its cache blocks hold
        self._cached: dict[str, int] = {}  # request -> whole blocks that the prefix cache knows
        self._block_tokens = self._spare_blocks()  # 0: blocks are left to vLLM

    def update_from_output(self, *args: Any, **kwargs: Any) -> dict[int, Any]:
        messages: dict[int, Any] = super().update_from_output(*args, **kwargs)  # type: ignore[misc]
        for message in messages.values():
            finished = [output for output in message.outputs if self._finish(output)]
            message.outputs = finished
        if time.monotonic() - self._told > _TELL_S and (count := self._num_tokens_under_way()):
            self._told = time.monotonic()
            client = next(iter(self.requests.values())).client_index if self.requests else 0
            message = messages.setdefault(client, self._message())
            message.outputs.append(self._output(UNDER_WAY, [count]))
        if len(self._tokens) > len(self.requests) or len(self._room) > 2 * len(self.requests) + 64:
            self._forget()
        return {client: message for client, message in messages.items() if _says_something(message)}

    def _finish(self, output: Any) -> bool:
        """Keep the tokens of an unfinished output; give a finished one all of its tokens."""
        tokens = self._tokens.setdefault(output.request_id, [])
        tokens += output.new_token_ids
        if output.new_logprobs is not None:
            self._logprobs.setdefault(output.request_id, []).append(output.new_logprobs)
        if output.finish_reason is None:
            return False
        output.new_token_ids = self._tokens.pop(output.request_id)
        parts = self._logprobs.pop(output.request_id, None)
        if parts:
            output.new_logprobs = type(parts[0])(
                np.concatenate([part.logprob_token_ids for part in parts]),
                np.concatenate([part.logprobs for part in parts]),
                np.concatenate([part.sampled_token_ranks for part in parts]),
            )
        return True

    def _num_tokens_under_way(self) -> int:
        """Tokens that have been sampled and not been sent."""
        return sum(len(tokens) for tokens in self._tokens.values())

    def _output(self, name: str, tokens: list[int]) -> Any:
        """vLLM's output of a request: of the class that knows vLLM."""
        raise NotImplementedError

    def _message(self) -> Any:
        """vLLM's message with no outputs, likewise."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Cancelled requests never finish, and blocks of finished ones are given back."""
        for kept in (self._tokens, self._logprobs, self._room, self._cached):
            for key in kept.keys() - self.requests.keys():
                del kept[key]

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._room.pop(request.request_id, None)  # its blocks are taken away
        self._cached.pop(request.request_id, None)
        return super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _spare_blocks(self) -> int:
        """Ask vLLM's cache manager for blocks, and tell it of full ones, at block boundaries alone.

        Between them its answer is known: nothing new. Left as it is for models with several kinds of cache
        (sliding windows give blocks back at any token). Returns the tokens of a block; 0 where it is left.
        """
        manager = self.kv_cache_manager
        kinds: Any = getattr(getattr(manager, "coordinator", None), "single_type_managers", ())
        if len(kinds) != 1 or type(kinds[0]).__name__ != "FullAttentionManager":
            return 0
        size, nothing = kinds[0].block_size, manager.empty_kv_cache_blocks
        room, cached = self._room, self._cached
        allocate, cache, blocks = manager.allocate_slots, manager.cache_blocks, kinds[0].req_to_blocks

        def allocate_slots(request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
            key = request.request_id
            # what has been granted room is running: it brings no computed blocks and has no other needs
            if request.num_computed_tokens + num_new_tokens <= room.get(key, 0):
                return nothing
            granted = allocate(request, num_new_tokens, *args, **kwargs)
            if granted is not None and not kwargs.get("num_lookahead_tokens"):
                room[key] = len(blocks[key]) * size
            return granted

        def cache_blocks(request: Any, num_computed_tokens: int) -> None:
            whole = num_computed_tokens // size
            if cached.get(request.request_id) != whole:
                cached[request.request_id] = whole
                cache(request, num_computed_tokens)

        manager.allocate_slots, manager.cache_blocks = allocate_slots, cache_blocks
        return int(size)


def _leave_adapters_unpinned() -> None:
    """Pinning hundreds of small tensors takes a second, copying them unpinned takes milliseconds."""
    for name in ("lora_model", "lora_weights", "model_manager", "models"):
        try:
            module: Any = importlib.import_module(f"vllm.lora.{name}")
        except ImportError:
            continue
        if hasattr(module, "PIN_MEMORY"):
            module.PIN_MEMORY = False
        if hasattr(module, "is_pin_memory_available"):
            module.is_pin_memory_available = lambda: False


def _remember_adapters() -> None:
    try:
        state: Any = importlib.import_module("vllm.v1.worker.gpu.lora_utils").LoraState
    except (ImportError, AttributeError):
        return
    if not hasattr(state, "remembers"):  # one process may make several schedulers
        state.remembers = True
        remember_adapters(state)


def _says_something(message: Any) -> bool:
    return bool(
        message.outputs or message.scheduler_stats or message.finished_requests or message.utility_output
    )
