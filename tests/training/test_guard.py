"""Nothing is made of a rollout before its engine is proved: a trainer whose engine keeps old weights."""

import threading
from dataclasses import replace

import pytest
import torch
from double_policy import configured, double_policy
from planted_rollout import OddRewards, PlantedEngine

from mathrl.data.stream import ProblemStream
from mathrl.errors import LostPartError, NonFiniteError, Stopped
from mathrl.training.sentinel import NUM_TOKENS, Sentinel, SyncError, _batch
from mathrl.training.trainer import Hooks, Trainer
from mathrl.training.update import make_update
from mathrl.types import Completion, Group, Problem

PROBLEMS = [Problem(str(i), f"q{i}", str(i)) for i in range(12)]


class Scoring(PlantedEngine):
    """Has a policy of its own, from which it scores; completions are planted all the same.

    ``follows`` False: what it is given does not arrive.
    """

    def __init__(self, **how):
        super().__init__(**how)
        self.held, self.follows, self.owed, self.asked = double_policy(), True, None, []

    def load(self, adapter, *, version):
        super().load(adapter, version=version)
        self.loaded_in = threading.current_thread()
        if self.follows:
            self.held.load_adapter(adapter)

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        if sampling is not None:  # the sentinel's tokens
            return [
                Group(p, self.encode(p), (Completion(self._tokens(p.id, length=NUM_TOKENS), "", "length"),))
                for p in problems
            ]
        owed, self.owed = self.owed, None
        groups = super().sample(problems, group_size, seed=seed, on_completion=on_completion)
        if owed:
            owed()
        return groups

    @torch.no_grad()
    def score(self, prompts, completions):
        batch = _batch(prompts, completions, self.held.pad_id)
        rows = self.held.logprobs(batch, temperature=1.0).logprobs.tolist()
        return [row[: len(tokens)] for row, tokens in zip(rows, completions, strict=True)]


class ScoringWithNext(Scoring):
    """Scores beside the completions of its next sampling, or when it is asked."""

    def score_with_next(self, prompts, completions):
        return Owed(self, prompts, completions)


class Owed:
    def __init__(self, engine, *rows):
        self.engine, self.rows, self.scores = engine, rows, None
        engine.owed = self.fill

    def fill(self):
        self.scores = self.engine.score(*self.rows)
        self.engine.asked.append("beside")

    def result(self):
        if self.scores is None:
            self.engine.asked.append("alone")
            self.scores = self.engine.score(*self.rows)
        return self.scores


class Writing(ScoringWithNext):
    """Gets its weights by what it has written."""

    def write(self, adapter):
        self.written_in = threading.current_thread()
        return "there"

    def load(self, adapter, *, version, written=None):
        self.loaded_from = written
        super().load(adapter, version=version)


def make_trainer(engine, overlap="off", name="grpo", **settings):
    settings = {
        "rollout__problems_per_step": 4, "rollout__group_size": 3, "train__overlap": overlap,
        "train__num_steps": 3, **settings,
    }  # fmt: skip
    config, algorithm = configured(name, **settings)
    policy = double_policy()
    update = make_update(config, algorithm, policy, engine_exact=False)
    return Trainer(
        config, algorithm, ProblemStream(PROBLEMS, 0), engine, OddRewards(), policy, update,
        sentinel=Sentinel(engine, policy, PROBLEMS, 0.25),
    )  # fmt: skip


def everything(trainer):
    """What a step would change, as it is."""
    weights = [p.detach().clone() for p in trainer.policy.trainable_parameters()]
    moments = trainer.update.optimizer.state_dict()["state"].values()
    return [*weights, *(value.clone() for of in moments for value in of.values())]


