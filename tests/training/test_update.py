"""First-order updates: what one step does to the weights, what it measures, and when it must not move."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from double_policy import NAMES, annotated, configured, double_policy
from policy.conftest import build_batch, build_policy
from torch import tensor
from torch.testing import assert_close

from mathrl.algorithms.losses import Totals
from mathrl.algorithms.trust_region import to_vector
from mathrl.errors import NonFiniteError
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import KlController, Meter, PolicyLoss
from mathrl.training.update import FirstOrder, learning_rate, make_update
from mathrl.types import TokenOutputs, derive_seed

F64 = torch.float64


def weights(policy) -> torch.Tensor:
    return to_vector([p.detach() for p in policy.trainable_parameters()]).clone()


# --- the step -----------------------------------------------------------------------------------------------


def test_grpo_on_policy_is_reinforce_through_the_whole_model():
    """One AdamW step: the gradient of the mean over completions of -A · mean log pi."""
    config, algorithm = configured("grpo", algorithm__kl_coef=0.0, update__learning_rate=1e-2)
    policy, plain = double_policy(), double_policy()
    batch = annotated(policy, algorithm, moved=0.0)
    metrics = FirstOrder(config, PolicyLoss(config, algorithm, correct=False), policy)(policy, batch)
    mask = batch.loss_mask
    rewards = batch.rewards.view(3, 3)
    advantages = (rewards - rewards.mean(1, keepdim=True)) / (
        rewards.std(1, correction=0, keepdim=True) + 1e-6
    )
    score = (plain.logprobs(batch).logprobs * mask).sum(1) / mask.sum(1)
    (-(advantages.flatten() * score).mean()).backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.trainable_parameters(), config.update.max_grad_norm)
    torch.optim.AdamW(plain.trainable_parameters(), lr=1e-2, weight_decay=0.0).step()
    assert_close(weights(policy), weights(plain), rtol=1e-9, atol=1e-9)
    assert_close(metrics["policy/grad_norm"], norm.item(), rtol=1e-9, atol=0)
    assert_close(metrics["policy/loss"], 0.0, rtol=0, atol=1e-12)  # ratio 1 and centred advantages
    assert metrics["policy/ratio_max"] == 1.0
    assert metrics["policy/clip_frac"] == 0.0


def test_several_updates_keep_the_logprobs_from_before_the_first():
    """Two epochs of two minibatches: the ratio leaves 1 and the clip bites; against a loop of plain torch."""
    settings = {"update__num_epochs": 2, "update__num_minibatches": 2, "update__learning_rate": 3e-2}
    config, algorithm = configured("grpo", algorithm__kl_coef=0.0, **settings)
    assert algorithm.needs_old
    policy, plain = double_policy(), double_policy()
    batch = annotated(policy, algorithm, moved=0.0)
    metrics = FirstOrder(config, PolicyLoss(config, algorithm, correct=False), policy)(policy, batch)
    assert metrics["policy/ratio_max"] > 1.2
    assert metrics["policy/clip_frac"] > 0
    assert metrics["policy/kl_old"] > 0

    old, mask, optimizer = batch.old_logprobs, batch.loss_mask, torch.optim.AdamW(
        plain.trainable_parameters(), lr=3e-2, weight_decay=0.0
    )  # fmt: skip
    shuffle = torch.Generator().manual_seed(derive_seed(config.run.seed, "minibatches", 1))
    for _ in range(2):
        for rows in torch.randperm(9, generator=shuffle).tensor_split(2):
            part_mask = mask[rows]
            ratio = ((plain.logprobs(batch).logprobs - old)[rows] * part_mask).exp()
            gain = torch.minimum(
                ratio * batch.advantages[rows], ratio.clamp(0.8, 1.2) * batch.advantages[rows]
            )
            loss = -((gain * part_mask).sum(1) / part_mask.sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.trainable_parameters(), config.update.max_grad_norm)
            optimizer.step()
    assert_close(weights(policy), weights(plain), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_learning_rate(schedule, rates):
    settings = {"schedule": schedule, "warmup_steps": 2, "learning_rate": 1.0}
    config, _ = configured("grpo", train__num_steps=6, **{f"update__{k}": v for k, v in settings.items()})
    assert [learning_rate(config, step) for step in range(6)] == pytest.approx(rates)


# --- what is measured ---------------------------------------------------------------------------------------


def test_sync_metrics_by_hand():
    """Gaps of 0, log 2 and -log 2 nats: weights 1, 2, 1/2; ESS (3.5)² / (3 · 5.25)."""
    config, algorithm = configured("grpo", algorithm__kl_coef=0.0)
    policy = build_policy()
    batch = build_batch((3,), (2,))
    batch = batch.add(advantages=torch.ones(1, 3), old_logprobs=torch.zeros(1, 3))
    batch = batch.add(sampling_logprobs=tensor([[0.0, -math.log(2), math.log(2)]]))
    meter = Meter()
    PolicyLoss(config, algorithm, correct=True).backward(policy, batch, meter)
    metrics = meter.metrics()
    assert metrics["sync/ess"] == pytest.approx(3.5**2 / (3 * 5.25))
    assert metrics["sync/gap_mean"] == pytest.approx(2 * math.log(2) / 3)
    assert metrics["sync/gap_max"] == pytest.approx(math.log(2))


def test_correction_weighs_the_surrogate_alone_and_is_off_for_an_exact_engine():
    for exact, given, expected in (
        (True, None, False),
        (False, None, True),
        (True, True, True),
        (False, False, False),
    ):
        config, algorithm = configured("grpo", **({} if given is None else {"algorithm__correction": given}))
        update = make_update(config, algorithm, build_policy(), engine_exact=exact)
        assert update.loss.correct is expected
    for settings in ({"rollout__top_p": 0.9}, {"rollout__top_k": 5}):  # the sampler is another distribution
        config, algorithm = configured("grpo", **settings)
        assert make_update(config, algorithm, build_policy()).loss.correct
    config, algorithm = configured("grpo", rollout__temperature=1.7)
    policy = double_policy()
    batch = annotated(policy, algorithm)
    batch = batch.add(sampling_logprobs=batch.old_logprobs - 1.0)  # e¹ > cap 2: every weight is 2
    found = {}
    for correct in (False, True):
        for coef in (0.0, 0.04):
            loss = PolicyLoss(config, replace(algorithm, kl_coef=coef), correct=correct)
            found[correct, coef] = loss.backward(policy, batch, Meter()).item()
    assert_close(found[True, 0.0], 2 * found[False, 0.0], rtol=1e-12, atol=0)
    assert_close(
        found[True, 0.04] - found[True, 0.0], found[False, 0.04] - found[False, 0.0], rtol=1e-9, atol=0
    )


def test_the_trainer_applies_the_sampling_temperature():
    config, algorithm = configured("grpo", rollout__temperature=1.7, algorithm__kl_coef=0.0)
    policy = double_policy()
    batch = annotated(policy, algorithm, moved=0.0)
    batch = batch.add(old_logprobs=policy.logprobs(batch, temperature=1.7).logprobs.detach())
    meter = Meter()
    PolicyLoss(config, algorithm, correct=False).backward(policy, batch, meter)
    assert meter.metrics()["policy/ratio_max"] == 1.0


@pytest.mark.parametrize(("name", "share"), [("dapo", 2 / 6), ("cispo", 4 / 6), ("reinforce", 0.0)])
def test_clipped_share_and_the_kl_to_the_policy_before_by_hand(name, share):
    """Ratios 1.25, 1.3, 1.3, 0.7, 0.7, 1 with advantages + + - + - -; bounds 0.8 and 1.28; a masked token."""
    knobs = {} if name == "reinforce" else {"algorithm__clip_low": 0.2, "algorithm__clip_high": 0.28}
    config, algorithm = configured(name, **knobs)
    policy = double_policy()
    batch = build_batch((7,), (2,))
    batch.loss_mask[0, 3] = False
    ratio = tensor([[1.25, 1.3, 1.3, 9.0, 0.7, 0.7, 1.0]], dtype=F64)
    batch = batch.add(advantages=tensor([[1.0, 1.0, -1.0, 1.0, 1.0, -1.0, -1.0]], dtype=F64))
    current = policy.logprobs(batch).logprobs.detach()
    batch = batch.add(old_logprobs=current - ratio.log())
    meter = Meter()
    PolicyLoss(config, algorithm, correct=False).backward(policy, batch, meter)
    metrics = meter.metrics()
    assert metrics["policy/clip_frac"] == pytest.approx(share)
    kept = ratio[batch.loss_mask]
    assert metrics["policy/kl_old"] == pytest.approx((kept - kept.log() - 1).mean().item())
    assert metrics["policy/ratio_max"] == pytest.approx(1.3)


def sums_of_tokens(loss, batch, probabilities, name) -> torch.Tensor:
    """(3,) a sum of the loss for each of three tokens by itself, at these probabilities."""
    found = []
    for token in range(3):
        one = batch.add(loss_mask=torch.arange(3)[None] == token)
        outputs = TokenOutputs(probabilities.log()[None])
        found.append(loss.rows(one, outputs, Totals.of(one.loss_mask)).sums[name])
    return torch.stack(found)


def test_both_kls_are_those_of_the_policy_that_sampled():
    """Over a distribution of three tokens: KL(old || new), and KL(policy || reference)."""
    one, two = tensor([0.7, 0.2, 0.1], dtype=F64), tensor([0.3, 0.3, 0.4], dtype=F64)
    expected = (one * (one / two).log()).sum()
    config, algorithm = configured("grpo")
    loss = PolicyLoss(config, algorithm, correct=False)
    batch = build_batch((3,), (2,)).add(advantages=torch.zeros(1, 3, dtype=F64))
    moved = batch.add(old_logprobs=one.log()[None])
    assert_close((one * sums_of_tokens(loss, moved, two, "kl_old")).sum(), expected)
    away = batch.add(ref_logprobs=two.log()[None])
    assert_close((one * sums_of_tokens(loss, away, one, "kl_ref")).sum(), expected)


@pytest.mark.parametrize("tokens", [16, 8192])
def test_the_median_completion_s_kl_does_not_feel_one_that_runs_away(tokens):
    config, algorithm = configured("grpo", update__micro_batch_tokens=tokens)
    policy = double_policy()
    batch = annotated(policy, algorithm, moved=0.0)
    own = policy.logprobs(batch).logprobs.detach()
    away = torch.full((batch.num_completions, 1), 0.1)
    away[3] = 12.0  # one completion, at every token
    mask = batch.loss_mask.clone()
    mask[5] = False  # a completion that trains nothing counts for nothing
    batch = batch.add(ref_logprobs=own + away, loss_mask=mask)
    meter = Meter()
    PolicyLoss(config, algorithm, correct=False).backward(policy, batch, meter)
    metrics = meter.metrics()
    assert metrics["policy/kl_ref_median"] == pytest.approx(math.exp(0.1) - 0.1 - 1)
    assert metrics["policy/kl_ref"] > 1000


def test_share_beyond_the_knee_is_counted():
    config, algorithm = configured("grpo", algorithm__kl_knee=2.0)
    policy = double_policy()
    batch = annotated(policy, algorithm, moved=0.0)
    own = policy.logprobs(batch).logprobs.detach()
    beyond = torch.zeros_like(batch.loss_mask)
    beyond[0, :3] = beyond[4, 2] = True
    batch = batch.add(ref_logprobs=own + torch.where(beyond, 2.5, 1.5))
    meter = Meter()
    PolicyLoss(config, algorithm, correct=False).backward(policy, batch, meter)
    assert meter.metrics()["policy/kl_knee_frac"] == pytest.approx(4 / batch.num_tokens)


def test_adaptive_kl_coefficient_by_hand():
    """arXiv:1909.08593: coef · (1 + 0.1 · clip(KL / target - 1, ±0.2))."""
    controller = KlController(0.1, target=0.02)
    for kl, expected in ((0.02, 0.1), (0.2, 0.102), (0.022, 0.102 * 1.01), (0.0, 0.102 * 1.01 * 0.98)):
        controller.observe(kl)
        assert controller.coef == pytest.approx(expected)
    fixed = KlController(0.1, target=0.0)
    fixed.observe(5.0)
    assert fixed.coef == 0.1


@pytest.mark.parametrize("name", ["grpo", "rloo", "trpo"])
def test_the_coefficient_adapts_in_a_run(name):
    settings = {"algorithm__kl_target": 1e-6, "algorithm__kl_coef": 0.1}
    config, algorithm = configured(name, **settings)
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    update(policy, annotated(policy, algorithm, moved=0.0))
    assert update.kl_coef == pytest.approx(0.102)  # far above its target


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_minibatches_in_which_nothing_trains_make_no_step(name):
    """One row of nine trains, in three minibatches: the weights of two passes over that row alone.

    A step of a gradient of zero would go on along the momentum of the first.
    """
    moved = []
    for num in (3, 1):
        settings = {"update__num_epochs": 2, "algorithm__value_epochs": 2, "update__num_minibatches": num}
        config, algorithm = configured(name, **settings)
        policy = double_policy()
        update = make_update(config, algorithm, policy)
        critic = update.critic.model.parameters if update.critic else []
        for parameter in critic:
            parameter.data = parameter.data.double()
        batch = annotated(policy, algorithm)
        batch.loss_mask[torch.arange(9) != 2] = False
        metrics = update(policy, batch)
        metrics.pop("value/explained_variance", None)
        moved.append((metrics, to_vector([*policy.trainable_parameters(), *critic]).detach()))
    assert_close(moved[0], moved[1], rtol=1e-10, atol=1e-12)


# --- not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_that_is_not_finite_moves_nothing_and_names_its_rows(name):
    config, algorithm = configured(name, update__num_minibatches=1)
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    update.critic = None
    batch = annotated(policy, algorithm, moved=0.0)
    advantages = batch.advantages.clone()
    advantages[[2, 7], 0] = float("nan")
    before = weights(policy)
    with pytest.raises(NonFiniteError, match="the loss is not finite") as told:
        update(policy, batch.add(advantages=advantages))
    assert set(told.value.rows) == {2, 7}
    assert torch.equal(weights(policy), before)
    if isinstance(update, FirstOrder):
        assert not update.optimizer.state


def test_rows_are_named_by_their_place_in_the_batch_not_in_the_minibatch():
    config, algorithm = configured("grpo", update__num_minibatches=3)
    policy = double_policy()
    batch = annotated(policy, algorithm, moved=0.0)
    batch.advantages[7, 0] = float("inf")
    with pytest.raises(NonFiniteError) as told:
        make_update(config, algorithm, policy)(policy, batch)
    assert told.value.rows == (7,)


@pytest.mark.parametrize("name", ["grpo", "trpo"])
def test_a_gradient_that_is_not_finite_moves_nothing_and_names_its_rows(name):
    """A finite loss whose derivative is not: one row's gradient becomes infinite on its way back."""
    config, algorithm = configured(name)
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    batch = annotated(policy, algorithm, moved=0.0)
    logprobs = policy.logprobs

    def spoiled(part, **kwargs):
        out = logprobs(part, **kwargs)
        if out.logprobs.requires_grad:
            bad = part.rewards == 0.25  # row 2 alone
            out.logprobs.register_hook(lambda g: torch.where(bad[:, None], torch.inf, 1.0) * g)
        return out

    policy.logprobs = spoiled
    before = weights(policy)
    with pytest.raises(NonFiniteError, match="the gradient is not finite") as told:
        update(policy, batch)
    assert told.value.rows == (2,)
    assert torch.equal(weights(policy), before)
    assert all(p.grad is None for p in policy.trainable_parameters())


