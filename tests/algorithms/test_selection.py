"""What the trainer does with the groups of a step: drops, refills, skips, and leaves out."""

from dataclasses import replace

import pytest
import torch
from double_policy import configured
from policy.conftest import build_batch, build_policy

from mathrl.data.stream import ProblemStream
from mathrl.errors import UserError
from mathrl.training.objective import Meter
from mathrl.training.trainer import Hooks, Trainer, rollout_seed
from mathrl.training.update import learning_rate, make_update
from mathrl.types import Completion, Group, Problem, Score, derive_seed

PROBLEMS = [Problem(str(i), f"q{i}", str(i)) for i in range(12)]


class Engine:
    """Every completion is two tokens; remembers what was asked and loaded."""

    def __init__(self):
        self.asked, self.loaded, self.seeds = [], [], []

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        self.asked.append([p.id for p in problems])
        self.seeds.append(seed)
        return [
            Group(p, (5, 6), tuple(Completion((7 + i, 1), "", "stop") for i in range(group_size)))
            for p in problems
        ]

    def load(self, adapter, *, version):
        self.loaded.append(version)


class Rewards:
    """Outcomes by problem: "mixed", "equal" or "bad" (a reference that no verifier reads)."""

    def __init__(self, kinds):
        self.kinds = kinds

    def submit(self, problem, completion):
        pass

    def score(self, groups):
        return [replace(g, scores=self._scores(g, self.kinds[int(g.problem.id)])) for g in groups]

    def _scores(self, group, kind):
        if kind == "bad":
            return tuple(Score(0.0, "bad_reference") for _ in group.completions)
        right = [kind == "mixed" and i == 0 for i in range(len(group.completions))]
        return tuple(Score(float(r), "correct" if r else "wrong") for r in right)


def cut(kinds):
    """An engine whose first completion of each group was cut at the limit, or all of them."""
    engine = Engine()
    sample = engine.sample

    def sampled(problems, group_size, **more):
        groups = sample(problems, group_size, **more)
        return [
            replace(g, completions=tuple(
                replace(c, finish_reason="length") if i == 0 or kinds == "all" else c
                for i, c in enumerate(g.completions)
            ))
            for g in groups
        ]  # fmt: skip

    engine.sample = sampled
    return engine


def test_masked_completions_give_no_gradient_and_count_in_the_baseline():
    masked = {"reward__mask_truncated": True}
    _, _, (plain,), *_ = stepped("grpo", ["mixed"] * 12, engine=cut("first"))
    metrics, _, (batch,), _, trainer = stepped("grpo", ["mixed"] * 12, engine=cut("first"), **masked)
    assert batch.loss_mask.any(1).tolist() == [False, True] * 3
    assert torch.equal(batch.advantages[1::2], plain.advantages[1::2])  # the cut one was the right one
    assert batch.advantages[1].min() < 0
    # loss and gradient are those of the batch without these rows
    loss = trainer.update.loss
    alone = loss.backward(policy := build_policy(), batch.rows([1, 3, 5]), Meter())
    wanted = [p.grad.clone() for p in policy.trainable_parameters()]
    again = loss.backward(policy := build_policy(), batch, Meter())
    torch.testing.assert_close(again, alone)
    torch.testing.assert_close([p.grad for p in policy.trainable_parameters()], wanted)
    assert metrics["rollout/truncated_frac"] == 0.5


def test_a_step_whose_completions_were_all_cut_is_skipped():
    before = build_policy().adapter().tensors
    metrics, _, batches, engine, trainer = stepped(
        "grpo", ["mixed"] * 12, engine=cut("all"), reward__mask_truncated=True
    )
    assert metrics["update/skipped"] == 1.0
    assert batches == engine.loaded == []
    after = trainer.policy.adapter().tensors
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def stepped(name, kinds, engine=None, **settings):
    """One step of a trainer whose problems come in order and have these kinds."""
    settings = {"rollout__problems_per_step": 3, "rollout__group_size": 2, **settings}
    config, algorithm = configured(name, **settings)
    policy, engine, batches = build_policy(), engine or Engine(), []
    problems = ProblemStream(PROBLEMS, 0)
    given = iter(PROBLEMS)
    problems.take = lambda n: [next(given) for _ in range(n)]
    trainer = Trainer(
        config, algorithm, problems, engine, Rewards(kinds), policy, make_update(config, algorithm, policy),
        Hooks(on_batch=lambda index, batch: batches.append(batch)),
    )  # fmt: skip
    metrics, groups = trainer.step(0)
    return metrics, groups, batches, engine, trainer


