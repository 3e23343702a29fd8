"""The vLLM engine on the CPU, for real: one engine in its own process, a tiny model, LoRA on."""

import os
import signal
import threading
from dataclasses import replace

import psutil
import pytest
import torch
from vllm_engines import (
    LIMIT,
    ON_CPU,
    PROBLEMS,
    assert_close_rows,
    assert_same_groups,
    encode,
    ids,
    largest_gap,
    make_policy,
    move,
    problem,
    start_engine,
)

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config
from mathrl.data.stream import ProblemStream
from mathrl.errors import UserError
from mathrl.policy.model import Policy
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.adapter_files import RAM_DISK
from mathrl.rollout.core.finished_only import UNDER_WAY
from mathrl.rollout.replicas import Replicas
from mathrl.training.sentinel import Sentinel, SyncError
from mathrl.training.trainer import Trainer
from mathrl.training.update import make_update
from mathrl.types import Adapter, Problem, Sampling

pytestmark = ON_CPU


def test_signals_to_the_whole_job_do_not_end_the_rollout_under_way(synced):
    """Neither the core nor the process that it was forked from."""
    synced.sample(PROBLEMS[:1], 1, seed=1)
    cores = [process.pid for process in synced.client.processes]
    (server,) = {psutil.Process(core).ppid() for core in cores}
    assert psutil.Process(server).ppid() == os.getpid()
    assert [psutil.Process(pid).cmdline()[0] for pid in (server, *cores)] == [
        "mathrl::core_server",
        "VLLM::EngineCore",
    ]
    sent = []

    def interrupt(*_):
        if not sent:  # while others are still being sampled
            for pid in (*cores, server):
                sent.extend(os.kill(pid, signum) for signum in (signal.SIGINT, signal.SIGTERM))

    groups = synced.sample(PROBLEMS, 4, seed=1, on_completion=interrupt)
    assert sent
    assert psutil.Process(server).status() != psutil.STATUS_ZOMBIE
    assert all(len(group.completions) == 4 for group in groups)
    assert ids(synced.sample(PROBLEMS, 4, seed=1)) == ids(groups)


def test_groups_come_in_order_with_g_different_completions(synced):
    groups = synced.sample(PROBLEMS, 4, seed=1)
    assert [group.problem for group in groups] == PROBLEMS
    assert [group.prompt_ids for group in groups] == [tuple(encode(p)) for p in PROBLEMS]
    assert all(group.policy_version == synced.version for group in groups)
    for group in groups:
        assert len({completion.token_ids for completion in group.completions}) == 4
        for completion in group.completions:
            expected = synced.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            assert completion.text == expected


def test_sampling_logprobs_are_the_trainers(synced, policy):
    assert largest_gap(policy, synced.sample(PROBLEMS, 4, seed=1)) < 1e-4


@pytest.mark.parametrize("sampling", [Sampling(0.7, 1.0, 0, LIMIT), Sampling(1.6, 1.0, 0, LIMIT)])
def test_logprobs_are_after_the_temperature(synced, policy, sampling):
    groups = synced.sample(PROBLEMS, 3, sampling, seed=1)
    assert largest_gap(policy, groups, temperature=sampling.temperature) < 1e-4


def test_logprobs_are_after_top_k(synced, policy):
    """Renormalised over k tokens: above the full distribution's, and 0 for k = 1."""
    groups = synced.sample(PROBLEMS, 2, Sampling(1.0, 1.0, 1, LIMIT), seed=1)
    assert all(value == 0.0 for g in groups for c in g.completions for value in c.sampling_logprobs)
    assert ids(groups) == ids(synced.sample(PROBLEMS, 2, Sampling(0.0, 1.0, 0, LIMIT)))


def test_greedy_is_the_trainers_argmax(synced, policy):
    (group,) = synced.sample(PROBLEMS[2:], 1, Sampling(0.0, 1.0, 0, LIMIT))
    tokens = list(group.prompt_ids)
    for token in group.completions[0].token_ids:
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([tokens])).logits[0, -1]
        assert int(logits.argmax()) == token
        tokens.append(token)


