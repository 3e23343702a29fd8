"""Fisher products against dense Hessians, CG against dense solves, steps against measured KL; float64."""

import math

import pytest
import torch
from double_policy import annotated, configured, double_policy
from torch import tensor
from torch.autograd.functional import hessian
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from mathrl.algorithms import trust_region
from mathrl.algorithms.trust_region import (
    GaussNewton,
    Trial,
    boundary_scale,
    compare_tokens,
    conjugate_gradient,
    fisher_logits_product,
    from_vector,
    line_search,
    to_vector,
)
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.trust_region_update import TrustRegion, _Fisher
from mathrl.training.update import make_update
from mathrl.types import Batch

F64 = torch.float64


class Categorical:
    """softmax(tanh(x A + b) Wᵀ / τ): five tokens, six words, width three."""

    def __init__(self, temperature: float = 1.0):
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, dtype=F64, generator=generator)  # noqa: E731
        self.x, self.head, self.temperature = draw(5, 4), draw(6, 3), temperature
        self.parameters = [Parameter(draw(4, 3)), Parameter(draw(3))]

    def hidden(self, a, b):
        return torch.tanh(self.x @ a + b)

    def logprobs(self, flat):
        hidden = self.hidden(*from_vector(flat, self.parameters))
        return (hidden @ self.head.t() / self.temperature).log_softmax(-1)

    def dense(self):
        """(n, n) Hessian of the summed KL(old || new) at the old weights, by automatic differentiation."""
        flat = to_vector([p.detach() for p in self.parameters])
        old = self.logprobs(flat).detach()
        return hessian(lambda new: (old.exp() * (old - self.logprobs(new))).sum(), flat)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.5])
def test_fisher_products_are_those_of_the_dense_hessian(temperature):
    model = Categorical(temperature)
    product = GaussNewton(model.hidden(*model.parameters), model.head, model.parameters, temperature)
    dense = model.dense()
    assert dense.norm() > 0.1
    columns = torch.stack([product(v) for v in torch.eye(len(dense), dtype=F64)], 1)
    assert_close(columns, dense, rtol=1e-10, atol=1e-12)


def test_fisher_of_the_logits_by_hand_and_in_chunks(monkeypatch):
    """diag p - p pᵀ of p = (1/2, 1/4, 1/4): the product with (1, 0, 0) is (1/4, -1/8, -1/8)."""
    hidden = tensor([[0.5, 0.25, 0.25]], dtype=F64).log()
    got = fisher_logits_product(hidden, tensor([[1.0, 0, 0]], dtype=F64), torch.eye(3, dtype=F64), 1.0)
    assert_close(got, tensor([[0.25, -0.125, -0.125]], dtype=F64))
    generator = torch.Generator().manual_seed(1)
    hidden, tangent = (torch.randn(7, 3, dtype=F64, generator=generator) for _ in range(2))
    head, targets = torch.randn(6, 3, dtype=F64, generator=generator), torch.arange(7) % 6
    whole = fisher_logits_product(hidden, tangent, head, 1.3)
    moved = compare_tokens(hidden, hidden + 0.1 * tangent, head, targets, 1.3)
    monkeypatch.setattr(trust_region, "CHUNK_LOGITS", 12)  # two tokens at a time
    assert_close(fisher_logits_product(hidden, tangent, head, 1.3), whole, rtol=1e-13, atol=1e-14)
    for one, other in zip(
        compare_tokens(hidden, hidden + 0.1 * tangent, head, targets, 1.3), moved, strict=True
    ):
        assert_close(one, other, rtol=1e-13, atol=1e-14)


def test_compare_tokens_by_hand():
    """KL((1/2, 1/2) || (1/4, 3/4)) = log(2/√3), and the logprobs of the chosen words."""
    old, new = tensor([[0.5, 0.5]], dtype=F64).log(), tensor([[0.25, 0.75]], dtype=F64).log()
    moved = compare_tokens(old, new, torch.eye(2, dtype=F64), tensor([1]), 1.0)
    assert_close(moved.kl, tensor([math.log(2 / math.sqrt(3))], dtype=F64))
    assert_close(moved.old_logprobs, tensor([math.log(0.5)], dtype=F64))
    assert_close(moved.new_logprobs, tensor([math.log(0.75)], dtype=F64))
    empty = compare_tokens(old[:0], new[:0], torch.eye(2, dtype=F64), tensor([1])[:0], 1.0)
    assert [len(t) for t in empty] == [0, 0, 0]


# --- conjugate gradient -------------------------------------------------------------------------------------


