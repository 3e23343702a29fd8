"""ALGORITHMS: rows as their papers say, every knob by itself, impossible combinations refused."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from double_policy import annotated, configured, double_policy
from policy.conftest import build_batch
from torch import tensor
from torch.testing import assert_close

from mathrl.algorithms.table import ALGORITHMS, KNOBS, resolve_algorithm
from mathrl.algorithms.trust_region import SHRINK
from mathrl.cli import main
from mathrl.commands import prepare as preparation
from mathrl.commands import train as job
from mathrl.config import AlgorithmConfig, RolloutConfig, UpdateConfig
from mathrl.errors import UserError
from mathrl.recipes import differences, load_recipe
from mathrl.training.batch import without_truncated
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.types import Completion, Group, Problem, Score

F64 = torch.float64


def resolved(name="grpo", *, rollout=None, update=None, **knobs):
    return resolve_algorithm(
        AlgorithmConfig(name=name, **knobs), RolloutConfig(**(rollout or {})), UpdateConfig(**(update or {}))
    )


PPO_CLIP = {"clip_low": 0.2, "clip_high": 0.2}  # arXiv:1707.06347, section 6.1: epsilon 0.2 was best
NO_KL = {"kl_coef": 0.0, "kl_estimator": "k3", "kl_place": "loss"}
PENALTY = {"kl_coef": 0.05, "kl_estimator": "k1", "kl_place": "reward"}  # TRL's default of RLOO and PPO
PLAIN = {"select": "all", "overlong_buffer": 0, "whiten_advantages": False, "rule": "first_order"}
GROUP = {"advantage": "group_norm", "ratio": "token", "surrogate": "clip"}
WHAT_THE_PAPERS_SAY = {
    # arXiv:2402.03300, section 4.2: KL coefficient 0.04; eq. 3: mean over own tokens; eq. 4: k3 in the loss
    "grpo": GROUP | PPO_CLIP | PLAIN | NO_KL | {"aggregation": "sequence_mean", "kl_coef": 0.04},
    # arXiv:2503.20783: neither the std nor the length divides, and no KL
    "dr_grpo": GROUP | PPO_CLIP | PLAIN | NO_KL | {"advantage": "group_centre", "aggregation": "constant"},
    # arXiv:2503.14476, section 4.1: 0.2 and 0.28; eq. 8; overlong buffer of 4,096 in 20,480 tokens, a fifth
    "dapo": GROUP | PLAIN | NO_KL | {
        "clip_low": 0.2, "clip_high": 0.28, "aggregation": "token_mean", "select": "rewards_differ",
        "overlong_buffer": None,
    },
    # arXiv:2402.14740: a completion is one action, leave-one-out, no clip, KL in the reward
    "rloo": PPO_CLIP | PLAIN | PENALTY | {
        "advantage": "leave_one_out", "ratio": "token", "surrogate": "none", "aggregation": "constant",
    },
    # arXiv:2507.18071, section 5.1: clipping ranges 3e-4 and 4e-4; eq. 7
    "gspo": GROUP | PLAIN | NO_KL | {
        "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "sequence_mean",
    },
    # arXiv:2506.13585, eq. 4: no lower bound; arXiv:2510.13786 cuts weights off at 5 = 1 + clip_high
    "cispo": GROUP | PLAIN | NO_KL | {
        "surrogate": "weighted_logprob", "clip_low": 1.0, "clip_high": 4.0, "aggregation": "token_mean",
    },
    # arXiv:2602.02710: centred rewards over their mean
    "maxrl": GROUP | PPO_CLIP | PLAIN | NO_KL | {"advantage": "group_ratio", "aggregation": "constant"},
    # Williams 1992, with the average reward as its baseline
    "reinforce": PPO_CLIP | PLAIN | NO_KL | {
        "advantage": "batch_centre", "ratio": "token", "surrogate": "none", "aggregation": "constant",
    },
    # arXiv:1707.06347, eq. 7 and 11; as arXiv:1909.08593 uses it on text: KL in the reward, whitening
    "ppo": PPO_CLIP | PLAIN | PENALTY | {
        "advantage": "gae", "ratio": "token", "surrogate": "clip", "aggregation": "token_mean",
        "whiten_advantages": True,
    },
    # arXiv:1502.05477: the trust region takes the place of the clip
    "trpo": PPO_CLIP | PLAIN | NO_KL | {
        "advantage": "group_centre", "ratio": "token", "surrogate": "none", "aggregation": "token_mean",
        "rule": "trust_region",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_constant_of_a_row_is_its_papers(name):
    row = ALGORITHMS[name]
    assert row.knobs | {"rule": row.update_rule} == WHAT_THE_PAPERS_SAY[name]


def test_constants_that_all_rows_share():
    """TRPO's as in its paper (delta 0.01, table 2) and in Spinning Up (damping 0.1, ten iterations, 0.8)."""
    config = AlgorithmConfig()
    assert (config.trust_region_kl, config.cg_iterations, config.cg_damping) == (0.01, 10, 0.1)
    assert (config.line_search_steps, SHRINK) == (10, 0.8)
    assert (config.gamma, config.gae_lambda, config.value_clip) == (1.0, 1.0, 0.2)
    assert config.correction_cap == 2.0  # as truncated importance sampling of engines is published
    resolved_row = resolved("trpo")
    assert (resolved_row.gamma, resolved_row.gae_lambda, resolved_row.correction_cap) == (1.0, 1.0, 2.0)