# --- the reference, and going on ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grpo", "ppo", "trpo"])
def test_training_never_changes_the_reference(name):
    """Adapter off: the logprobs before and after are bit-equal, and so is the checksum of the base."""
    config, algorithm = configured(name, update__learning_rate=1e-2)
    policy = build_policy()
    update = make_update(config, algorithm, policy)
    batch = build_batch().add(rewards=torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1, 0]))

    def checksum() -> str:
        state = policy.model.get_base_model().state_dict()
        return hashlib.sha256(
            b"".join(v.numpy().tobytes() for n, v in state.items() if "lora_" not in n)
        ).hexdigest()

    reference, base, start = policy.logprobs(batch, reference=True).logprobs, checksum(), weights(policy)
    for _ in range(3):
        ready = annotate(
            policy,
            batch,
            MicroBatches(8192),
            old=True,
            reference=algorithm.needs_reference,
            values=algorithm.needs_values,
        )
        update(policy, algorithm.advantages(ready))
    assert not torch.equal(weights(policy), start)
    assert torch.equal(policy.logprobs(batch, reference=True).logprobs, reference)
    assert checksum() == base


@pytest.mark.parametrize("name", NAMES)
def test_an_update_goes_on_bit_equal_from_its_saved_state(name, tmp_path):
    """Two steps in one go, or one, save, load into a new policy, and one more."""
    settings = {"algorithm__value_warmup_steps": 0, "update__num_epochs": 1 if name == "trpo" else 2}
    config, algorithm = configured(name, **settings)

    def step(policy, update):
        batch = build_batch().add(rewards=torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 1, 0]))
        ready = annotate(
            policy,
            batch,
            MicroBatches(8192),
            old=algorithm.needs_old,
            reference=algorithm.needs_reference,
            values=algorithm.needs_values,
        )
        return update(policy, algorithm.advantages(ready, kl_coef=update.kl_coef))

    whole, first, second = (build_policy() for _ in range(3))
    update = make_update(config, algorithm, whole)
    step(whole, update)
    expected = step(whole, update)
    update = make_update(config, algorithm, first)
    step(first, update)
    torch.save(update.state_dict(), tmp_path / "state.pt")
    second.load_adapter(first.adapter())
    resumed = make_update(config, algorithm, second)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert step(second, resumed) == expected
    assert torch.equal(weights(second), weights(whole))
