"""The layers computed in blocks on a CPU are transformers' own layers: values, gradients, decoding."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from mathrl.config import LoraSection, UpdateConfig
from mathrl.policy import attention, loading
from mathrl.policy.cpu import blocked, short_attention
from mathrl.policy.cpu.folding import folded_adapter
from mathrl.policy.model import Policy
from mathrl.policy.packing import pack
from mathrl.policy.trunk import Trunk
from mathrl.rollout import decoding

from .conftest import SHAPE, TOKENIZER, build_batch
from .test_policy import assert_gradients_close

UNEQUAL = build_batch((5, 1, 9, 4, 12, 3, 1, 7, 8), (6, 3, 11))
ONE_TOKEN_PROMPTS = build_batch((5, 1, 9, 4), (1, 1))


def build(config_type=Qwen2Config, heads: int = 4, kv_heads: int = 2, **lora) -> Policy:
    torch.manual_seed(3)
    shape = SHAPE | {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    base = AutoModelForCausalLM.from_config(
        config_type(**shape, head_dim=8), attn_implementation=attention.IMPLEMENTATION
    )
    base.requires_grad_(False)
    for parameter in base.parameters():
        parameter.mul_(5) if parameter.dim() == 2 else parameter.add_(0.1 * torch.randn_like(parameter))
    model = loading.add_adapter(base, LoraSection(rank=3, alpha=8, **lora), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return Policy(model, TOKENIZER, UpdateConfig())


def hidden_and_gradients(policy: Policy, batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    hidden = policy.hidden_states(batch)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    parameters = policy.trainable_parameters()
    return hidden.detach(), list(torch.autograd.grad((hidden * weights).sum(), parameters))


def computed_in_blocks(trunk: Trunk) -> bool:
    """Whether the trunk comes to its hidden states without running a layer of the model."""
    ran = []
    handles = [layer.register_forward_pre_hook(lambda *_: ran.append(1)) for layer in trunk.decoder.layers]
    trunk(UNEQUAL)
    for handle in handles:
        handle.remove()
    return not ran


@pytest.fixture(params=[7, 768], ids=["many blocks", "one block"], autouse=True)
def block(request, monkeypatch):
    monkeypatch.setattr(blocked, "BLOCK", request.param)


@pytest.mark.parametrize("config_type", [Qwen2Config, Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("short", [256, 0])
def test_equal_to_transformers_layers(monkeypatch, config_type, kv_heads: int, share: bool, short: int):
    monkeypatch.setattr(short_attention, "SHORT", short)
    policy = build(config_type, kv_heads=kv_heads)
    policy.trunk.share_prompts = share
    for batch in (UNEQUAL, ONE_TOKEN_PROMPTS):
        assert computed_in_blocks(policy.trunk)
        got, gradients = hidden_and_gradients(policy, batch)
        with sdpa_kernel(SDPBackend.MATH):
            assert not computed_in_blocks(policy.trunk)
            expected, wanted = hidden_and_gradients(policy, batch)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert_gradients_close(gradients, wanted, relative=1e-4)


@pytest.mark.parametrize("targets", ["v_proj", "q_proj,down_proj", "gate_proj,o_proj"])
def test_adapters_on_some_linears(targets):
    policy = build(targets=targets)
    got, gradients = hidden_and_gradients(policy, UNEQUAL)
    with sdpa_kernel(SDPBackend.MATH):
        expected, wanted = hidden_and_gradients(policy, UNEQUAL)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert_gradients_close(gradients, wanted, relative=1e-4)


def test_short_attention_has_the_gradients_of_torchs_own(monkeypatch):
    """Float64, unequal segments with and without a prefix, two queries a key."""
    segments = pack(UNEQUAL, torch.device("cpu")).segments
    count = int(segments.length.sum())
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(count, h, 6, dtype=torch.float64, generator=generator, requires_grad=True)
        for h in (4, 2, 2)
    )
    attend = short_attention.plan_attention(segments, torch.device("cpu"), q.dtype)
    assert isinstance(attend, short_attention.ShortAttention)
    flow = torch.randn(count, 4, 6, dtype=torch.float64, generator=generator)
    got = torch.autograd.grad((attend(q, k, v, 0.3) * flow).sum(), (q, k, v))
    monkeypatch.setattr(short_attention, "SHORT", 0)
    attend = short_attention.plan_attention(segments, torch.device("cpu"), q.dtype)
    assert isinstance(attend, attention.Dense)
    expected = torch.autograd.grad((attend(q, k, v, 0.3) * flow).sum(), (q, k, v))
    for g, e in zip(got, expected, strict=True):
        torch.testing.assert_close(g, e)


def test_what_is_not_computed_here_is_left_to_transformers():
    policy = build()
    assert computed_in_blocks(policy.trunk)
    layer = policy.trunk.decoder.layers[1]
    layer.input_layernorm.weight.requires_grad_(True)
    assert not computed_in_blocks(policy.trunk)  # its gradient is wanted
    with torch.no_grad():
        assert computed_in_blocks(policy.trunk)
    layer.input_layernorm.weight.requires_grad_(False)
    layer.mlp.act_fn = torch.nn.GELU()
    assert not computed_in_blocks(policy.trunk)
    base = build().model.get_base_model()
    assert not computed_in_blocks(Trunk(base, gradient_checkpointing=True))
    assert Trunk(base.to("meta")).short_cuts is None  # any device but a CPU
    assert computed_in_blocks(build(dropout=0.5).trunk)  # not in training
    dropping = build(dropout=0.5)
    dropping.model.train()
    assert not computed_in_blocks(dropping.trunk)


@pytest.mark.parametrize("config_type", [Qwen2Config, Qwen3Config, LlamaConfig])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("tokens", [3, 40])
def test_decoding_gives_the_models_own_logits(config_type, kv_heads: int, tokens: int):
    """With rows leaving on the way, over short and long completions, the adapter folded in."""
    model = build(config_type, kv_heads=kv_heads).model.get_base_model()
    prompts = [(5, 6, 7, 8), (9, 10), (11, 12, 13)]
    ids = torch.randint(2, 60, (6, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = [
            model(torch.tensor([[*prompts[row // 2], *ids[row].tolist()]])).logits[0, -tokens:]
            for row in range(6)
        ]
    model.config._attn_implementation = "sdpa"
    with torch.no_grad(), folded_adapter(model):
        cache, mask, _ = decoding.prefill(model, prompts, pad_id=0)
        way = decoding.SharedPromptDecoder(model, cache, mask, 2, max_tokens=tokens)
        assert way.layers is not None
        rows = torch.arange(6)
        for step in range(tokens):
            if step == 2:
                way.keep(torch.tensor([0, 5, 2]), torch.tensor([1]))
                rows = rows[[0, 5, 2]]
            logits = way.step(ids[rows, step], mask.sum(1)[rows // 2] + step)
            for got, row in zip(logits, rows.tolist(), strict=True):
                torch.testing.assert_close(got, expected[row][step], atol=1e-4, rtol=1e-4)