def test_rows_are_what_their_papers_say():
    rows = {name: row.knobs | {"rule": row.update_rule} for name, row in ALGORITHMS.items()}
    grpo = rows["grpo"]
    assert [grpo[k] for k in ("advantage", "ratio", "surrogate", "aggregation")] == [
        "group_norm",
        "token",
        "clip",
        "sequence_mean",
    ]
    assert (grpo["clip_low"], grpo["clip_high"], grpo["kl_estimator"], grpo["kl_place"]) == (
        0.2,
        0.2,
        "k3",
        "loss",
    )

    def changes(name, base="grpo"):
        return {k for k, v in rows[name].items() if v != rows[base][k]}

    assert changes("dr_grpo") == {"advantage", "aggregation", "kl_coef"}
    assert changes("dapo") == {"clip_high", "aggregation", "select", "overlong_buffer", "kl_coef"}
    assert changes("gspo") == {"ratio", "clip_low", "clip_high", "kl_coef"}
    assert changes("cispo") == {"surrogate", "clip_low", "clip_high", "aggregation", "kl_coef"}
    assert changes("reinforce", "rloo") == {"advantage", "kl_coef", "kl_estimator", "kl_place"}
    assert rows["ppo"]["advantage"] == "gae"
    assert rows["trpo"]["rule"] == "trust_region"
    assert resolved("dapo").overlong_buffer == 96 // 5


OTHER = {
    "advantage": "leave_one_out",
    "ratio": "sequence",
    "surrogate": "weighted_logprob",
    "clip_low": 0.6,
    "clip_high": 1.5,
    "aggregation": "constant",
    "kl_coef": 0.7,
    "kl_estimator": "k2",
    "kl_place": "reward",
    "select": "rewards_differ",
    "overlong_buffer": 4,
    "whiten_advantages": True,
}


@pytest.mark.parametrize("knob", KNOBS)
def test_every_knob_can_be_set_by_itself_and_changes_the_loss(knob):
    """One knob away from GRPO resolves to exactly that, and loss or gradient or batch are other ones."""
    plain, one = resolved("grpo"), resolved("grpo", **{knob: OTHER[knob]})
    assert {k for k in KNOBS if plain.knobs[k] != one.knobs[k]} == {knob}
    config, _ = configured("grpo")
    policy = double_policy()
    found = []
    for row in (plain, one):
        row = replace(row, max_completion_tokens=12)
        batch = annotated(policy, row, moved=0.5)
        groups = [group(0.0, 1.0), group(1.0, 1.0)]
        loss = PolicyLoss(config, row, correct=False).backward(policy, batch, Meter())
        gradient = torch.cat([p.grad.flatten() for p in policy.trainable_parameters()])
        for parameter in policy.trainable_parameters():
            parameter.grad = None
        found.append((loss.item(), gradient, len(row.select(groups))))
    same = found[0][2] == found[1][2] and torch.equal(found[0][1], found[1][1])
    assert not same