def test_dapo_refills_dropped_groups_within_its_budget():
    kinds = ["equal", "mixed", "equal", "equal", "mixed", "equal", "mixed", "mixed", *["equal"] * 4]
    metrics, groups, (batch,), engine, _ = stepped("dapo", kinds, algorithm__max_refills=3)
    assert engine.asked == [["0", "1", "2"], ["3", "4"], ["5"], ["6"]]  # only what is missing is asked for
    assert len(set(engine.seeds)) == 4  # a problem that comes again is not answered the same again
    assert batch.num_completions == 3 * 2
    assert len(groups) == 7  # metrics and samples tell of all
    assert metrics["reward/equal_frac"] == pytest.approx(4 / 7)
    _, _, (batch,), engine, _ = stepped("dapo", kinds, algorithm__max_refills=1)
    assert len(engine.asked) == 2
    assert batch.num_completions == 2 * 2
    _, _, (batch,), engine, _ = stepped("grpo", kinds)
    assert len(engine.asked) == 1
    assert batch.num_completions == 3 * 2


def test_a_refill_of_the_same_problems_samples_other_completions():
    """Two problems, asked again and again within a step; and the first rollout's seed is the step's own."""
    seeds = {refill: rollout_seed(0, 4, refill) for refill in range(4)}
    assert seeds[0] == derive_seed(0, "rollout", 4)
    first = {derive_seed(seed, "p", i) for seed in seeds.values() for i in range(8)}
    assert len(first) == 32
    assert not {rollout_seed(0, step, refill) for step in (3, 5) for refill in range(4)} & set(seeds.values())


def test_the_learning_rate_goes_by_the_runs_steps_whatever_was_skipped():
    """Of six steps, linear from the second: two are skipped, and the last rate is that of the sixth."""
    settings = {"update__warmup_steps": 1, "update__schedule": "linear", "train__num_steps": 6}
    config, algorithm = configured("grpo", update__learning_rate=1.0, **settings)
    policy = build_policy()
    update = make_update(config, algorithm, policy)
    batch = algorithm.advantages(
        build_batch((2, 3)).add(rewards=torch.tensor([1.0, 0.0]), ref_logprobs=torch.zeros(2, 3))
    )
    rates = []
    for skipped in (False, True, False, True, False, False):
        if skipped:
            update.skip()
            state = update.state_dict()
            update = make_update(config, algorithm, policy)
            update.load_state_dict(state)
        else:
            rates.append(update(policy, batch)["policy/learning_rate"])
    expected = [learning_rate(config, step) for step in (0, 2, 4, 5)]
    assert rates == expected
    assert expected[-1] == pytest.approx(0.2)


def test_a_step_without_anything_to_learn_is_skipped_and_says_so():
    before = torch.cat([p.flatten() for p in build_policy().trainable_parameters()])
    metrics, _, batches, engine, trainer = stepped("dapo", ["equal"] * 12, algorithm__max_refills=2)
    assert metrics["update/skipped"] == 1.0
    assert trainer.update.step == 0  # it was a step all the same
    assert batches == engine.loaded == []
    assert torch.equal(torch.cat([p.flatten() for p in trainer.policy.trainable_parameters()]), before)


def test_unreadable_references_never_train_and_are_counted():
    kinds = ["mixed", "bad", "mixed", *["bad"] * 9]
    metrics, groups, (batch,), _, _ = stepped("grpo", kinds)
    assert batch.num_completions == 2 * 2
    assert metrics["verify/bad_reference_frac"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == 0.5  # of the groups that were judged
    assert len(groups) == 3
    with pytest.raises(UserError, match="no reference of this step's problems can be read"):
        stepped("grpo", ["bad"] * 12)
