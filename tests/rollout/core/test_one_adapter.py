"""Adapters in use, counted, are those that asking every request finds."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from mathrl.rollout.core.one_adapter import remember_adapters


class Request(SimpleNamespace):
    def __hash__(self):
        return self.lora_int_id

    def __eq__(self, other):
        return self.lora_int_id == other.lora_int_id


class LoraState:
    """As vLLM's, in short."""

    def __init__(self, rows):
        self.lora_ids, self.lora_requests, self.asked = np.zeros(rows, np.int32), {}, 0

    def add_request(self, req_id, req_index, lora_request):
        if lora_request is not None:
            self.lora_requests[req_id] = lora_request
        self.lora_ids[req_index] = lora_request.lora_int_id if lora_request is not None else 0

    def remove_request(self, req_id):
        self.lora_requests.pop(req_id, None)

    def get_activate_loras(self, req_ids):
        self.asked += 1
        return {self.lora_requests[r] for r in req_ids if r in self.lora_requests}

    def make_lora_inputs(self, req_ids, idx_mapping, num_scheduled_tokens):
        ids = self.lora_ids[idx_mapping]
        return tuple(ids), tuple(ids.repeat(num_scheduled_tokens)), self.get_activate_loras(req_ids)


def test_what_is_counted_is_what_asking_finds():
    counting = type("Counting", (LoraState,), {})
    remember_adapters(counting)
    rng = random.Random(0)
    plain, counted = LoraState(20), counting(20)
    held = {}
    for _ in range(2000):
        row = rng.randrange(20)
        if row in held and rng.random() < 0.5:
            for state in (plain, counted):
                state.remove_request(held[row])
            del held[row]
        else:
            number = rng.choice((1, 1, 1, 1, 1, 1, 2, None)) if rng.random() < 0.2 else 1
            name = held.setdefault(row, f"{row}")  # a name may come again, with another adapter
            plain.remove_request(name)
            for state in (plain, counted):
                state.add_request(name, row, None if number is None else Request(lora_int_id=number))
        some = rng.sample(sorted(held), rng.randrange(len(held) + 1))
        asked = ([held[r] for r in some], np.array(some, np.int64), np.full(len(some), 2))
        assert plain.make_lora_inputs(*asked) == counted.make_lora_inputs(*asked)
    assert 0 < counted.asked < 0.6 * plain.asked


def test_where_one_adapter_serves_all_a_step_of_several_is_refused():
    counting = type("Counting", (LoraState,), {"one_for_all": True})
    remember_adapters(counting)
    state = counting(4)
    for row, number in enumerate((1, 1, None)):
        state.add_request(f"{row}", row, None if number is None else Request(lora_int_id=number))
    rows = np.array([0, 1], np.int64)
    assert state.make_lora_inputs(["0", "1"], rows, np.ones(2, int))[:2] == ((1, 1), (1, 1))
    with pytest.raises(RuntimeError, match=r"several adapters: \[0, 1\]"):
        state.make_lora_inputs(["0", "2"], np.array([0, 2], np.int64), np.ones(2, int))
