"""The CUDA way through the layers, compiled, on any machine: FlashAttention is replaced by a plain loop.

What is tested is everything around the kernel: offsets, gathered keys, summed gradients, the operators'
autograd formulas, and that other batches reuse the compiled code.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mathrl.policy import attention, trunk
from mathrl.policy.varlen import Varlen, _rows, packed_flash, packed_flash_backward

from .conftest import MakeBatch, MakePolicy
from .test_policy import assert_gradients_close, gradients, weighted_sum


def segment_loop(query, key, value, query_offsets, key_offsets, max_query, max_key, scale) -> Tensor:
    """FlashAttention's contract: causal, aligned at the end of each segment's keys."""
    repeats = query.shape[1] // key.shape[1]
    parts = []
    for q0, q1, k0, k1 in zip(
        *(o[s].tolist() for o in (query_offsets, key_offsets) for s in (slice(-1), slice(1, None))),
        strict=True,
    ):
        assert q1 - q0 <= max_query
        assert k1 - k0 <= max_key
        q, k, v = query[q0:q1], *(x[k0:k1].repeat_interleave(repeats, 1) for x in (key, value))
        mask = torch.ones(q1 - q0, k1 - k0, dtype=torch.bool).tril(diagonal=(k1 - k0) - (q1 - q0))
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask, scale=scale
        )
        parts.append(out.transpose(0, 1))
    return torch.cat(parts)


@pytest.fixture
def flash_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    @packed_flash.register_kernel("cpu")
    def _(query, key, value, query_offsets, key_offsets, key_index, max_query, max_key, scale):
        out = segment_loop(
            query,
            _rows(key, key_index),
            _rows(value, key_index),
            query_offsets,
            key_offsets,
            max_query,
            max_key,
            scale,
        )
        return out, torch.zeros(query.shape[1], query.shape[0])

    @packed_flash_backward.register_kernel("cpu")
    def _(
        grad, query, key, value, out, lse, query_offsets, key_offsets, key_index, max_query, max_key, scale
    ):
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        with torch.enable_grad():
            q, k, v = inputs
            again = segment_loop(
                q,
                _rows(k, key_index),
                _rows(v, key_index),
                query_offsets,
                key_offsets,
                max_query,
                max_key,
                scale,
            )
        assert torch.allclose(again, out)
        return torch.autograd.grad(again, inputs, grad)

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
