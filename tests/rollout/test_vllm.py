"""The vLLM engine on the CPU, for real: one engine in its own process, a tiny model, LoRA on."""

import os
import signal

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
    problem,
)

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.model import Policy
from mathrl.rollout.adapter_files import RAM_DISK
from mathrl.rollout.core import swap_adapter
from mathrl.rollout.core.finished_only import UNDER_WAY
from mathrl.types import Problem, Sampling

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

    def counted(wanted):
        sent.extend(wanted)
        most.append(len(sent) - len(done))
        send(wanted)

    def told(p, i, _):
        done.append((p, i))

    monkeypatch.setattr(synced.client, "_send", counted)
    monkeypatch.setattr(synced, "max_sequences", 5)
    groups = synced.sample(PROBLEMS, 4, seed=1, on_completion=told)
    assert ids(groups) == ids(everything)
    assert len(sent) == len(done) == 12
    assert most[0] == 5


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

    monkeypatch.setattr(
        synced.client, "_send", lambda wanted: sent.extend(w.child.request_id for w in wanted) or send(wanted)
    )
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


def test_an_adapter_takes_the_place_of_the_last_one_by_one_message(synced, policy, monkeypatch):
    asked, call = [], synced.client._core.call_utility

    def noted(method, *args):
        asked.append(method)
        return call(method, *args)

    monkeypatch.setattr(synced.client._core, "call_utility", noted)
    synced.load(policy.adapter(), 30, written=synced.write(policy.adapter()))
    assert asked == [swap_adapter.METHOD, "reset_prefix_cache"]
    assert 0 < synced.sync_metrics["sync/write_s"] < 60
    assert synced.client._core.list_loras() == [synced.client._lora.lora_int_id]


def test_an_adapter_that_does_not_fit_is_refused(synced, model_folder):
    config = Config.model_validate({"model": {"path": model_folder}, "lora": {"rank": 16, "alpha": 16.0}})
    with pytest.raises(UserError, match="vLLM refuses the adapter"):
        synced.load(Policy.from_pretrained(model_folder, config).adapter(), 9)
