"""What the trainer does with the groups of a step: drops, refills, skips, and leaves out."""

from dataclasses import replace

import pytest
import torch
from double_policy import configured
from policy.conftest import build_policy

from mathrl.data.stream import ProblemStream
from mathrl.errors import UserError
from mathrl.training.trainer import Hooks, Trainer
from mathrl.training.update import make_update
from mathrl.types import Completion, Group, Problem, Score

PROBLEMS = [Problem(str(i), f"q{i}", str(i)) for i in range(12)]


class Engine:
    """Every completion is two tokens; remembers what was asked and loaded."""

    def __init__(self):
        self.asked, self.loaded = [], []

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        self.asked.append([p.id for p in problems])
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


def stepped(name, kinds, **settings):
    """One step of a trainer whose problems come in order and have these kinds."""
    settings = {"rollout__problems_per_step": 3, "rollout__group_size": 2, **settings}
    config, algorithm = configured(name, **settings)
    policy, engine, batches = build_policy(), Engine(), []
    problems = ProblemStream(PROBLEMS, 0)
    given = iter(PROBLEMS)
    problems.take = lambda n: [next(given) for _ in range(n)]
    trainer = Trainer(
        config, algorithm, problems, engine, Rewards(kinds), policy, make_update(config, algorithm, policy),
        Hooks(on_batch=lambda index, batch: batches.append(batch)),
    )  # fmt: skip
    metrics, groups = trainer.step(0)
    return metrics, groups, batches, engine, policy


def test_dapo_refills_dropped_groups_within_its_budget():
    kinds = ["equal", "mixed", "equal", "equal", "mixed", "equal", "mixed", "mixed", *["equal"] * 4]
    metrics, groups, (batch,), engine, _ = stepped("dapo", kinds, algorithm__max_refills=3)
    assert engine.asked == [["0", "1", "2"], ["3", "4", "5"], ["6", "7", "8"]]  # four mixed groups: enough
    assert batch.num_completions == 3 * 2  # the first three of them
    assert len(groups) == 9  # metrics and samples tell of all
    assert metrics["reward/equal_frac"] == pytest.approx(5 / 9)
    _, _, (batch,), engine, _ = stepped("dapo", kinds, algorithm__max_refills=1)
    assert len(engine.asked) == 2
    assert batch.num_completions == 2 * 2
    _, _, (batch,), engine, _ = stepped("grpo", kinds)
    assert len(engine.asked) == 1
    assert batch.num_completions == 3 * 2


def test_a_step_without_anything_to_learn_is_skipped_and_says_so():
    before = torch.cat([p.flatten() for p in build_policy().trainable_parameters()])
    metrics, _, batches, engine, policy = stepped("dapo", ["equal"] * 12, algorithm__max_refills=2)
    assert metrics["update/skipped"] == 1.0
    assert batches == engine.loaded == []
    assert torch.equal(torch.cat([p.flatten() for p in policy.trainable_parameters()]), before)


def test_unreadable_references_never_train_and_are_counted():
    kinds = ["mixed", "bad", "mixed", *["bad"] * 9]
    metrics, groups, (batch,), _, _ = stepped("grpo", kinds)
    assert batch.num_completions == 2 * 2
    assert metrics["verify/bad_reference_frac"] == pytest.approx(1 / 3)
    assert metrics["reward/mean"] == 0.5  # of the groups that were judged
    assert len(groups) == 3
    with pytest.raises(UserError, match="no reference of this step's problems can be read"):
        stepped("grpo", ["bad"] * 12)
