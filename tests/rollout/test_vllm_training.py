"""A real vLLM engine and who trains with it: proofs of its weights, replicas, steps that train meanwhile."""

import queue
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from vllm_engines import (
    LIMIT,
    ON_CPU,
    PROBLEMS,
    ids,
    make_policy,
    move,
    problem,
    start_engine,
)

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config
from mathrl.data.stream import ProblemStream
from mathrl.errors import UserError
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.replicas import Replicas
from mathrl.training.sentinel import Sentinel, SyncError
from mathrl.training.trainer import Trainer
from mathrl.training.update import make_update
from mathrl.types import Adapter

pytestmark = ON_CPU


class TestSentinelOnARealEngine:
    """What the sentinel is for: weights that did not arrive, planted one by one."""

    @pytest.fixture
    def trainer(self, engine, model_folder):
        policy = make_policy(model_folder, seed=3)
        engine.load(policy.adapter(), policy.version)
        return policy

    def test_a_good_sync_is_proved_and_proved_again(self, engine, trainer):
        sentinel = Sentinel(engine, trainer, PROBLEMS, max_gap=0.01)
        assert sentinel.check()["sync/sentinel_gap"] < 1e-4
        for seed in (4, 5):
            move(trainer, seed, 0.003)
            engine.load(trainer.adapter(), trainer.version)
            metrics = sentinel.check()
            assert metrics["sync/sentinel_gap"] < 1e-4
            assert metrics["sync/arrived"] == pytest.approx(1.0, abs=0.01)

    def test_a_stale_adapter_is_caught(self, engine, trainer):
        sentinel = Sentinel(engine, trainer, PROBLEMS, max_gap=0.25)
        sentinel.check()
        move(trainer, 4, 0.1)  # the engine is not told
        with pytest.raises(SyncError, match="differ by .* nats a token on problem"):
            sentinel.check()

    def test_a_stale_adapter_is_caught_long_before_the_gap_shows_it(self, engine, trainer):
        sentinel = Sentinel(engine, trainer, PROBLEMS, max_gap=0.25)
        sentinel.check()
        move(trainer, 4, 0.0005)
        with pytest.raises(SyncError, match=r"only -?\d+% ± \d+% of the policy's move .* older weights"):
            sentinel.check()

    def test_an_unscaled_adapter_is_caught(self, engine, trainer):
        sentinel = Sentinel(engine, trainer, PROBLEMS, max_gap=0.25)
        adapter = trainer.adapter()
        unscaled = Adapter({**adapter.config, "lora_alpha": adapter.config["r"]}, adapter.tensors)
        engine.load(unscaled, trainer.version)
        with pytest.raises(SyncError, match="differ by"):
            sentinel.check()

    def test_a_stale_prefix_cache_is_caught(self, engine, trainer, monkeypatch, tmp_path):
        """It is keyed by the adapter's name and path: with one for all versions only emptying it helps."""
        sentinel = Sentinel(engine, trainer, PROBLEMS, max_gap=0.25)
        real = engine.client.set_adapter

        def under_one_name(name, number, folder):
            here.unlink(missing_ok=True)
            here.symlink_to(folder)
            real("one-name", number, here)

        here = tmp_path / "adapter"
        monkeypatch.setattr(engine.client, "set_adapter", under_one_name)
        engine.load(trainer.adapter(), trainer.version)
        sentinel.check()  # fills the cache
        move(trainer, 4, 0.1)
        engine.load(trainer.adapter(), trainer.version)
        assert sentinel.check()["sync/sentinel_gap"] < 1e-4  # emptied by load
        move(trainer, 5, 0.1)
        monkeypatch.setattr(engine, "_reset_prefix_cache", lambda: None)
        engine.load(trainer.adapter(), trainer.version)
        with pytest.raises(SyncError, match="on problem 'long'"):  # the one with whole blocks in the cache
            sentinel.check()
        monkeypatch.undo()
        engine.load(None, 0)


