"""The scheduler's savings, on a stand-in for vLLM's scheduler that counts what it is asked."""

from types import SimpleNamespace

import pytest

from mathrl.rollout.core import finished_only
from mathrl.rollout.core.finished_only import UNDER_WAY, FinishedOnly

SIZE = 4  # tokens of a block


class FullAttentionManager:
    def __init__(self) -> None:
        self.block_size, self.req_to_blocks = SIZE, {}


class Manager:
    """As vLLM's cache manager: a request holds the blocks that its tokens so far need."""

    def __init__(self, kind, free: int) -> None:
        self.coordinator = SimpleNamespace(single_type_managers=(kind,))
        self.empty_kv_cache_blocks = "none"
        self.kind, self.free, self.asked, self.cached = kind, free, [], []

    def allocate_slots(self, request, num_new_tokens, num_lookahead_tokens=0):
        self.asked.append((request.request_id, request.num_computed_tokens + num_new_tokens))
        held = self.kind.req_to_blocks.setdefault(request.request_id, [])
        wanted = -(-(request.num_computed_tokens + num_new_tokens) // SIZE) - len(held)
        if wanted > self.free:
            return None
        self.free -= wanted
        held += ["block"] * wanted
        return ["block"] * wanted

    def cache_blocks(self, request, num_computed_tokens):
        self.cached.append(num_computed_tokens)


class Base:
    def __init__(self, manager) -> None:
        self.kv_cache_manager, self.requests, self.messages = manager, {}, {}

    def _preempt_request(self, request, timestamp):
        blocks = self.kv_cache_manager.kind.req_to_blocks.pop(request.request_id)
        self.kv_cache_manager.free += len(blocks)
        request.num_computed_tokens = 0

    def update_from_output(self):
        return self.messages


class Scheduler(FinishedOnly, Base):
    def _output(self, name, tokens):
        return output(name, tokens)

    def _message(self):
        return message([])


def make(free: int = 100, kind: type = FullAttentionManager) -> Scheduler:
    return Scheduler(Manager(kind(), free))


def request(name: str, tokens: int = 0) -> SimpleNamespace:
    return SimpleNamespace(request_id=name, num_computed_tokens=tokens)


def grow(scheduler: Scheduler, r: SimpleNamespace, new: int) -> object:
    granted = scheduler.kv_cache_manager.allocate_slots(r, new, num_lookahead_tokens=0)
    if granted is not None:
        r.num_computed_tokens += new
    return granted


def test_blocks_are_asked_for_at_their_boundaries_alone():
    scheduler = make()
    manager, r = scheduler.kv_cache_manager, request("a")
    granted = [grow(scheduler, r, n) for n in (6, *[1] * 10)]
    assert [total for _, total in manager.asked] == [6, 9, 13]
    assert granted == [
        ["block"] * 2,
        "none",
        "none",
        ["block"],
        "none",
        "none",
        "none",
        ["block"],
        *["none"] * 3,
    ]
    assert len(manager.kind.req_to_blocks["a"]) * SIZE >= r.num_computed_tokens


def test_a_request_that_lost_its_blocks_asks_again():
    scheduler = make()
    r = request("a")
    grow(scheduler, r, 7)
    scheduler._preempt_request(r, 0.0)
    assert grow(scheduler, r, 8) == ["block"] * 2
    assert scheduler.kv_cache_manager.free == 98


def test_a_refusal_is_passed_on_and_not_remembered():
    scheduler = make(free=1)
    first, second = request("a"), request("b")
    assert grow(scheduler, first, 4) == ["block"]
    assert grow(scheduler, second, 1) is None
    assert grow(scheduler, first, 1) is None
    scheduler.kv_cache_manager.free = 1
    assert grow(scheduler, second, 1) == ["block"]


def test_caches_that_give_blocks_back_are_left_alone():
    class SlidingWindowManager(FullAttentionManager):
        pass

    scheduler = make(kind=SlidingWindowManager)
    r = request("a")
    for new in (6, 1, 1):
        grow(scheduler, r, new)
    assert len(scheduler.kv_cache_manager.asked) == 3


def test_the_prefix_cache_hears_of_whole_blocks_once():
    scheduler = make()
    r = request("a")
    for tokens in range(1, 10):
        scheduler.kv_cache_manager.cache_blocks(r, tokens)
    assert scheduler.kv_cache_manager.cached == [1, 4, 8]


def output(name: str, tokens: list[int], reason: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(request_id=name, new_token_ids=tokens, new_logprobs=None, finish_reason=reason)


def message(outputs: list[SimpleNamespace]) -> SimpleNamespace:
    return SimpleNamespace(outputs=outputs, scheduler_stats=None, finished_requests=None, utility_output=None)


def test_a_completion_leaves_when_it_is_finished_with_all_its_tokens():
    scheduler = make()
    scheduler.requests = {"a": 0, "b": 0}
    seen = []
    for outputs in (
        [output("a", [1]), output("b", [7])],
        [output("a", [2]), output("b", [8], "stop")],
        [output("a", [3], "length")],
    ):
        seen.append(sent(scheduler, outputs))
    assert seen == [[], [("b", [7, 8])], [("a", [1, 2, 3])]]


def sent(scheduler: Scheduler, outputs: list[SimpleNamespace]) -> list[tuple[str, list[int]]]:
    """What leaves the core's process of a step's outputs."""
    scheduler.messages = {0: message(outputs)}
    return [
        (o.request_id, o.new_token_ids) for m in scheduler.update_from_output().values() for o in m.outputs
    ]


def test_now_and_then_one_message_says_how_many_tokens_are_under_way(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(finished_only.time, "monotonic", lambda: now[0])
    scheduler = make()
    scheduler.requests = dict.fromkeys("ab", SimpleNamespace(client_index=0))
    assert sent(scheduler, [output("a", [1]), output("b", [7])]) == []
    now[0] += 1.0
    assert sent(scheduler, [output("a", [2]), output("b", [8])]) == [(UNDER_WAY, [4])]
    assert sent(scheduler, [output("a", [3]), output("b", [9])]) == []
    now[0] += 1.0
    assert sent(scheduler, [output("a", [4], "stop"), output("b", [5])]) == [
        ("a", [1, 2, 3, 4]),
        (UNDER_WAY, [4]),
    ]
    now[0] += 1.0
    assert sent(scheduler, [output("b", [6], "stop")]) == [("b", [7, 8, 9, 5, 6])]


def test_cancelled_requests_are_forgotten():
    scheduler = make()
    scheduler.requests = {"a": 0}
    for name in ("a", "gone"):
        grow(scheduler, request(name), 5)
        scheduler._finish(output(name, [1]))
    scheduler.update_from_output()
    assert set(scheduler._tokens) == {"a"}


@pytest.fixture(autouse=True)
def no_process_wide_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finished_only.gc, "set_threshold", lambda *a: None)
    monkeypatch.setattr(finished_only, "belong_to_trainer", lambda: None)
    monkeypatch.setattr(finished_only, "_leave_adapters_unpinned", lambda: None)
    monkeypatch.setattr(finished_only, "_remember_adapters", lambda: None)
