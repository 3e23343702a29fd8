"""The value model and how it learns: numbers, gradients, what it leaves alone."""

import math

import numpy as np
import pytest
import torch
from double_policy import annotated, configured, double_policy
from policy.conftest import build_batch, build_policy
from torch import tensor
from torch.autograd import gradcheck
from torch.testing import assert_close

from mathrl.algorithms.advantages import gae
from mathrl.algorithms.losses import value_loss
from mathrl.algorithms.trust_region import to_vector
from mathrl.errors import NonFiniteError
from mathrl.policy.value import ValueModel
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.update import make_update
from mathrl.training.value_update import ValueUpdate, explained_variance

F64 = torch.float64
REWARDS = tensor([1.0, 0, 0, 1, 1, 0, 0, 1, 0])


def policy_weights(policy) -> torch.Tensor:
    return to_vector([p.detach() for p in policy.trainable_parameters()]).clone()


# --- numbers ------------------------------------------------------------------------------------------------


def test_value_loss_and_gae_against_numpy_loops():
    """Clipped value loss with its gradient, and GAE, once more by loops over completions and tokens."""
    rng = np.random.default_rng(0)
    values, old, rewards = (rng.normal(size=(4, 6)) for _ in range(3))
    lengths, gamma, lam, clip = (6, 1, 0, 3), 0.9, 0.8, 0.2
    mask = np.arange(6)[None] < np.array(lengths)[:, None]
    advantages, returns = np.zeros((4, 6)), np.zeros((4, 6))
    loss, slope = np.zeros((4, 6)), np.zeros((4, 6))
    for b, length in enumerate(lengths):
        for t in range(length):
            for k in range(t, length):
                after = old[b, k + 1] if k + 1 < length else 0.0
                advantages[b, t] += (gamma * lam) ** (k - t) * (rewards[b, k] + gamma * after - old[b, k])
            returns[b, t] = advantages[b, t] + old[b, t]
            free = (values[b, t] - returns[b, t]) ** 2
            held = (np.clip(values[b, t], old[b, t] - clip, old[b, t] + clip) - returns[b, t]) ** 2
            loss[b, t] = max(free, held) / 2
            inside = abs(values[b, t] - old[b, t]) < clip
            slope[b, t] = (values[b, t] - returns[b, t]) * (free >= held or inside)
    found = gae(*(torch.from_numpy(x) for x in (rewards, old, mask)), gamma, lam)
    assert_close(found[0].numpy(), advantages, rtol=1e-12, atol=1e-13)
    assert_close(found[1].numpy(), returns, rtol=1e-12, atol=1e-13)
    x = torch.from_numpy(values).requires_grad_()
    got = torch.where(torch.from_numpy(mask), value_loss(x, torch.from_numpy(old), found[1], clip), 0.0)
    got.sum().backward()
    assert_close(got.detach().numpy(), loss, rtol=1e-12, atol=1e-13)
    assert_close(x.grad.numpy(), slope, rtol=1e-12, atol=1e-13)


def test_value_loss_gradcheck():
    old, returns = tensor([0.0, 0.0, 0.0, 1.0], dtype=F64), tensor([1.0, -1.0, 0.1, 1.5], dtype=F64)
    values = tensor([0.1, 0.5, 0.15, 0.3], dtype=F64, requires_grad=True)
    assert gradcheck(lambda v: value_loss(v, old, returns, 0.2), values)


def test_explained_variance_by_hand():
    mask = tensor([[True, True, False], [True, True, True]])
    returns = tensor([[0.0, 1.0, 50.0], [0.0, 1.0, 0.5]])
    half = torch.where(mask, returns / 2, -70.0)
    assert explained_variance(returns.clone(), returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(returns, 0.3), returns, mask) == pytest.approx(0.0)
    assert explained_variance(half, returns, mask) == pytest.approx(0.75)  # errors half as large
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)
    assert explained_variance(half, torch.ones_like(returns), mask) == 0.0  # nothing to explain
    assert explained_variance(half, returns, torch.zeros_like(mask)) == 0.0


# --- the model ----------------------------------------------------------------------------------------------


def test_it_starts_at_the_expected_reward_and_costs_an_adapter():
    policy, batch = build_policy(), build_batch()
    before, base = policy.logprobs(batch).logprobs, sum(p.numel() for p in policy.model.parameters())
    model = ValueModel(policy, rank=4, seed=0, initial=0.25)
    values = model(batch)
    assert torch.equal(values, torch.where(batch.loss_mask, 0.25, 0.0))
    added = sum(p.numel() for p in policy.model.parameters()) - base
    adapter = sum(p.numel() for p in policy.trainable_parameters())  # rank 4 as well
    assert added == adapter
    assert sum(p.numel() for p in model.parameters) == adapter + policy.head_weight().shape[1] + 1
    assert torch.equal(policy.logprobs(batch).logprobs, before)


