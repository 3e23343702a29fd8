"""Groups that train while others are sampled: the same step, and no thread left behind when one fails."""

import threading
from dataclasses import replace

import pytest
import torch
from double_policy import NAMES, configured, double_policy
from planted_rollout import OddRewards as Rewards
from planted_rollout import PlantedEngine as Engine
from policy.conftest import build_policy
from torch.testing import assert_close

from mathrl.data.stream import ProblemStream
from mathrl.errors import NonFiniteError, Stopped, UserError
from mathrl.rewards.functions import RewardFunction
from mathrl.training.pace import Pace
from mathrl.training.trainer import Hooks, Trainer
from mathrl.training.update import make_update
from mathrl.types import Problem

PROBLEMS = [Problem(str(i), f"q{i}", str(i)) for i in range(12)]
NEED_WHOLE_STEP = {"reinforce", "ppo", "trpo"}
BY_GROUP = [name for name in NAMES if name not in NEED_WHOLE_STEP]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def make_trainer(name, overlap, engine=None, double=True, hooks=None, rewards=None, **settings):
    settings = {
        "rollout__problems_per_step": 4, "rollout__group_size": 3, "train__overlap": overlap,
        "update__micro_batch_tokens": 60 if overlap == "on" else 8192, **settings,
    }  # fmt: skip
    config, algorithm = configured(name, **settings)
    policy = double_policy() if double else build_policy()
    update = make_update(config, algorithm, policy, engine_exact=False)
    return Trainer(
        config, algorithm, ProblemStream(PROBLEMS, 0), engine or Engine(), rewards or Rewards(), policy,
        update, hooks or Hooks(),
    )  # fmt: skip


def steps(trainer, num=3):
    """Metrics and batches of steps, and what the trainer holds after them."""
    batches, metrics = [], []
    trainer.hooks = replace(trainer.hooks, on_batch=lambda index, batch: batches.append(batch))
    for index in range(num):
        found, _ = trainer.step(index)
        trainer.steps_done += 1
        metrics.append(
            {n: v for n, v in found.items() if not n.startswith(("time/", "tokens/per_s", "overlap/"))}
        )
    return metrics, batches, trainer.state()


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.trainable_parameters()])


def gradient(trainer):
    return torch.cat([p.grad.flatten() for p in trainer.policy.trainable_parameters()])


SETTINGS = [
    *((name, {}) for name in BY_GROUP),
    ("grpo", {"reward__mask_truncated": True, "algorithm__kl_target": 0.01}),
    ("grpo", {"update__gradient_checkpointing": True, "algorithm__correction": False}),
]


@pytest.mark.parametrize(("name", "settings"), SETTINGS, ids=[n + "+" * len(s) for n, s in SETTINGS])
def test_three_steps_are_those_of_one_after_the_other(name, settings):
    """In float64 to 1e-10: metrics, weights, the optimiser's state, the batch that is kept."""
    in_turn = make_trainer(name, "off", **settings)
    meanwhile = make_trainer(name, "on", rewards=Rewards(later=True), **settings)
    assert in_turn.overlap is None
    metrics, batches, state = steps(in_turn)
    again, parts, same = steps(meanwhile)
    assert_close(again, metrics, **CLOSE)
    assert_close(weights(meanwhile), weights(in_turn), **CLOSE)
    assert_close(same["update"], state["update"], **CLOSE)
    assert same["problems"] == state["problems"]
    for part, batch in zip(parts, batches, strict=True):
        for field in ("completion_ids", "loss_mask", "rewards", "truncated", "group_ids", "places"):
            assert torch.equal(getattr(part, field), getattr(batch, field)), field
        assert part.num_places == batch.num_places
        assert all(map(torch.equal, part.prompts, batch.prompts))
        assert_close(part.advantages, batch.advantages)
    assert len(meanwhile.engine.threads) >= 3  # one a rollout, and none of them this one
    assert threading.main_thread() not in meanwhile.engine.threads


@pytest.mark.parametrize("name", BY_GROUP)
def test_in_float32_the_gradient_is_the_same_to_rounding(name):
    first, second = (make_trainer(name, overlap, double=False) for overlap in ("off", "on"))
    loss = [trainer.step(0)[0]["policy/loss"] for trainer in (first, second)]
    assert gradient(first).norm() > 0
    assert (gradient(second) - gradient(first)).norm() < 1e-5 * gradient(first).norm()
    assert loss[1] == pytest.approx(loss[0], rel=1e-5, abs=1e-7)


def test_groups_train_before_the_last_one_is_sampled():
    """The engine holds its last completion back until a gradient has been made of others."""
    trained = threading.Event()
    engine = Engine(before=lambda told: told < 11 or trained.wait(60))
    trainer = make_trainer("grpo", "on", engine)
    loss = trainer.update.loss
    backward = loss.backward

    def told(*args):
        result = backward(*args)
        trained.set()
        return result

    loss.backward = told
    metrics, _ = trainer.step(0)
    assert trained.is_set()
    assert 0.0 < metrics["overlap/trained_frac"] < 1.0


def test_refills_train_as_they_come():
    """DAPO's dropped groups are made up for by further rollouts; all that is selected trains, once."""
    in_turn, meanwhile = (make_trainer("dapo", o, rollout__group_size=2) for o in ("off", "on"))
    metrics, (batch, *_), _ = steps(in_turn)
    again, (merged, *_), _ = steps(meanwhile)
    assert len(meanwhile.engine.threads) > 3
    assert torch.equal(merged.completion_ids, batch.completion_ids)
    assert_close(again, metrics, **CLOSE)


# --- failures -----------------------------------------------------------------------------------------------


