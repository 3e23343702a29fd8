"""The CUDA way through the layers, compiled, on any machine: FlashAttention is replaced by a plain loop.

What is tested is everything around the kernel: offsets, gathered keys, summed gradients, the operators'
autograd formulas, and that other batches reuse the compiled code.
"""

import os
from functools import partial
from pathlib import Path

import pytest
import torch

from mathrl.policy import attention, trunk
from mathrl.policy.compile_cache import keep_compiled
from mathrl.policy.varlen import Varlen, _rows, _sum_rows, packed_flash, packed_flash_backward
from mathrl.training.sft_loss import Example, SftLoss

from .conftest import MakeBatch, MakePolicy
from .test_policy import assert_gradients_close, gradients, weighted_sum


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    """Nothing is left in the user's."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))


def segments_of(query, key, query_offsets, key_offsets, max_query, max_key, scale):
    """Each segment's slices of queries and keys, and a function to its (H, L_q, L_k) attention weights.

    FlashAttention's contract: causal, aligned at the end of each segment's keys.
    """
    repeats = query.shape[1] // key.shape[1]
    for q0, q1, k0, k1 in zip(
        *(o[s].tolist() for o in (query_offsets, key_offsets) for s in (slice(-1), slice(1, None))),
        strict=True,
    ):
        assert q1 - q0 <= max_query
        assert k1 - k0 <= max_key
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(diagonal=(k1 - k0) - (q1 - q0))
        scores = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1].repeat_interleave(repeats, 1)) * scale
        yield slice(q0, q1), slice(k0, k1), scores.masked_fill(~mask, -torch.inf).softmax(-1)


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kernels by hand: autograd does not reach inside an operator."""

    @packed_flash.register_kernel("cpu")
    def _(query, key, value, query_offsets, key_offsets, key_index, *numbers):
        key, value = _rows(key, key_index), _rows(value, key_index)
        repeats = query.shape[1] // key.shape[1]
        out = torch.full(query.shape, torch.nan)
        for q, k, weights in segments_of(query, key, query_offsets, key_offsets, *numbers):
            out[q] = torch.einsum("hqk,khd->qhd", weights, value[k].repeat_interleave(repeats, 1))
        return out, torch.zeros(query.shape[1], query.shape[0])

    @packed_flash_backward.register_kernel("cpu")
    def _(grad, query, key, value, out, lse, query_offsets, key_offsets, key_index, *numbers):
        gathered, values = _rows(key, key_index), _rows(value, key_index)
        heads, repeats = key.shape[1], query.shape[1] // key.shape[1]
        grad_q, grad_k, grad_v = (torch.full(x.shape, torch.nan) for x in (query, gathered, values))
        for q, k, weights in segments_of(query, gathered, query_offsets, key_offsets, *numbers):
            wide_k, wide_v = (x[k].repeat_interleave(repeats, 1) for x in (gathered, values))
            through = torch.einsum("qhd,khd->hqk", grad[q], wide_v)
            through -= (grad[q] * out[q]).sum(-1).t()[:, :, None]
            scores = weights * through * numbers[-1]
            grad_q[q] = torch.einsum("hqk,khd->qhd", scores, wide_k)
            for total, wide in (
                (grad_k, torch.einsum("hqk,qhd->khd", scores, query[q])),
                (grad_v, torch.einsum("hqk,qhd->khd", weights, grad[q])),
            ):
                total[k] = wide.unflatten(1, (heads, repeats)).sum(2)
        return grad_q, _sum_rows(grad_k, key, key_index), _sum_rows(grad_v, value, key_index)

    monkeypatch.setattr(trunk, "short_cuts_of", lambda base: None)
    monkeypatch.setattr(
        trunk, "plan_attention", lambda segments, device, dtype: Varlen.build(segments, device)
    )


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("share", [True, False])
def test_flash_path_equals_padded_blocks(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch, flash_on_cpu, architecture: str, share: bool
):
    batch = make_batch()
    policy = make_policy(architecture, share_prompts=share)
    mine = policy.logprobs(batch).logprobs
    monkeypatch.setattr(trunk, "plan_attention", attention.plan_attention)
    theirs = policy.logprobs(batch).logprobs
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert_gradients_close(*(gradients(policy, weighted_sum(x)) for x in (mine, theirs)), 1e-4)


def test_compiled_layers_are_equal_and_are_compiled_once(make_policy, make_batch, monkeypatch, flash_on_cpu):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    batch, policy, plain = make_batch(), make_policy(), make_policy()
    policy.trunk = trunk.Trunk(policy.model.get_base_model(), compile_layers=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    mine, theirs = policy.logprobs(batch).logprobs, plain.logprobs(batch).logprobs
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert_gradients_close(
        *(gradients(p, weighted_sum(x)) for p, x in ((policy, mine), (plain, theirs))), 1e-4
    )
    torch.testing.assert_close(
        policy.logprobs(batch, reference=True).logprobs, plain.logprobs(batch, reference=True).logprobs,
        rtol=0, atol=1e-5,
    )  # fmt: skip
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled == 2  # one for all layers in training, one for all layers with the adapter off
    assert not torch._dynamo.utils.counters["graph_break"]
    for seed, lengths in enumerate([(20, 3, 9), (2, 7, 8, 4, 5), (40, 40, 1, 13)]):
        other = make_batch(lengths, prompt_lengths=(9, 2), seed=seed)
        got = policy.logprobs(other).logprobs
        torch.testing.assert_close(got, plain.logprobs(other).logprobs, rtol=0, atol=1e-5)
        got.sum().backward()
        policy.logprobs(other, reference=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled


def test_compiled_supervised_training_has_the_same_gradients(make_policy, monkeypatch, flash_on_cpu):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = (
        SftLoss(make_policy().model.get_base_model(), 0.3, compile_layers=how) for how in (False, True)
    )
    losses, all_gradients = [], []
    for seed, loss in ((0, plain), (0, compiled), (1, plain), (1, compiled)):
        generator = torch.Generator().manual_seed(seed)
        lengths = ((7, 5), (30, 11), (1, 19)) if seed else ((4, 9), (12, 3))
        draw = partial(torch.randint, 2, 50, generator=generator)
        examples = [Example(tuple(draw((p,)).tolist()), tuple(draw((c,)).tolist())) for p, c in lengths]
        weights = list(loss.trunk.decoder.requires_grad_(True).parameters())
        losses.append(loss(examples))
        all_gradients.append(torch.autograd.grad(losses[-1], weights, allow_unused=True))
    for mine, theirs in ((1, 0), (3, 2)):
        torch.testing.assert_close(losses[mine], losses[theirs], rtol=0, atol=1e-5)
        known = [
            (a, b) for a, b in zip(all_gradients[mine], all_gradients[theirs], strict=True) if a is not None
        ]
        assert len(known) > 10
        assert_gradients_close([a for a, _ in known], [b for _, b in known], 1e-4)
    with torch.no_grad():
        assert compiled.held_out(examples, 1000) == pytest.approx(plain.held_out(examples, 1000), abs=1e-5)


def test_compiled_code_is_kept_in_the_users_cache_by_version(monkeypatch, tmp_path):
    name = "TORCHINDUCTOR_CACHE_DIR"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(name, "elsewhere")
    keep_compiled()
    assert os.environ[name] == "elsewhere"
    monkeypatch.delenv(name)
    keep_compiled()
    kept = Path(os.environ[name])
    assert kept.is_dir()
    assert kept.is_relative_to(tmp_path / "mathrl")
    assert torch.__version__ in kept.name
    monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    keep_compiled()  # cannot be written: torch's own place
    assert name not in os.environ