def test_logprobs_only_where_asked_for(synced):
    groups = synced.sample(PROBLEMS, 2, Sampling(1.0, 1.0, 0, LIMIT, logprobs=False), seed=1)
    assert all(c.sampling_logprobs is None for g in groups for c in g.completions)
    assert ids(groups) == ids(synced.sample(PROBLEMS, 2, seed=1))


def test_seeds_reproduce_whatever_else_is_sampled(synced):
    first = synced.sample(PROBLEMS, 4, seed=7)
    assert ids(first) == ids(synced.sample(PROBLEMS, 4, seed=7))
    alone = synced.sample(PROBLEMS[1:2], 2, seed=7)[0]
    assert [c.token_ids for c in alone.completions] == [c.token_ids for c in first[1].completions[:2]]
    assert ids(first) != ids(synced.sample(PROBLEMS, 4, seed=8))


def test_seeds_reproduce_when_prompts_wait_for_room(synced):
    """More requests than sequences at once, and prompts that fill several steps' token budgets."""
    many = [problem(f"many{i}", 90 + i % 20) for i in range(40)]
    everything = synced.sample(many, 3, seed=2)
    for i in (0, 19, 39):
        assert ids(synced.sample([many[i]], 3, seed=2)) == ids([everything[i]])


def test_stops_at_eos_and_at_the_limit(synced):
    """With the EOS among likely tokens both reasons occur; a stopped completion ends in its only EOS."""
    greedy = synced.sample(PROBLEMS, 1, Sampling(0.0, 1.0, 0, LIMIT))
    likely = greedy[0].completions[0].token_ids[2]
    before, synced.eos_ids = synced.eos_ids, (likely,)
    try:
        stopped = synced.sample(PROBLEMS[:1], 1, Sampling(0.0, 1.0, 0, LIMIT))[0].completions[0]
    finally:
        synced.eos_ids = before
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == greedy[0].completions[0].token_ids[: len(stopped.token_ids)]
    assert stopped.token_ids.index(likely) == len(stopped.token_ids) - 1
    assert greedy[0].completions[0].finish_reason == "length"
    assert len(greedy[0].completions[0].token_ids) == LIMIT


def test_finished_completions_come_while_others_are_sampled(synced, monkeypatch):
    """The first callback happens before the core has sent its last message."""
    events = []
    receive = synced.client._core.get_output
    monkeypatch.setattr(synced.client._core, "get_output", lambda: events.append("message") or receive())
    thirds = {c.token_ids[2] for c in synced.sample(PROBLEMS[:1], 8, seed=3)[0].completions}
    events.clear()
    monkeypatch.setattr(synced, "eos_ids", tuple(thirds))  # the first problem's completions end early
    groups = synced.sample(PROBLEMS, 8, seed=3, on_completion=lambda p, i, c: events.append((p, i, c)))
    calls = [event for event in events if event != "message"]
    assert sorted((p, i) for p, i, _ in calls) == [(p, i) for p in range(3) for i in range(8)]
    assert all(groups[p].completions[i] is completion for p, i, completion in calls)
    assert len({len(c) for c in ids(groups)}) > 1, "every completion ended in the same step"
    assert events.index(calls[0]) < len(events) - 1 - events[::-1].index("message")


def test_the_core_sends_one_message_a_completion(synced, monkeypatch):
    seen = []
    receive = synced.client._core.get_output

    def watched():
        message = receive()
        seen.extend(message.outputs)
        return message

    monkeypatch.setattr(synced.client._core, "get_output", watched)
    groups = synced.sample(PROBLEMS, 4, seed=1)
    seen = [output for output in seen if output.request_id != UNDER_WAY]
    assert len(seen) == 12
    assert sorted(tuple(o.new_token_ids) for o in seen) == sorted(ids(groups))