@pytest.fixture(scope="module")
def sockets():
    """Where the replicas' are."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_RPC_BASE_PATH", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def replicas(model_folder, policy, sockets):
    """Two engines that start at the same time."""
    replicas = Replicas(lambda _: start_engine(model_folder, policy), 2)
    yield replicas
    replicas.close()


def test_replicas_sample_what_one_engine_does_and_are_proved_each(synced, replicas, model_folder):
    assert len({process.pid for engine in replicas.engines for process in engine.client.processes}) == 2
    trainer = make_policy(model_folder)
    replicas.load(trainer.adapter(), trainer.version)
    told: list[tuple[int, int]] = []
    groups = replicas.sample(PROBLEMS, 4, seed=1, on_completion=lambda p, i, _: told.append((p, i)))
    assert ids(groups) == ids(synced.sample(PROBLEMS, 4, seed=1))
    assert sorted(told) == [(p, i) for p in range(3) for i in range(4)]
    assert all(group.policy_version == trainer.version for group in groups)

    sentinel = Sentinel(replicas, trainer, PROBLEMS, max_gap=0.25)
    sentinel.begin()
    replicas.sample(PROBLEMS, 4, seed=1)
    assert all(engine._owed is None for engine in replicas.engines)  # both have been scored from
    assert sentinel.finish()["sync/sentinel_gap"] < 1e-4
    move(trainer, 4, 0.0005)
    sentinel.begin(lambda: replicas.engines[0].load(trainer.adapter(), trainer.version))  # one is not told
    replicas.sample(PROBLEMS[:1], 4, seed=1)
    for _ in range(2):  # and it stays so
        with pytest.raises(SyncError, match="older weights"):
            sentinel.finish()


def talk_nonsense(sockets):
    """What no client can read, to whoever receives messages there."""
    import zmq

    with zmq.Context() as context:
        for file in sockets.iterdir():
            with context.socket(zmq.PUSH) as socket:
                socket.setsockopt(zmq.SNDTIMEO, 500)
                socket.setsockopt(zmq.LINGER, 500)
                socket.connect(f"ipc://{file}")
                with suppress(zmq.Again):  # it is no socket of answers
                    socket.send(b"nonsense")


def test_a_core_that_is_killed_or_not_understood_is_told_of_at_once_and_never_waited_for(
    replicas, policy, sockets
):
    """Closing the replicas, of which none can be used, leaves nothing of either."""
    engines, engine = replicas.engines, replicas.engines[1]
    processes = [psutil.Process(p.pid) for e in engines for p in e.client.processes]
    assert all(process.is_running() for process in processes)
    try:
        engine.load(policy.adapter(), 1)
        prompts = [problem(f"x{i}", 20) for i in range(64)]
        owed = engine.score_with_next([[5, 6]], [[7]])
        with pytest.raises(UserError, match=r"process ended while sampling \(exit code -9;.*--resume"):
            engine.sample(
                prompts, 4, seed=1, on_completion=lambda *_: [p.kill() for p in engine.client.processes]
            )
        with pytest.raises(UserError, match="ended while scoring"):
            owed.result()
        with pytest.raises(UserError, match="ended while loading weights"):
            engine.load(policy.adapter(), 2)
        with pytest.raises(UserError, match="ended while"):
            engine.score([[5, 6]], [[7]])
        other = engines[0]
        other.load(policy.adapter(), 1)
        with pytest.raises(UserError, match=r"is lost while sampling \(a message .* read: .*--resume"):
            other.sample(prompts, 4, seed=1, on_completion=lambda *_: talk_nonsense(sockets))
        with pytest.raises(UserError, match=r"is lost while loading weights \(a message .* read: "):
            other.load(policy.adapter(), 2)
    finally:
        replicas.close()
    assert not any(process.is_running() for process in processes)
    assert not any(e._folder.exists() for e in engines)


@pytest.mark.parametrize(("kind", "lost"), [("dead", ""), ("unread", "could not be read: malformed")])
def test_a_core_that_says_that_it_ends_is_not_one_that_could_not_be_understood(kind, lost):
    """As vLLM's reading thread leaves them: the core's own error, or that of its message."""
    from vllm.v1.engine.exceptions import EngineDeadError

    from mathrl.rollout import vllm_core

    left, waiting = queue.Queue(), Future()
    left.put(EngineDeadError() if kind == "dead" else ValueError("malformed"))
    core = SimpleNamespace(
        outputs_queue=left, resources=SimpleNamespace(engine_dead=False), utility_results={1: waiting}
    )
    client = SimpleNamespace(_core=core, closed=False, lost="")
    reader = threading.Thread(target=lambda: None)
    reader.start()
    vllm_core._listen(lambda: client, reader)
    assert client.lost.endswith(lost)
    assert bool(client.lost) == bool(lost)
    assert core.resources.engine_dead
    assert isinstance(waiting.exception(timeout=0), EngineDeadError)


# --- training meanwhile -------------------------------------------------------------------------------------


class Odd(RewardScorer):
    """Rewards of random text: whether the tokens' sum is odd."""

    def score(self, groups):
        return [
            replace(g, scores=tuple(replace(s, reward=float(sum(c.token_ids) % 2)) for s, c in
                                    zip(g.scores, g.completions, strict=True)))
            for g in super().score(groups)
        ]  # fmt: skip