def run_to_the_end(trainer):
    rows = []
    trainer.hooks = replace(trainer.hooks, after_step=lambda done, metrics, groups: rows.append(metrics))
    trainer.run()
    return rows


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("engine", [Scoring, ScoringWithNext])
def test_every_sync_is_proved_and_told_in_the_row_of_its_rollout(engine, overlap):
    engine = engine()
    trainer = make_trainer(engine, overlap)
    rows = run_to_the_end(trainer)
    assert len(rows) == 3
    for row in rows:
        assert row["sync/sentinel_gap"] < 1e-9
        assert row["sync/sentinel_trainer_s"] > 0
        assert row["sync/sentinel_s"] < 60
    assert "sync/arrived" not in rows[0]  # nothing has moved before the first
    assert all(row["sync/arrived"] == pytest.approx(1.0, abs=1e-6) for row in rows[1:])
    assert not trainer.sentinel.waits
    assert engine.loaded_in is not threading.main_thread()
    if isinstance(engine, ScoringWithNext):
        assert engine.asked == ["beside"] * 3 + ["alone"]  # the last one, which no rollout follows


@pytest.mark.parametrize(
    ("name", "overlap"), [("grpo", "off"), ("grpo", "on"), ("dapo", "on"), ("ppo", "off")]
)
def test_an_engine_with_old_weights_is_found_before_the_optimiser_steps(name, overlap):
    engine = ScoringWithNext()
    trainer = make_trainer(engine, overlap, name)
    batches = []
    trainer.hooks = Hooks(on_batch=lambda index, batch: batches.append(index))
    trainer.sentinel.begin()
    trainer.step(0)
    engine.follows = False
    trainer.step(1)  # its rollout was of good weights; those that it hands over do not arrive
    before, problems, calls = everything(trainer), trainer.problems.state(), trainer.update.num_calls
    for _ in range(2):  # and it is not forgotten
        with pytest.raises(SyncError, match="after the sync to version 2 .* older weights"):
            trainer.step(2)
        assert all(map(torch.equal, everything(trainer), before))
        assert trainer.problems.state() == problems
        assert trainer.update.num_calls == calls
        assert batches == [0, 1]
    engine.follows = True
    trainer._hand_over()
    trainer.step(2)
    assert not all(map(torch.equal, everything(trainer), before))


def test_the_last_weights_are_proved_where_no_rollout_follows():
    engine = ScoringWithNext()
    trainer = make_trainer(engine)
    done = []

    def after_step(steps, metrics, groups):
        done.append(steps)
        engine.follows = steps < 1  # from here on

    trainer.hooks = Hooks(after_step=after_step, should_stop=lambda steps: steps == 2)
    with pytest.raises(SyncError, match="version 2"):
        trainer.run()
    assert done == [1, 2]


def test_they_are_not_where_the_run_has_been_told_to_end():
    """The engine may be gone."""
    engine, told = ScoringWithNext(), []
    trainer = make_trainer(engine)
    trainer.hooks = Hooks(
        after_step=lambda *_: told.append(1), should_stop=lambda _: bool(told), stopping=lambda: bool(told)
    )
    trainer.run()
    assert engine.asked == ["beside"]


def test_an_evaluation_is_proved_and_its_row_is_the_next():
    engine = ScoringWithNext()
    trainer = make_trainer(engine)
    trainer.sentinel.begin()
    trainer.step(0)
    engine.sample(PROBLEMS, 1, on_completion=lambda *_: None)  # as an evaluation asks it
    trainer.prove()
    assert engine.asked == ["beside"] * 2
    metrics, _ = trainer.step(1)
    assert metrics["sync/arrived"] == pytest.approx(1.0, abs=1e-6)
    engine.follows = False
    trainer.step(2)
    with pytest.raises(SyncError):
        trainer.prove()