def spd(n: int, rank: int | None = None) -> torch.Tensor:
    root = torch.randn(n, rank or n, dtype=F64, generator=torch.Generator().manual_seed(n))
    return root @ root.t() + (0.0 if rank else 0.1) * torch.eye(n, dtype=F64)


def test_conjugate_gradient_equals_a_dense_solve():
    a = spd(9)
    b = torch.arange(1.0, 10.0, dtype=F64)
    solved = conjugate_gradient(lambda v: a @ v, b, iterations=40)
    assert_close(solved.x, torch.linalg.solve(a, b), rtol=1e-8, atol=1e-10)
    assert_close(solved.image, a @ solved.x, rtol=1e-10, atol=1e-10)
    assert solved.residual <= 1e-10
    assert 9 <= solved.iterations < 40  # nine in exact arithmetic


def test_conjugate_gradient_minimises_the_energy_over_the_krylov_space():
    """After m iterations x is the best of span{b, A b, …}: that is what truncating it gives up."""
    a, b, m = spd(9), torch.ones(9, dtype=F64), 3
    solved = conjugate_gradient(lambda v: a @ v, b, iterations=m)
    basis = torch.stack([torch.linalg.matrix_power(a, k) @ b for k in range(m)], 1)
    best = basis @ torch.linalg.solve(basis.t() @ a @ basis, basis.t() @ b)
    assert solved.iterations == m
    assert_close(solved.x, best, rtol=1e-7, atol=1e-9)
    assert_close(solved.residual, float((b - a @ best).norm() / b.norm()), rtol=1e-6, atol=1e-9)


def test_conjugate_gradient_of_nothing_and_of_directions_without_curvature():
    zero = torch.zeros(4, dtype=F64)
    solved = conjugate_gradient(lambda v: v, zero, 5)
    assert not solved.x.any()
    assert (solved.residual, solved.iterations) == (0.0, 0)
    flat = conjugate_gradient(lambda v: torch.zeros_like(v), torch.ones(4, dtype=F64), 5)
    assert not flat.x.any()
    assert flat.residual == 1.0
    a = spd(6, rank=2)
    b = a @ torch.ones(6, dtype=F64)  # in the range: solvable though singular
    assert_close(a @ conjugate_gradient(lambda v: a @ v, b, 6).x, b, rtol=1e-8, atol=1e-9)


# --- the step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [1e-6, 1e-4])
def test_on_a_bandit_the_step_is_the_analytic_natural_gradient(delta):
    """Softmax over arms with rewards r: F⁻¹ g = r - mean r, and sᵀ F s = Var_p(r) (Kakade 2001)."""
    logits = Parameter(tensor([[0.3, -1.0, 0.8, 0.1]], dtype=F64))
    rewards, arms = tensor([1.0, 0.0, 0.25, -0.5], dtype=F64), torch.eye(4, dtype=F64)
    p = logits.detach()[0].softmax(0)
    (gradient,) = torch.autograd.grad((logits.softmax(-1)[0] * rewards).sum(), logits)
    fisher = GaussNewton(logits * 1.0, arms, [logits])
    solved = conjugate_gradient(fisher, gradient.flatten(), iterations=10)
    assert_close(solved.x, rewards - rewards.mean(), rtol=1e-8, atol=1e-10)
    variance = (p * rewards.square()).sum() - (p * rewards).sum() ** 2
    curvature = float(solved.x @ solved.image)
    assert_close(curvature, variance.item(), rtol=1e-9, atol=0)
    step = boundary_scale(curvature, delta) * solved.x
    moved = compare_tokens(logits.detach(), logits.detach() + step, arms, tensor([0]), 1.0)
    assert_close(
        moved.kl.item(), delta, rtol=3 * math.sqrt(delta), atol=0
    )  # quadratic KL is exact to 3rd order
    after = ((logits.detach()[0] + step).softmax(0) * rewards).sum()
    assert_close((after - (p * rewards).sum()).item(), math.sqrt(2 * delta * variance), rtol=0.05, atol=0)


def test_boundary_scale():
    assert boundary_scale(0.5, 0.01) == pytest.approx(0.2)
    assert boundary_scale(0.0, 0.01) == 0.0
    assert boundary_scale(-1e-9, 0.01) == 0.0


@pytest.mark.parametrize(
    ("trials", "fraction"),
    [
        ([(0.9, 0.01)], 1.0),
        ([(0.9, 0.02), (0.95, 0.01)], 0.8),  # too far
        ([(1.0, 0.001), (1.1, 0.001), (0.99, 0.001)], 0.64),  # no better, worse, better
        ([(math.nan, 0.001), (0.9, math.nan), (0.9, 0.005)], 0.64),  # not finite: refused
        ([(0.9, 0.011)] * 3, 0.0),
        ([(1.0, 0.0)] * 3, 0.0),
    ],
)
def test_line_search(trials, fraction):
    asked = []

    def measure(part):
        asked.append(part)
        return Trial(*trials[len(asked) - 1])

    taken = line_search(measure, loss_before=1.0, delta=0.01, shrinkages=2)
    assert taken.fraction == pytest.approx(fraction)
    assert asked == pytest.approx([0.8**k for k in range(len(trials))])
    assert taken.trial == (Trial(*trials[-1]) if fraction else Trial(1.0, 0.0))


