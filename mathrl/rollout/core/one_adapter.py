"""One adapter for all requests: vLLM's runner looks it up for every one of them, twice a step."""

from __future__ import annotations

from collections import Counter
from typing import Any


def remember_adapters(state: Any) -> None:
    """Change vLLM's class ``LoraState``: which adapters are in use is counted as requests come and go.

    Args:
        state: the class, of ``vllm.v1.worker.gpu.lora_utils``. What its methods return stays the same. With
            ``one_for_all`` (dense_adapter.py) it refuses a step of several adapters.
    """
    add, remove, ask = state.add_request, state.remove_request, state.get_activate_loras

    def counts(self: Any) -> Counter[int | None]:
        """Requests by the number of their adapter."""
        found: Counter[int | None] = self.__dict__.setdefault("_counts", Counter())
        return found

    def add_request(self: Any, req_id: str, req_index: int, lora_request: Any) -> None:
        remove_request(self, req_id)
        add(self, req_id, req_index, lora_request)
        number = None if lora_request is None else lora_request.lora_int_id
        self.__dict__.setdefault("_numbers", {})[req_id] = number
        counts(self)[number] += 1

    def remove_request(self: Any, req_id: str) -> None:
        remove(self, req_id)
        numbers = self.__dict__.setdefault("_numbers", {})
        if req_id in numbers:
            number = numbers.pop(req_id)
            counts(self)[number] -= 1
            if not counts(self)[number]:
                del counts(self)[number]

    def get_activate_loras(self: Any, req_ids: list[str]) -> set[Any]:
        used = counts(self)
        if len(used) == 1 and req_ids and None not in used and req_ids[0] in self.lora_requests:
            return {self.lora_requests[req_ids[0]]}
        found: set[Any] = ask(self, req_ids)
        return found

    def make_lora_inputs(self: Any, req_ids: list[str], idx_mapping: Any, num_scheduled_tokens: Any) -> Any:
        numbers = self.lora_ids[idx_mapping]
        if getattr(self, "one_for_all", False) and len(counts(self)) > 1 and len(set(numbers)) > 1:
            raise RuntimeError(f"a step with requests of several adapters: {sorted(set(numbers.tolist()))}")
        by_token = numbers.repeat(num_scheduled_tokens)
        return tuple(numbers.tolist()), tuple(by_token.tolist()), self.get_activate_loras(req_ids)

    state.add_request, state.remove_request = add_request, remove_request
    state.get_activate_loras, state.make_lora_inputs = get_activate_loras, make_lora_inputs