def test_weights_that_a_checkpoint_gives_back_are_proved():
    engine = ScoringWithNext()
    trainer = make_trainer(engine)
    trainer.sentinel.begin()
    trainer.step(0)
    trainer.steps_done = 1
    with torch.no_grad():  # far enough that the gap alone shows it
        for parameter in trainer.policy.trainable_parameters():
            parameter.add_(0.1)
    state = trainer.state()
    again = make_trainer(ScoringWithNext())
    again.restore(state)
    assert again.sentinel.waits
    assert run_to_the_end(again)[0]["sync/sentinel_gap"] < 1e-9
    assert again.engine.asked == ["beside"] * 2 + ["alone"]
    stale = make_trainer(ScoringWithNext())
    stale.engine.follows = False
    stale.restore(state)
    with pytest.raises(SyncError):
        stale.prove()


def test_a_rollout_that_is_broken_off_leaves_the_proof_to_the_next():
    engine = ScoringWithNext(before=lambda told: fail(told))
    trainer = make_trainer(engine)
    trainer.sentinel.begin()

    def fail(told):
        if told == 7:
            raise LostPartError("vLLM's process ended")

    with pytest.raises(LostPartError):
        trainer.step(0)
    assert trainer.sentinel.waits
    engine.before = lambda told: None
    metrics, _ = trainer.step(0)
    assert metrics["sync/sentinel_gap"] < 1e-9
    assert engine.asked == ["alone"]


# --- loading and scoring at the same time -------------------------------------------------------------------


def test_the_trainer_scores_while_the_engine_loads():
    """Each waits for the other to have begun."""
    engine = ScoringWithNext()
    trainer = make_trainer(engine)
    both, logprobs = threading.Barrier(2), trainer.policy.logprobs

    def meeting(*args, **how):
        both.wait(30)
        return logprobs(*args, **how)

    trainer.policy.logprobs = meeting
    trainer.sentinel.begin(lambda: both.wait(30))
    trainer.policy.logprobs = logprobs
    assert trainer.sentinel.finish()["sync/sentinel_gap"] < 1e-9


def test_an_engine_that_cannot_load_is_heard_of_and_nothing_is_begun():
    trainer = make_trainer(ScoringWithNext())

    def lost():
        raise LostPartError("vLLM's process ended while loading weights")

    def broken(*args, **how):
        raise torch.OutOfMemoryError("planted")

    trainer.sentinel.begin()
    assert trainer.sentinel.waits
    with pytest.raises(LostPartError):
        trainer.sentinel.begin(lost)
    assert not trainer.sentinel.waits  # the proof that had begun was of weights that are no longer there
    assert trainer.sentinel.finish() == {}
    trainer.policy.logprobs = broken
    with pytest.raises(LostPartError):  # of two errors that which a run goes on from by itself
        trainer.sentinel.begin(lost)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.sentinel.begin()
    assert not trainer.sentinel.waits


def test_told_to_stop_the_engine_has_loaded_before_anything_goes_on():
    trainer = make_trainer(ScoringWithNext())
    begun, loaded = threading.Event(), []

    def stopped(*args, **how):
        begun.set()
        raise Stopped(15, forced=True)

    def load():
        begun.wait(30)
        loaded.append(True)

    trainer.policy.logprobs = stopped
    with pytest.raises(Stopped):
        trainer.sentinel.begin(load)
    assert loaded
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loading")]


def test_weights_that_overflowed_are_told_of_at_the_sync_before_a_checkpoint_can_be_written():
    trainer = make_trainer(ScoringWithNext())
    trainer.sentinel.begin()
    update = trainer.update.move

    def overflow(*args):
        metrics = update(*args)
        with torch.no_grad():
            trainer.policy.trainable_parameters()[0].fill_(torch.inf)
        return metrics

    trainer.update.move = overflow
    with pytest.raises(NonFiniteError, match="version 1 .* overflowed"):
        trainer.step(0)


def test_weights_are_written_before_they_are_loaded_beside_the_trainers_own_scoring():
    engine = Writing()
    make_trainer(engine).step(0)
    assert engine.loaded_from == "there"
    assert engine.written_in is threading.current_thread() is not engine.loaded_in
