"""Chunked log-probabilities against torch's own log_softmax over full logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mathrl.policy import logprobs
from mathrl.policy.logprobs import token_logprobs

CHUNK_ROWS = logprobs.chunk_rows


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


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 7, 8, 9])
def test_every_token_is_in_one_chunk(count: int):
    """Chunks of 4: fewer tokens, whole chunks, one token more and one less."""
    hidden, weight, target = inputs()
    hidden, target = hidden[:count].requires_grad_(), target[:count]
    got, nats = token_logprobs(hidden, weight, target, entropy=True)
    full = torch.log_softmax(hidden @ weight.t(), dim=-1)
    torch.testing.assert_close(got, full.gather(1, target[:, None])[:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(nats, -(full.exp() * full).sum(-1).detach(), rtol=1e-12, atol=1e-12)
    flow = torch.arange(1.0, count + 1, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((got * flow).sum(), hidden)
    (expected,) = torch.autograd.grad((full.gather(1, target[:, None])[:, 0] * flow).sum(), hidden)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_a_chunk_of_logits_has_a_bound_on_every_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [CHUNK_ROWS(v, cpu) for v in (300, 8192, 151_936, 1 << 20)] == [512, 512, 27, 16]
    assert [CHUNK_ROWS(v, cuda) for v in (300, 151_936, 1 << 29)] == [(1 << 29) // 300, 3533, 16]
    assert CHUNK_ROWS(151_936, cpu) * 151_936 * 4 <= 16 << 20
    assert CHUNK_ROWS(151_936, cuda) * 151_936 * 4 <= 2 << 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True])
def test_half_precision_is_summed_up_in_float32(monkeypatch: pytest.MonkeyPatch, dtype, compiled: bool):
    """The logits are what half precision makes of them; all that follows has float32's digits."""
    monkeypatch.setattr(logprobs, "_compiled_summary", lambda: logprobs._pure_summary)
    hidden, weight, target = inputs(dtype)
    hidden.requires_grad_()
    got, nats = token_logprobs(hidden, weight, target, temperature=0.7, entropy=True, compiled=compiled)
    assert got.dtype == nats.dtype == torch.float32
    full = torch.log_softmax((hidden @ weight.t()).double() / 0.7, dim=-1)
    expected = full.gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nats.double(), -(full.exp() * full).sum(-1).detach(), rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(got.sum(), hidden)
    assert gradient.dtype == dtype


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
