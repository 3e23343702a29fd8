"""Memory that runs out in a micro-batch changes neither the loss, nor the gradients, nor the metrics."""

import pytest
import torch
from policy.conftest import build_batch, build_policy
from policy.test_policy import assert_gradients_close

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config
from mathrl.errors import NonFiniteError, UserError
from mathrl.policy.cpu import blocked
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import Meter, PolicyLoss

LENGTHS = (5, 1, 9, 4, 12, 3, 1, 7, 8)


def scored_batch(policy):
    batch = build_batch(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.loss_mask.shape, generator=generator)
    batch = annotate(policy, batch, MicroBatches(8192), old=True, reference=True)
    return batch.add(
        advantages=torch.randn(len(LENGTHS), 1, generator=generator) * batch.loss_mask,
        old_logprobs=batch.old_logprobs + 0.1 * noise,
        sampling_logprobs=batch.old_logprobs,
    )


def run_update(policy, batch, tokens: int) -> tuple[float, list[torch.Tensor], dict[str, float], int]:
    config = Config.model_validate({"update": {"micro_batch_tokens": tokens}})
    loss = PolicyLoss(
        config, resolve_algorithm(config.algorithm, config.rollout, config.update), correct=True
    )
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    meter = Meter()
    total = float(loss.backward(policy, batch, meter))
    gradients = [p.grad.clone() for p in policy.trainable_parameters()]
    return total, gradients, meter.metrics(), loss.micro_batches.max_tokens


@pytest.fixture
def plant(monkeypatch):
    """Memory for so many completion tokens a forward; it runs out half way through the backward."""

    class LateFailure(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, fail):
            ctx.fail = fail
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            if ctx.fail:
                raise torch.OutOfMemoryError("planted")
            return grad, None

    def planted(policy, room: int) -> list[int]:
        seen: list[int] = []
        forward, project = policy.trunk.__call__, blocked._Project.apply

        def late(layer, hidden, *rest):
            query, key, value = project(layer, hidden, *rest)
            first = not hidden.requires_grad
            return LateFailure.apply(query, first and seen[-1] > room), key, value

        def counted(batch):
            seen.append(batch.num_tokens)
            return forward(batch)

        monkeypatch.setattr(policy, "trunk", counted)
        # the first layer's backward runs last: by then the second layer's gradients have been added
        monkeypatch.setattr(blocked._Project, "apply", late)
        return seen

    return planted


def test_an_update_out_of_memory_is_halved_and_its_result_is_the_same(plant):
    policy = build_policy()
    batch = scored_batch(policy)
    loss, gradients, metrics, tokens = run_update(policy, batch, 10_000)
    assert tokens == 10_000
    seen = plant(policy, room=13)
    again, regained, measured, tokens = run_update(policy, batch, 64)
    assert max(seen) > 13  # it did run out
    assert tokens == 16  # 64, 32, 16 prompt and completion tokens
    assert abs(again - loss) < 1e-6
    assert_gradients_close(gradients, regained, 1e-5)
    assert measured == pytest.approx(metrics, rel=1e-5, abs=1e-6)


def test_gradients_of_an_abandoned_part_are_put_back():
    weight = torch.nn.Parameter(torch.zeros(1))
    batch, failures, rows_done = build_batch(LENGTHS), [True, True], []

    def work(rows, part):
        weight.grad = part.loss_mask.sum().float()[None] + (0 if weight.grad is None else weight.grad)
        if len(rows) > 1 and failures:
            failures.pop()
            raise torch.OutOfMemoryError("planted")
        rows_done.extend(rows.tolist())

    MicroBatches(60).run(batch, work, [weight])
    assert float(weight.grad) == sum(LENGTHS)
    assert sorted(rows_done) == list(range(len(LENGTHS)))


def test_what_fitted_is_remembered():
    parts, sizes = MicroBatches(64), []

    def work(rows, part):
        sizes.append(part.num_tokens)
        if part.num_tokens > 25:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    parts.run(build_batch(LENGTHS), work)
    first = len(sizes)
    parts.run(build_batch(LENGTHS), work)
    assert parts.max_tokens == 32
    assert max(sizes[:first]) > 25 >= max(sizes[first:])


def test_one_completion_that_does_not_fit_ends_with_advice():
    def work(rows, part):
        raise torch.OutOfMemoryError("planted")

    with pytest.raises(UserError, match="single completion .*mathrl plan"):
        MicroBatches(64).run(build_batch(LENGTHS), work)


def test_other_errors_pass_through():
    def work(rows, part):
        raise NonFiniteError("the loss is not finite", rows.tolist())

    with pytest.raises(NonFiniteError):
        MicroBatches(64).run(build_batch(LENGTHS), work)


def test_a_forward_out_of_memory_is_halved(monkeypatch):
    policy = build_policy()
    batch = build_batch(LENGTHS)
    whole = annotate(policy, batch, MicroBatches(8192), old=True).old_logprobs
    logprobs = policy.logprobs

    def tight(part, **how):
        if part.num_tokens > 20:
            raise torch.OutOfMemoryError("planted")
        return logprobs(part, **how)

    monkeypatch.setattr(policy, "logprobs", tight)
    parts = MicroBatches(64)
    again = annotate(policy, batch, parts, old=True).old_logprobs
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-5)
    assert parts.max_tokens < 64  # what did not fit is not tried again


def test_what_earlier_parts_have_added_is_put_back_exactly():
    """The second part fails after it has added to a gradient, in place and by a new tensor."""
    batch = build_batch((6, 6, 6, 6))
    first, second, untouched = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    parts, failures = [], [True]

    def work(rows, part):
        parts.append(rows.tolist())
        first.grad = torch.zeros(3) if first.grad is None else first.grad
        first.grad += len(rows)
        if len(parts) == 2:
            second.grad = torch.ones(3)
        if len(parts) == 2 and failures.pop():
            raise torch.OutOfMemoryError("planted")

    MicroBatches(len(batch.prompts[0]) + 12).run(batch, work, [first, second, untouched])
    done = parts[0] + sum(parts[2:], [])
    assert sorted(done) == [0, 1, 2, 3]
    assert first.grad.tolist() == [4.0] * 3
    assert second.grad is None
    assert untouched.grad is None