def assert_ended(trainer, before):
    """No thread samples any more, and nothing has changed."""
    assert not any(thread.is_alive() for thread in trainer.engine.threads)
    assert trainer.engine.on_tokens is None
    assert torch.equal(weights(trainer), before)
    assert trainer.problems.state() == ProblemStream(PROBLEMS, 0).state()
    assert trainer.update.num_calls == 0


def test_an_engine_that_fails_ends_the_step():
    def fail(told):
        if told == 7:
            raise UserError("vLLM's process ended")

    trainer = make_trainer("grpo", "on", Engine(fail))
    before = weights(trainer)
    with pytest.raises(UserError, match="process ended"):
        trainer.step(0)
    assert_ended(trainer, before)
    trainer.engine.before = lambda told: None
    expected = steps(make_trainer("grpo", "off"), 1)[0]
    assert_close(steps(trainer, 1)[0], expected, **CLOSE)  # what was accumulated is forgotten


def test_training_that_fails_breaks_the_sampling_off():
    trainer = make_trainer("grpo", "on")
    before, seen = weights(trainer), threading.Event()
    trainer.engine.before = lambda told: told < 11 or seen.wait(60)

    def fail(*_, **__):
        seen.set()
        raise UserError("a single completion does not fit")

    trainer.prepare = trainer.overlap.prepare = fail
    with pytest.raises(UserError, match="does not fit"):
        trainer.step(0)
    assert trainer.engine.told < 12
    assert_ended(trainer, before)


def test_told_to_stop_the_sampling_is_broken_off():
    trainer = make_trainer("grpo", "on")
    before, prepare, stopped = weights(trainer), trainer.overlap.prepare, threading.Event()
    trainer.engine.before = lambda told: told < 11 or stopped.wait(60)

    def stop(batch):
        prepare(batch)
        stopped.set()
        raise Stopped(15)

    trainer.overlap.prepare = stop
    with pytest.raises(Stopped):
        trainer.step(0)
    assert_ended(trainer, before)


def test_a_loss_that_is_not_finite_is_told_as_one_after_the_other():
    """The rest is still sampled, so that the evidence and the names are those of the whole step."""
    sentences, kept = [], []
    for overlap in ("off", "on"):
        trainer = make_trainer(
            "grpo", overlap, double=False, hooks=Hooks(on_batch=lambda _, batch: kept.append(batch))
        )
        before, logprobs = weights(trainer), trainer.policy.logprobs

        def broken(batch, logprobs=logprobs, **how):
            found = logprobs(batch, **how)
            bad = batch.completion_ids[:, 0] % 5 == 0
            return replace(found, logprobs=torch.where(bad[:, None], torch.nan, found.logprobs))

        trainer.policy.logprobs = broken
        with pytest.raises(NonFiniteError) as raised:
            trainer.step(0)
        sentences.append(str(raised.value))
        assert torch.equal(weights(trainer), before)
    assert "not finite" in sentences[0]
    assert sentences[0].split("(completions")[0] == sentences[1].split("(completions")[0]
    assert torch.equal(kept[0].completion_ids, kept[1].completion_ids)


# --- what runs one after the other, and says so -------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NEED_WHOLE_STEP))
def test_what_needs_the_whole_step_runs_in_turn_and_says_why(name):
    trainer = make_trainer(name, "on")
    assert trainer.overlap is None
    assert trainer.why_in_turn == trainer.algorithm.needs_whole_step != ""


def test_other_reasons_to_run_in_turn():
    assert "CPU" in make_trainer("grpo", "auto").why_in_turn
    assert make_trainer("grpo", "off").why_in_turn == "train.overlap says so"
    assert "updates" in make_trainer("grpo", "on", update__num_epochs=2).why_in_turn
    assert "whitened" in make_trainer("grpo", "on", algorithm__whiten_advantages=True).why_in_turn
    assert "batch_norm" in make_trainer("grpo", "on", algorithm__advantage="batch_norm").why_in_turn
    engine = Engine()
    engine.streams = False
    assert "planted" in make_trainer("grpo", "on", engine).why_in_turn


def test_reward_functions_that_see_a_whole_step_are_known():
    from mathrl.config import RewardConfig
    from mathrl.rewards.scorer import RewardScorer

    def one(problem, completion, verdict): ...
    def trl(completions, **columns): ...
    async def asked(problem, completion, verdict): ...

    for functions, name in (((one,), ""), ((one, trl), "trl"), ((asked,), "asked")):
        scorer = RewardScorer(RewardConfig(), "gsm8k", functions=[RewardFunction(f) for f in functions])
        assert scorer.asks_whole_step == name
        scorer.close()


# --- which way is faster ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overlapped", "says"), [(0.8, "while it samples"), (1.2, "after sampling")])
def test_the_first_steps_find_out_which_way_is_faster(overlapped, says):
    pace, ways, said = Pace(), [], []
    for step in range(12):
        ways.append(pace.overlaps)
        seconds = 50.0 if step < 2 else overlapped if pace.overlaps else 1.0  # compiling is not counted
        said.append(pace.note(seconds, tokens=1e4))
    assert ways[:8] == [True, False] * 4
    assert set(ways[8:]) == {overlapped < 1.0}
    assert [s for s in said if s] == [said[7]]
    assert says in said[7]


def test_steps_of_both_ways_in_turns_are_one_run():
    """As "auto" does on a GPU: the numbers are those of either way."""
    trainer = make_trainer("grpo", "on")
    trainer.overlap.pace, said = Pace(), []
    trainer.hooks = Hooks(say=said.append)
    metrics, _, state = steps(trainer, 9)
    expected, _, same = steps(make_trainer("grpo", "off"), 9)
    assert_close(metrics, expected, **CLOSE)
    assert_close(state["update"], same["update"], **CLOSE)
    assert len([sentence for sentence in said if sentence]) == 1
