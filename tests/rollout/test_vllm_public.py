"""What a version of vLLM gets that we have not tried: the same completions by way of ``LLM.generate``."""

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from vllm_engines import (
    LIMIT,
    ON_CPU,
    PROBLEMS,
    assert_close_rows,
    assert_same_groups,
    close,
    encode,
    kill,
    largest_gap,
    make_policy,
    move,
    problem,
    start_engine,
)

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.model import Policy
from mathrl.training.sentinel import Sentinel, SyncError
from mathrl.types import Sampling

pytestmark = ON_CPU


@pytest.fixture(scope="module")
def started():
    """The public engines that this file has started."""
    engines = []
    yield engines
    assert engines
    for engine in engines:
        close(engine)


@pytest.fixture
def public(started, model_folder, policy):
    """The engine of all tests here; another one where a test has ended its process."""
    if not started or not all(process.is_alive() for process in started[-1].client.processes):
        started.append(start_engine(model_folder, policy, public=True))
    return started[-1]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 1.0, 0, LIMIT),
        Sampling(0.7, 0.9, 20, LIMIT),
        Sampling(0.0, 1.0, 0, LIMIT),
        Sampling(1.0, 1.0, 0, LIMIT, logprobs=False),
    ],
)
def test_it_samples_what_the_core_does(public, synced, policy, sampling):
    public.load(policy.adapter(), policy.version)
    likely = synced.sample(PROBLEMS[:1], 8, sampling, seed=3)[0].completions[0].token_ids[2]
    for engine in (public, synced):
        engine.eos_ids = (*engine.eos_ids, likely)  # so that some stop and some do not
    told: list[tuple[int, int]] = []
    try:
        expected = synced.sample(PROBLEMS, 8, sampling, seed=3)
        got = public.sample(PROBLEMS, 8, sampling, seed=3, on_completion=lambda p, i, _: told.append((p, i)))
    finally:
        for engine in (public, synced):
            engine.eos_ids = engine.eos_ids[:-1]
    assert [replace(g, completions=()) for g in got] == [replace(g, completions=()) for g in expected]
    assert sorted(told) == [(p, i) for p in range(3) for i in range(8)]
    reasons = set()
    for mine, theirs in zip(
        (c for g in got for c in g.completions), (c for g in expected for c in g.completions), strict=True
    ):
        assert replace(mine, sampling_logprobs=None) == replace(theirs, sampling_logprobs=None)
        reasons.add(mine.finish_reason)
        if sampling.logprobs:
            assert mine.sampling_logprobs == pytest.approx(theirs.sampling_logprobs, abs=1e-5)
        else:
            assert mine.sampling_logprobs is None
    assert "stop" in reasons


@pytest.mark.parametrize("logprobs", [True, False])
def test_tokens_are_scored_beside_completions_as_alone(public, policy, logprobs):
    public.load(policy.adapter(), policy.version)
    sampling = Sampling(0.7, 0.9, 20, LIMIT, logprobs)
    rows = [encode(p) for p in PROBLEMS], [[20, 21, 22], [], [23]]
    alone, expected = public.score(*rows), public.sample(PROBLEMS, 4, sampling, seed=2)
    owed = public.score_with_next(*rows)
    assert_same_groups(public.sample(PROBLEMS, 4, sampling, seed=2), expected)
    assert owed.scores is not None
    assert [len(row) for row in alone] == [3, 0, 1]
    assert_close_rows(owed.result(), alone)


def test_adapters_come_and_go_and_are_proved(public, model_folder, policy):
    trainer = make_policy(model_folder, seed=3)
    public.load(trainer.adapter(), trainer.version)
    sentinel = Sentinel(public, trainer, PROBLEMS, max_gap=0.25)
    assert sentinel.check()["sync/sentinel_gap"] < 1e-4
    move(trainer, 4, 0.003)
    public.load(trainer.adapter(), trainer.version)
    metrics = sentinel.check()
    assert metrics["sync/sentinel_gap"] < 1e-4
    assert metrics["sync/arrived"] == pytest.approx(1.0, abs=0.01)
    move(trainer, 5, 0.0005)  # vLLM is not told
    with pytest.raises(SyncError, match="older weights"):
        sentinel.check()
    public.load(None, 0)
    reference = public.sample(PROBLEMS, 4, seed=1)
    assert largest_gap(policy, reference, reference=True) < 1e-4 < largest_gap(policy, reference)


def test_an_adapter_that_does_not_fit_is_refused(public, model_folder, policy):
    config = Config.model_validate({"model": {"path": model_folder}, "lora": {"rank": 16, "alpha": 16.0}})
    with pytest.raises(UserError, match="vLLM refuses the adapter"):
        public.load(Policy.from_pretrained(model_folder, config).adapter(), 9)
    public.load(policy.adapter(), policy.version)
    assert largest_gap(policy, public.sample(PROBLEMS, 2, seed=1)) < 1e-4


def test_replicas_know_their_own_processes(monkeypatch):
    from mathrl.rollout import vllm_public

    class Starts:
        """As much of vLLM as starts a process of its own."""

        def __init__(self, **arguments) -> None:
            time.sleep(0.2)
            self.process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
            self.process.start()
            time.sleep(0.2)

    monkeypatch.setattr(vllm_public, "LLM", Starts)
    with ThreadPoolExecutor() as threads:
        clients = list(threads.map(lambda _: vllm_public.PublicClient({}, "cpu"), range(3)))
    pids = [[process.pid for process in client.processes] for client in clients]
    assert pids == [[client._llm.process.pid] for client in clients]
    clients[0].close()
    assert [c.processes[0].is_alive() for c in clients] == [False, True, True]
    for client in clients[1:]:
        client.close()


def test_a_killed_core_is_told_of_and_never_waited_for(public, policy):
    public.load(policy.adapter(), 1)
    many = [problem(f"x{i}", 20) for i in range(2000)]
    timer = threading.Timer(1.0, kill, [public])
    timer.start()
    with pytest.raises(UserError, match=r"process ended while sampling \(exit code -9"):
        public.sample(many, 8, seed=1)
    with pytest.raises(UserError, match="ended while loading weights"):
        public.load(policy.adapter(), 2)