IMPOSSIBLE = [
    ({"name": "grpo", "rollout": {"group_size": 1}}, "group_size >= 2"),
    ({"name": "rloo", "rollout": {"group_size": 1}}, "group_size >= 2"),
    (
        {"name": "dapo", "advantage": "reward", "rollout": {"group_size": 1}},
        "rewards_differ drops every group",
    ),
    ({"name": "grpo", "kl_estimator": "k1"}, "expected gradient of zero"),
    ({"name": "dr_grpo", "kl_target": 0.1}, "kl_coef is 0"),
    ({"name": "ppo", "ratio": "sequence"}, "an advantage a token"),
    ({"name": "reinforce", "clip_low": 0.1}, "never clips"),
    ({"name": "grpo", "clip_low": 1.0}, "less than 1"),
    ({"name": "trpo", "surrogate": "clip"}, "replaces clipping"),
    ({"name": "trpo", "ratio": "sequence"}, "token's ratio"),
    ({"name": "trpo", "update": {"num_epochs": 2}}, "uses the whole rollout once"),
    ({"name": "trpo", "update": {"num_minibatches": 2}}, "uses the whole rollout once"),
    ({"name": "trpo", "update": {"compile": True}}, "differentiates twice"),
    ({"name": "grpo", "overlong_buffer": 96}, "must be less than rollout.max_completion_tokens 96"),
    ({"name": "dapo", "advantage": "gae"}, "mixed groups only"),
    ({"name": "gppo"}, "did you mean"),
    ({"name": "grpo", "advantage": "group_nrom"}, "did you mean 'group_norm'"),
]


@pytest.mark.parametrize(("settings", "words"), IMPOSSIBLE, ids=lambda v: str(v)[:60])
def test_impossible_combinations_are_refused_in_words(settings, words):
    with pytest.raises(UserError, match=words):
        resolved(**settings)