# --- on a policy --------------------------------------------------------------------------------------------


def weights(policy) -> torch.Tensor:
    return to_vector([p.detach() for p in policy.trainable_parameters()]).clone()


def full_logprobs(policy, batch: Batch) -> torch.Tensor:
    """(N, V) of the tokens that train, from hidden states and head."""
    hidden = policy.hidden_states(batch)[batch.loss_mask]
    return (hidden @ policy.head_weight().t()).log_softmax(-1)


def trust_region_update(policy, **settings) -> tuple[TrustRegion, Batch]:
    config, algorithm = configured("trpo", **{f"algorithm__{k}": v for k, v in settings.items()})
    update = make_update(config, algorithm, policy)
    assert isinstance(update, TrustRegion)
    return update, annotated(policy, algorithm, moved=0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro_batch_tokens": 40},
        {"gradient_checkpointing": True},
        {"share_prompts": False, "fused_lora": False},
    ],
)
def test_fisher_products_of_the_policy_are_second_derivatives_of_its_kl(settings):
    policy = double_policy(**settings)
    config, algorithm = configured("trpo", **{f"update__{k}": v for k, v in settings.items()})
    batch, parameters = annotated(policy, algorithm), policy.trainable_parameters()
    vector = torch.randn(
        sum(p.numel() for p in parameters), dtype=F64, generator=torch.Generator().manual_seed(3)
    )
    parts = MicroBatches(config.update.micro_batch_tokens)
    got = _Fisher(policy, batch, parameters, config, parts)(vector)
    policy = double_policy()
    parameters = policy.trainable_parameters()
    with sdpa_kernel(SDPBackend.MATH):
        new = full_logprobs(policy, batch)
        old = new.detach()
        kl = (old.exp() * (old - new)).sum(-1).mean()
        gradient = to_vector(torch.autograd.grad(kl, parameters, create_graph=True))
        expected = to_vector(torch.autograd.grad(gradient @ vector, parameters))
    assert expected.norm() > 0.01
    assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("damping", [0.0, 0.1, 3.0])
def test_the_step_ends_where_the_undamped_quadratic_kl_is_delta(damping):
    """Damping bends the direction; how far it goes is measured without it: s F s / 2 = delta."""
    delta = 0.02
    policy = double_policy()
    update, batch = trust_region_update(policy, trust_region_kl=delta, cg_damping=damping, cg_iterations=6)
    gradient = torch.randn(
        sum(p.numel() for p in update.parameters), dtype=F64, generator=torch.Generator().manual_seed(5)
    )
    step, solved = update._boundary_step(policy, batch, gradient)
    fisher = _Fisher(policy, batch, update.parameters, update.config, MicroBatches(10_000))
    assert_close(float(step @ fisher(step)) / 2, delta, rtol=1e-8, atol=0)
    along = solved.x / solved.x.norm()
    assert_close(step / step.norm(), along, rtol=1e-9, atol=1e-12)
    assert float(step @ gradient) < 0  # downhill


def test_the_sample_for_the_curvature_is_drawn_anew_each_step():
    """A third of nine completions; over some steps all of them come in, and a step is the same again."""
    policy = double_policy()
    update, batch = trust_region_update(policy, fisher_fraction=1 / 3)
    tagged = batch.add(rewards=torch.arange(9.0))
    drawn = []
    for call in range(12):
        update.num_calls = call
        drawn.append(tuple(update._sample(tagged).rewards.tolist()))
        assert drawn[-1] == tuple(update._sample(tagged).rewards.tolist())
    assert all(len(set(rows)) == 3 for rows in drawn)
    assert len(set(drawn)) > 8
    assert {row for rows in drawn for row in rows} == set(range(9))
    update, _ = trust_region_update(policy, fisher_fraction=0.01)
    assert update._sample(tagged).num_completions == 1  # one at least