def test_no_more_are_under_way_than_allowed(synced, monkeypatch):
    everything = synced.sample(PROBLEMS, 4, seed=1)
    send, sent, done, most = synced.client._send, [], [], []

    def counted(*args, **kwargs):
        sent.append(send(*args, **kwargs))
        most.append(len(sent) - len(done))
        return sent[-1]

    def told(p, i, _):
        done.append((p, i))

    monkeypatch.setattr(synced.client, "_send", counted)
    monkeypatch.setattr(synced, "max_sequences", 5)
    groups = synced.sample(PROBLEMS, 4, seed=1, on_completion=told)
    assert ids(groups) == ids(everything)
    assert len(sent) == len(done) == 12
    assert max(most[:5]) == 5


def test_tokens_under_way_are_told_before_a_completion_has_finished(synced):
    told, finished = [], []
    synced.on_tokens = lambda tokens: told.append((tokens, len(finished)))
    try:
        long = Sampling(max_completion_tokens=60, logprobs=False)
        for seed in range(20):  # until half a second has passed within one call, whatever the machine's speed
            groups = synced.sample(
                [problem(f"p{i}", 20) for i in range(16)], 8, long, seed=seed,
                on_completion=lambda *_: finished.append(1),
            )  # fmt: skip
            if told:
                break
    finally:
        synced.on_tokens = None
    assert told
    most = 16 * 8 * 60
    assert all(0 < tokens < most for tokens, _ in told)
    assert all(len(group.completions) == 8 for group in groups), "the count is no completion"


def test_an_adapter_change_takes_effect_and_none_is_the_reference(engine, model_folder, policy):
    engine.load(policy.adapter(), 5)
    first = engine.sample(PROBLEMS, 4, seed=1)
    other = make_policy(model_folder, seed=2)
    engine.load(other.adapter(), 6)
    second = engine.sample(PROBLEMS, 4, seed=1)
    engine.load(None, 0)
    reference = engine.sample(PROBLEMS, 4, seed=1)
    assert engine.version == 0
    assert [g.policy_version for g in second] == [6, 6, 6]
    assert largest_gap(policy, first) < 1e-4 < largest_gap(other, first)
    assert largest_gap(other, second) < 1e-4 < largest_gap(policy, second)
    assert largest_gap(policy, reference, reference=True) < 1e-4 < largest_gap(policy, reference)
    engine.load(policy.adapter(), 7)
    assert ids(engine.sample(PROBLEMS, 4, seed=1)) == ids(first)


def test_adapters_do_not_pile_up(synced, policy):
    for version in range(20, 25):
        synced.load(policy.adapter(), version)
    assert len(synced.client._core.list_loras()) == 1
    assert len(list(synced._folder.iterdir())) == 1
    assert synced._folder.parent == RAM_DISK


def test_score_is_what_sampling_reported(synced):
    groups = synced.sample(PROBLEMS, 1, seed=1)
    scores = synced.score([g.prompt_ids for g in groups], [g.completions[0].token_ids for g in groups])
    for group, row in zip(groups, scores, strict=True):
        assert row == pytest.approx(group.completions[0].sampling_logprobs, abs=1e-5)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 1.0, 0, LIMIT),
        Sampling(0.0, 1.0, 0, LIMIT),
        Sampling(0.7, 0.9, 20, LIMIT),
        Sampling(1.0, 1.0, 0, LIMIT, logprobs=False),
    ],
)
def test_tokens_are_scored_beside_completions_as_alone(synced, sampling):
    """The same numbers, and the completions are those without them."""
    groups = synced.sample(PROBLEMS, 1, seed=1)
    rows = (
        [g.prompt_ids for g in groups],
        [g.completions[0].token_ids[: 1 + 4 * i] for i, g in enumerate(groups)],
    )
    alone = synced.score(*rows)
    expected = synced.sample(PROBLEMS, 8, sampling, seed=2)
    owed, told = synced.score_with_next(*rows), []
    found = synced.sample(PROBLEMS, 8, sampling, seed=2, on_completion=lambda p, i, _: told.append((p, i)))
    assert sorted(told) == [(p, i) for p in range(3) for i in range(8)]
    assert_same_groups(found, expected)
    assert owed.scores is not None  # they came with the completions
    assert_close_rows(owed.result(), alone)


