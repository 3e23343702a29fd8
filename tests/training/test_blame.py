"""Numbers that are not finite are blamed on what is broken: the model, adapter, critic, or completions."""

import math

import pytest
import torch
from double_policy import annotated, configured, double_policy

from mathrl.errors import NonFiniteError
from mathrl.training.blame import broken_weights, explain
from mathrl.training.sentinel import Sentinel
from mathrl.training.update import make_update
from mathrl.types import Completion, Group, Problem


def broken(name: str, which: str):
    """A policy, its update and a batch; one of the weights is not a number."""
    config, algorithm = configured(name)
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    batch = annotated(policy, algorithm, moved=0.0)
    tensors = {
        "model": [p for n, p in policy.model.named_parameters() if "lora" not in n],
        "adapter": policy.trainable_parameters(),
        "value model": update.critic.model.parameters if update.critic else (),
    }
    if which:
        with torch.no_grad():
            tensors[which][-1].view(-1)[0] = math.nan
    return policy, update, batch


GROUPS = [Group(Problem(n, "q", "1"), (1,), (Completion((2,), "", "stop"),) * 3) for n in "abc"]


@pytest.mark.parametrize(
    ("name", "which", "advice"),
    [
        ("grpo", "adapter", "go back to a checkpoint"),
        ("grpo", "model", "broken before this run"),
        ("trpo", "adapter", "go back to a checkpoint"),
        ("ppo", "value model", "go back to a checkpoint"),
    ],
)
def test_weights_that_are_not_finite_are_named_and_no_completion_is(name, which, advice):
    policy, update, batch = broken(name, which)
    found = broken_weights(policy, update)
    assert found is not None
    assert found[0] == which
    with pytest.raises(NonFiniteError) as met:
        update(policy, batch)
    told = explain(met.value, policy, update, GROUPS, 4)
    assert str(told).startswith("step 4: ")
    assert f"weights of the {which} are not finite ({found[1]})" in str(told)
    assert "no completion is to blame" in str(told)
    assert advice in str(told)
    assert "#" not in str(told)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_completions_are_named_where_the_weights_are_whole(name):
    policy, update, _ = broken(name, "")
    assert broken_weights(policy, update) is None
    told = explain(NonFiniteError("the loss is not finite", (1, 8)), policy, update, GROUPS, 1)
    assert "completions a#2, c#3)" in str(told)  # counted from 1
    assert told.rows == (1, 8)


class Engine:
    """Scores whatever it is asked."""

    def sample(self, problems, group_size, sampling=None, *, seed=0, on_completion=None):
        return [Group(p, (1, 2), (Completion((3, 4), "", "stop"),)) for p in problems]

    def score(self, prompts, completions):
        return [[-1.0] * len(c) for c in completions]


def test_the_engine_is_not_blamed_for_weights_that_overflowed():
    policy, _, _ = broken("grpo", "adapter")
    sentinel = Sentinel(Engine(), policy, [g.problem for g in GROUPS], max_gap=99.0)
    with pytest.raises(NonFiniteError, match="no engine is to blame"):
        sentinel.check()