def test_they_are_refused_before_anything_is_loaded_or_written(tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise AssertionError("something was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job, "train_reference", fail)
    monkeypatch.setattr(preparation, "load_problems", fail)
    monkeypatch.setattr(job.Policy, "from_pretrained", fail)
    assert main(["train", "quickstart", "--algorithm.name", "trpo", "--algorithm.surrogate", "clip"]) == 2
    assert "the trust region replaces clipping" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_every_choice_of_the_recipe_is_a_function():
    from mathrl.algorithms import advantages, losses

    tables = {
        "ratio": losses.RATIOS,
        "surrogate": losses.SURROGATES,
        "aggregation": losses.AGGREGATIONS,
        "kl_estimator": losses.KL_ESTIMATORS,
    }
    for knob, table in tables.items():
        choices = get_args(get_args(AlgorithmConfig.model_fields[knob].annotation)[0])
        assert set(choices) == set(table)
    assert {row.advantage for row in ALGORITHMS.values()} <= {*advantages.COMPLETION_ADVANTAGES, "gae"}


# --- what a row does to rewards and groups ------------------------------------------------------------------


def group(*rewards: float) -> Group:
    completions = tuple(Completion((3, 1), "", "stop") for _ in rewards)
    return Group(
        Problem("p", "q", "1"),
        (5,),
        completions,
        scores=tuple(Score(r, "correct" if r else "wrong") for r in rewards),
    )


def test_dapo_drops_groups_with_equal_rewards():
    groups = [group(1, 1), group(1, 0), group(0, 0), group(0, 0.5)]
    assert resolved("dapo").select(groups) == [groups[1], groups[3]]
    assert resolved("grpo").select(groups) == groups


def test_overlong_penalty_enters_the_rewards_before_the_baseline():
    """Limit 10, buffer 4, lengths 7, 10, 6: -1/4, -1, 0."""
    algorithm = replace(
        resolved("dapo"), max_completion_tokens=10, overlong_buffer=4, advantage="group_centre"
    )
    batch = build_batch((7, 10, 6), (3,)).add(rewards=tensor([1.0, 1.0, 0.0]))
    shaped = tensor([0.75, 0.0, 0.0])
    got = algorithm.advantages(batch).advantages
    assert_close(got[:, 0], shaped - shaped.mean())
    assert_close(algorithm.reward_metrics(batch, 0.0), {"reward/overlong": -1.25 / 3})


@pytest.mark.parametrize("name", ["dapo", "rloo", "ppo"])
def test_what_is_cut_trains_no_more_and_counts_as_before(name):
    """Advantages and reward terms are those of all that was sampled, before and after the cut are masked."""
    algorithm = resolved(name, overlong_buffer=4) if name == "dapo" else resolved(name)
    batch = build_batch((7, 96, 6), (3,)).add(
        rewards=tensor([1.0, 1.0, 0.0]), truncated=tensor([False, True, False])
    )
    noise = torch.randn(3, *batch.loss_mask.shape, generator=torch.Generator().manual_seed(0))
    batch = batch.add(old_logprobs=noise[0], ref_logprobs=noise[1], values=noise[2])
    whole = algorithm.advantages(batch)
    cut = without_truncated(whole)
    assert cut.loss_mask.sum(1).tolist() == [7, 0, 6]
    assert algorithm.reward_metrics(cut, 0.5) == algorithm.reward_metrics(whole, 0.5) != {}
    assert torch.equal(algorithm.advantages(cut).advantages, whole.advantages)
    assert torch.equal(without_truncated(cut).sampled, whole.loss_mask)


def test_kl_in_the_reward_by_hand():
    """k1 of 0.2 and 0.4 nats at coefficient 0.5 costs a completion 0.3, or each token its part."""
    batch = build_batch((2, 2), (3,)).add(
        rewards=tensor([1.0, 0.0]),
        old_logprobs=tensor([[-1.0, -1.0], [-1.0, -1.0]]),
        ref_logprobs=tensor([[-1.2, -1.4], [-1.0, -1.0]]),
    )
    row = resolved("rloo", kl_coef=0.5)
    assert_close(row.advantages(batch).advantages[:, 0], tensor([0.7, -0.7]))
    assert_close(row.advantages(batch, kl_coef=0.0).advantages[:, 0], tensor([1.0, -1.0]))
    assert_close(row.reward_metrics(batch, 0.5), {"reward/kl": -0.15})
    critic = resolved("ppo", kl_coef=0.5, whiten_advantages=False, gae_lambda=1.0)
    got = critic.advantages(batch.add(values=torch.zeros(2, 2)))
    assert_close(got.advantages, tensor([[0.7, 0.8], [0.0, 0.0]]))
    assert_close(got.returns, got.advantages)


def test_ppo_value_targets_are_discounted_rewards():
    """lambda = 1, reward r at the end: the prefix k tokens before the end has the target gamma^k r."""
    row = resolved("ppo", kl_coef=0.0, gamma=0.9, gae_lambda=1.0, whiten_advantages=False)
    batch = build_batch((4, 2), (3,)).add(rewards=tensor([2.0, 1.0]))
    for values in (torch.zeros(2, 4), torch.randn(2, 4)):
        returns = row.advantages(batch.add(values=values)).returns
        assert_close(returns, tensor([[2 * 0.9**3, 2 * 0.9**2, 1.8, 2.0], [0.9, 1.0, 0, 0]]))


def test_whitening_spans_the_tokens_that_train():
    row = resolved("ppo", kl_coef=0.0)
    batch = build_batch((4, 2), (3,)).add(rewards=tensor([2.0, 1.0]), values=torch.randn(2, 4))
    got = row.advantages(batch).advantages[batch.loss_mask]
    assert_close(got.mean(), tensor(0.0), rtol=0, atol=1e-6)
    assert_close(got.std(correction=0), tensor(1.0), rtol=1e-4, atol=0)


def test_only_what_is_needed_is_computed():
    needs = {n: (r.needs_old, r.needs_reference, r.needs_values) for n, r in ALGORITHMS.items()}
    assert needs["grpo"] == (False, True, False)
    assert needs["dapo"] == needs["trpo"] == needs["gspo"] == (False, False, False)
    assert needs["ppo"] == (True, True, True)  # its KL is a reward, known before the update
    assert resolved("grpo", update={"num_epochs": 2}).needs_old
    assert not resolved("grpo", kl_coef=0.0).needs_reference
    assert resolved("trpo", advantage="gae").needs_values


@pytest.mark.parametrize("name", ["ppo", "trpo"])
def test_recipes_of_other_algorithms_differ_from_the_quickstart_in_the_algorithm_alone(name):
    changed = differences(load_recipe(name), load_recipe("quickstart"))
    sections = {key.split(".")[0] for key in changed} - {"recipe", "description"}
    assert sections <= {"algorithm", "update"}
    assert changed["algorithm.name"] == ("grpo", name)
    config = load_recipe(name)
    assert resolve_algorithm(config.algorithm, config.rollout, config.update).name == name