def test_tokens_are_scored_where_nothing_is_sampled_and_never_from_other_weights(synced, policy):
    rows = [[5, 6], [7]], [[8, 9, 10], [11]]
    alone = synced.score(*rows)
    owed = synced.score_with_next(*rows)
    assert_close_rows(owed.result(), alone)
    owed = synced.score_with_next(*rows)
    synced.load(None, 0)
    synced.sample(PROBLEMS, 1)
    with pytest.raises(RuntimeError, match="other weights"):
        owed.result()


def test_scores_that_are_broken_off_come_with_the_next_completions(synced):
    rows = [[5, 6], [7]], [[8, 9, 10], [11]]
    alone = synced.score(*rows)
    owed = synced.score_with_next(*rows)

    def fail(p, i, completion):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        synced.sample(PROBLEMS, 4, seed=1, on_completion=fail)
    assert owed.scores is None
    synced.sample(PROBLEMS, 4, seed=1)
    assert owed.scores is not None
    assert_close_rows(owed.result(), alone)
    synced.load(None, 0)  # the prefix cache can only be emptied when no request holds a block


def test_an_interrupt_leaves_no_token_to_score_behind(synced, monkeypatch):
    """While all requests are under way, the tokens' own too."""
    sent, aborted, core = [], [], synced.client._core
    send, abort = synced.client._send, core.abort_requests

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(synced.client, "_send", lambda *args: sent.append(send(*args)) or sent[-1])
    monkeypatch.setattr(core, "abort_requests", lambda names: aborted.extend(names) or abort(names))
    monkeypatch.setattr(core, "get_output", interrupt)
    owed = synced.score_with_next([[5, 6], [7]], [[8, 9, 10], [11]])
    with pytest.raises(KeyboardInterrupt):
        synced.sample(PROBLEMS, 2, seed=1)
    assert aborted == sent
    assert len(sent) == 4 + 6
    monkeypatch.undo()
    assert_close_rows(owed.result(), synced.score([[5, 6], [7]], [[8, 9, 10], [11]]))
    synced.load(None, 0)  # the prefix cache can only be emptied when no request holds a block


def test_an_exception_while_sampling_leaves_no_request_behind(synced):
    expected = ids(synced.sample(PROBLEMS, 2, seed=1))

    def fail(p, i, completion):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        synced.sample([problem(f"x{i}", 20) for i in range(50)], 4, seed=1, on_completion=fail)
    assert ids(synced.sample(PROBLEMS, 2, seed=1)) == expected
    synced.load(None, 0)  # the prefix cache can only be emptied when no request holds a block


def test_too_long_and_empty_prompts_are_refused(synced):
    with pytest.raises(UserError, match=r"'far': a prompt of 120 tokens .* exceed the engine's 128"):
        synced.sample([problem("far", 120)], 1)
    with pytest.raises(UserError, match="'none' has an empty prompt"):
        synced.sample([Problem("none", "", "1")], 1)


def test_an_adapter_that_does_not_fit_is_refused(synced, model_folder):
    config = Config.model_validate({"model": {"path": model_folder}, "lora": {"rank": 16, "alpha": 16.0}})
    with pytest.raises(UserError, match="vLLM refuses the adapter"):
        synced.load(Policy.from_pretrained(model_folder, config).adapter(), 9)


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
def replicas(model_folder, policy):
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


def test_a_killed_core_is_told_of_at_once_and_never_waited_for(replicas, policy):
    """Closing the replicas, of which one is dead, leaves nothing of either."""
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
    finally:
        replicas.close()
    assert not any(process.is_running() for process in processes)
    assert not any(e._folder.exists() for e in engines)


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
