"""Chunked log-probabilities against torch's own log_softmax over full logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mathrl.policy import logprobs
from mathrl.policy.logprobs import token_logprobs


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        logprobs, "chunk_rows", lambda vocabulary, device: 4
    )  # 11 tokens: chunks of 4, 4 and 3


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(11, 5, dtype=dtype, generator=generator)
    weight = torch.randn(17, 5, dtype=dtype, generator=generator)
    return hidden, weight, torch.randint(0, 17, (11,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_equals_log_softmax_of_full_logits(temperature: float):
    hidden, weight, target = inputs()
    full = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    got, nats = token_logprobs(hidden, weight, target, temperature=temperature, entropy=True)
    torch.testing.assert_close(got, full.gather(1, target[:, None])[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nats, -(full.exp() * full).sum(-1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_is_equal_and_compiled_once(monkeypatch: pytest.MonkeyPatch, entropy: bool, grad: bool):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(logprobs._pure_summary, backend="aot_eager")
    monkeypatch.setattr(logprobs, "_compiled_summary", lambda: compiled)
    results = []
    for how in (False, True):
        hidden, weight, target = inputs()
        hidden.requires_grad_(grad)
        for count in (11, 7, 10):  # chunks of 4 and what is left of them
            got = token_logprobs(
                hidden[:count], weight, target[:count], temperature=0.7, entropy=entropy, compiled=how
            )
            if grad:
                got[0].sum().backward()
        results.append([got[0].detach(), got[1], hidden.grad])
    for mine, theirs in zip(*results, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_gradient(temperature: float):
    hidden, weight, target = inputs()
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h: token_logprobs(h, weight, target, temperature=temperature, entropy=True)[0], hidden
    )


def test_uniform_head_has_log_v_entropy_and_no_gradient():
    hidden, _, target = inputs()
    hidden.requires_grad_()
    got, nats = token_logprobs(hidden, torch.ones(17, 5, dtype=torch.float64), target, entropy=True)
    got.sum().backward()
    assert nats is not None
    assert nats.tolist() == pytest.approx([torch.tensor(17.0).log().item()] * 11, abs=1e-6)
    assert hidden.grad.abs().max() < 1e-12


def test_large_logits_neither_overflow_nor_lose_the_gradient():
    hidden, weight, target = inputs(torch.float32)
    hidden = (hidden * 1e3).requires_grad_()
    got, nats = token_logprobs(hidden, weight, target, entropy=True)
    got.sum().backward()
    assert torch.isfinite(got).all()
    assert torch.isfinite(nats).all()
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad.abs().max() > 0.1


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple) else (out,):
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    hidden, weight, target = inputs()
    hidden.requires_grad_()
    with Largest() as seen:
        token_logprobs(hidden, weight, target, entropy=True)[0].sum().backward()
    assert seen.numel <= max(4 * 17, weight.numel())


def test_entropy_is_not_computed_unless_asked_for():
    assert token_logprobs(*inputs())[1] is None