def make_trainer(engine, folder, scorer, overlap, rows=6):
    settings = {
        "model": {"path": folder}, "lora": {"rank": 4, "alpha": 8.0}, "algorithm": {"kl_coef": 0.02},
        "rollout": {"problems_per_step": 3, "group_size": rows, "max_completion_tokens": LIMIT},
        "update": {"micro_batch_tokens": 64}, "train": {"overlap": overlap},
    }  # fmt: skip
    config = Config.model_validate(settings)
    policy = make_policy(folder)
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    update = make_update(config, algorithm, policy, engine_exact=False)
    engine.load(policy.adapter(), policy.version)
    sentinel = Sentinel(engine, policy, PROBLEMS, 0.05)
    sentinel.begin()
    problems = ProblemStream(PROBLEMS, 0)
    return Trainer(config, algorithm, problems, engine, scorer, policy, update, sentinel=sentinel)


@pytest.fixture(scope="module")
def scorer():
    scorer = Odd(Config().reward, "gsm8k")
    yield scorer
    scorer.close()


def test_steps_that_train_meanwhile_are_those_of_one_after_the_other(engine, model_folder, scorer):
    """The real engine samples in its thread; completions have seeds, so both ways are given the same."""
    ways = {}
    for overlap in ("off", "on"):
        trainer = make_trainer(engine, model_folder, scorer, overlap)
        assert (trainer.overlap is not None) == (overlap == "on")
        found = [trainer.step(index)[0] for index in range(2)]
        assert trainer.sentinel.waits
        trainer.prove()
        weights = torch.cat([p.detach().flatten() for p in trainer.policy.trainable_parameters()])
        gradient = torch.cat([p.grad.flatten() for p in trainer.policy.trainable_parameters()])
        ways[overlap] = found, weights, gradient
    (metrics, weights, gradient), (again, same, regained) = ways.values()
    assert (regained - gradient).norm() < 1e-4 * gradient.norm()
    assert (same - weights).norm() < 1e-4 * weights.norm()
    for first, second in zip(metrics, again, strict=True):
        for name in ("reward/mean", "policy/loss", "policy/grad_norm", "policy/kl_ref", "sync/gap_mean"):
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-6), name
        assert 0 < second["sync/sentinel_gap"] < 1e-4  # proved at every step
    assert all("overlap/trained_frac" in found for found in again)


def test_training_that_fails_leaves_nothing_under_way(engine, model_folder, scorer):
    trainer = make_trainer(engine, model_folder, scorer, "on")

    def fail(batch):
        raise UserError("planted")

    trainer.overlap.prepare = fail
    with pytest.raises(UserError, match="planted"):
        trainer.step(0)
    assert not [t for t in threading.enumerate() if t.name == "sampling"]
    assert engine.on_tokens is None
    assert len(engine.sample(PROBLEMS, 4, seed=1)) == 3