def test_policy_and_value_adapters_do_not_meet():
    """Neither's gradient reaches the other; moving one leaves the other's results bit-equal."""
    policy, batch = build_policy(), build_batch()
    model = ValueModel(policy, rank=4, seed=0)
    with torch.no_grad():
        model.head.normal_()
        for parameter in model.parameters[:-2]:
            parameter.normal_(0, 0.1)
    logprobs, values = policy.logprobs(batch).logprobs, model(batch)
    reference = policy.logprobs(batch, reference=True).logprobs
    values.sum().backward()
    assert all(p.grad is None for p in policy.trainable_parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in model.parameters) == len(model.parameters)
    for parameter in model.parameters:
        parameter.grad = None
    logprobs.sum().backward()
    assert all(p.grad is None for p in model.parameters)
    assert all(p.grad is not None for p in policy.trainable_parameters())
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05)
    assert torch.equal(model(batch), values)
    moved = policy.logprobs(batch).logprobs
    with torch.no_grad():
        for parameter in model.parameters:
            parameter.add_(0.05)
    assert torch.equal(policy.logprobs(batch).logprobs, moved)
    assert torch.equal(policy.logprobs(batch, reference=True).logprobs, reference)
    assert not torch.equal(model(batch), values)


def test_it_sees_the_prefix_and_not_the_token_itself():
    """V_t is the value before token t: changing token t changes no value up to t, but the next ones."""
    policy, batch = build_policy(), build_batch((6,), (4,))
    model = ValueModel(policy, rank=4, seed=0)
    with torch.no_grad():
        model.head.normal_()
    values = model(batch)
    ids = batch.completion_ids.clone()
    ids[0, 2] = ids[0, 2] % 50 + 3
    changed = (model(batch.add(completion_ids=ids)) != values)[0]
    assert changed.tolist() == [False, False, False, True, True, True]


# --- how it learns ------------------------------------------------------------------------------------------


def critic(**settings):
    config, algorithm = configured("ppo", **{f"algorithm__{k}": v for k, v in settings.items()})
    policy = build_policy()
    update = make_update(config, algorithm, policy)

    def ready():
        batch = build_batch().add(rewards=REWARDS)
        batch = annotate(policy, batch, MicroBatches(8192), old=True, reference=True, values=True)
        return algorithm.advantages(batch)

    return policy, update, ready


def test_it_learns_which_completions_were_rewarded():
    policy, update, ready = critic(kl_coef=0.0, value_learning_rate=2e-2, value_warmup_steps=40)
    metrics = [update(policy, ready()) for _ in range(40)]
    assert metrics[0]["value/explained_variance"] == pytest.approx(0.0)  # a constant explains nothing
    assert metrics[-1]["value/explained_variance"] > 0.7
    assert metrics[-1]["value/loss"] < 0.3 * metrics[0]["value/loss"]


def test_value_pre_training_leaves_the_policy_alone_for_its_steps():
    policy, update, ready = critic(value_warmup_steps=2)
    start = policy_weights(policy)
    for step in range(3):
        before = to_vector([p.detach() for p in update.critic.model.parameters]).clone()
        metrics = update(policy, ready())
        assert "value/explained_variance" in metrics
        assert not torch.equal(to_vector([p.detach() for p in update.critic.model.parameters]), before)
        assert torch.equal(policy_weights(policy), start) is (step < 2)
        assert ("policy/loss" in metrics) is (step == 2)
    state = update.state_dict()
    assert (state["num_calls"], state["critic"]["num_calls"]) == (3, 3)


def test_the_clip_holds_a_rollouts_values_near_where_they_were():
    """Many passes over one rollout end about value_clip from the old values, however far the returns are."""
    found = {}
    for clip in (0.05, 10.0):
        _, update, ready = critic(value_clip=clip, value_epochs=60, value_learning_rate=2e-3, kl_coef=0.0)
        batch = ready()
        update.critic.learn(batch)
        gap = (update.critic.model(batch) - batch.values)[batch.loss_mask]
        found[clip] = gap.abs().mean().item()
    assert found[10.0] > 0.35  # returns are 0.5 away
    assert 0.03 < found[0.05] < 0.2


def test_micro_batches_do_not_matter_to_the_critic():
    found = []
    for tokens in (8192, 16):
        config, algorithm = configured("ppo", update__micro_batch_tokens=tokens)
        policy = double_policy()
        model = ValueModel(policy, 4, seed=0, initial=0.5)
        for parameter in model.parameters:
            parameter.data = parameter.data.double()
        batch = annotated(policy, algorithm)
        metrics = ValueUpdate(config, model).learn(
            algorithm.advantages(batch.add(values=model(batch).detach()))
        )
        found.append((metrics, to_vector([p.detach() for p in model.parameters])))
    assert_close(found[0][0], found[1][0], rtol=1e-10, atol=1e-10)
    assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_moves_nothing_and_names_its_rows(where, monkeypatch):
    policy, update, ready = critic()
    batch = ready()
    model = update.critic.model
    before = to_vector([p.detach() for p in model.parameters]).clone()
    if where == "loss":
        batch.returns[4, 1] = math.nan
    else:
        forward = ValueModel.__call__

        def spoiled(self, part):
            values = forward(self, part)
            if values.requires_grad:
                bad = (part.rewards == 1) & (part.lengths == 7)  # row 7 alone
                values.register_hook(lambda g: torch.where(bad[:, None], torch.inf, 1.0) * g)
            return values

        monkeypatch.setattr(ValueModel, "__call__", spoiled)
    with pytest.raises(NonFiniteError, match="value") as told:
        update(policy, batch)
    assert told.value.rows == ((4,) if where == "loss" else (7,))
    assert torch.equal(to_vector([p.detach() for p in model.parameters]), before)