def test_a_step_that_runs_out_of_memory_is_made_in_halves(monkeypatch):
    moved, metrics = [], []
    for room in (None, 20):
        policy = double_policy()
        update, batch = trust_region_update(policy)
        hidden_states, largest = policy.hidden_states, []

        def tight(part, room=room, hidden_states=hidden_states, largest=largest):
            if room and torch.is_grad_enabled() and part.num_tokens > room:  # a graph takes the memory
                raise torch.OutOfMemoryError("planted")
            largest.append(part.num_tokens)
            return hidden_states(part)

        monkeypatch.setattr(policy, "hidden_states", tight)
        metrics.append(update(policy, batch))
        moved.append(weights(policy))
        assert batch.num_tokens > 20
        assert (update.loss.micro_batches.max_tokens < 64) == bool(room)
    assert metrics[0]["trust_region/accepted"] == 1
    assert_close(moved[0], moved[1], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("delta", [1e-4, 1e-2, 0.3])
@pytest.mark.parametrize("advantage", ["group_centre", "gae"])
def test_every_accepted_step_is_within_the_measured_kl_and_improves(delta, advantage):
    policy = double_policy()
    update, batch = trust_region_update(policy, trust_region_kl=delta, advantage=advantage, value_rank=2)
    update.critic = None  # its own tests are in test_value.py
    accepted = 0
    for _ in range(4):
        old, start = full_logprobs(policy, batch).detach(), weights(policy)
        metrics = update(policy, batch)
        new = full_logprobs(policy, batch).detach()
        kl = (old.exp() * (old - new)).sum(-1).mean().item()
        targets, mask = batch.completion_ids[batch.loss_mask], batch.loss_mask
        ratio = (new - old).gather(1, targets[:, None])[:, 0].exp()
        gain = ((ratio - 1) * batch.advantages[mask]).mean().item()
        assert_close(metrics["trust_region/kl"], kl, rtol=1e-9, atol=1e-15)
        assert_close(metrics["trust_region/improvement"], gain, rtol=1e-9, atol=1e-13)
        if metrics["trust_region/accepted"]:
            accepted += 1
            assert 0 < kl <= delta
            assert gain > 0
        else:
            assert torch.equal(weights(policy), start)
    assert accepted >= 3
    assert kl > 0.2 * delta  # and it goes nearly as far as it may


def test_a_refused_step_leaves_the_weights_bit_equal_and_says_so(monkeypatch):
    policy = double_policy()
    update, batch = trust_region_update(policy)
    before = weights(policy)
    measure, asked = TrustRegion._measure, []

    def worse(self, policy, parts, totals, moved=True):
        trial = measure(self, policy, parts, totals, moved)
        asked.append(trial)
        return trial if not moved else Trial(trial.loss + 10.0, trial.kl)

    monkeypatch.setattr(TrustRegion, "_measure", worse)
    metrics = update(policy, batch)
    assert len(asked) == 1 + 11  # the old weights, the full step, ten shrinkages
    assert torch.equal(weights(policy), before)
    names = ("accepted", "kl", "step_fraction", "improvement")
    assert [metrics[f"trust_region/{name}"] for name in names] == [0.0] * 4


def test_no_advantage_no_step():
    policy = double_policy()
    update, batch = trust_region_update(policy)
    before = weights(policy)
    metrics = update(policy, batch.add(advantages=torch.zeros_like(batch.advantages)))
    assert torch.equal(weights(policy), before)
    assert metrics["trust_region/accepted"] == 0.0
    assert metrics["policy/grad_norm"] == 0.0


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, and of the largest as wide as the words."""

    numel = logits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor_ in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor_, torch.Tensor):
                self.numel = max(self.numel, tensor_.numel())
                if tensor_.dim() == 2 and tensor_.shape[1] == 61 and len(tensor_) != 32:  # 32: the head's own
                    self.logits = max(self.logits, tensor_.numel())
        return out


def test_no_matrix_over_parameters_or_words_is_ever_formed(monkeypatch):
    """Nor, where old and new are compared, the logits of more tokens than a chunk."""
    policy = double_policy()
    config, algorithm = configured("trpo")
    update, batch = make_update(config, algorithm, policy), annotated(policy, algorithm, (3, 1, 4), moved=0.0)
    n, vocabulary = sum(p.numel() for p in update.parameters), policy.head_weight().shape[0]
    gradient = torch.randn(n, dtype=F64, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        update._boundary_step(policy, batch, gradient)
    assert largest.numel <= n < min(vocabulary**2, n**2)
    monkeypatch.setattr(trust_region, "CHUNK_LOGITS", 2 * vocabulary)
    hidden, targets = (
        policy.hidden_states(batch)[batch.loss_mask].detach(),
        batch.completion_ids[batch.loss_mask],
    )
    with Largest() as largest:
        compare_tokens(hidden, hidden, policy.head_weight(), targets, 1.0)
    assert largest.logits == 2 * vocabulary < batch.num_tokens * vocabulary
