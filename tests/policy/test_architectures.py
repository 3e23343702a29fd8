"""Architectures without a packed forward: the plain path is the model's own, or they are refused."""

from types import SimpleNamespace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    Qwen3MoeConfig,
)

from mathrl.config import LoraSection, UpdateConfig
from mathrl.errors import UserError
from mathrl.policy.loading import add_adapter
from mathrl.policy.model import Policy
from policy.conftest import SHAPE, build_batch

EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
TRAINED = {
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, head_dim=16, sliding_window=8),
    "mistral, sliding": lambda: MistralConfig(**SHAPE, sliding_window=4),
    "phi": lambda: PhiConfig(**SHAPE),  # its head has a bias, which is 0 here
    "phi3": lambda: Phi3Config(**SHAPE, pad_token_id=0),
    "olmo2": lambda: Olmo2Config(**SHAPE),
    "falcon": lambda: FalconConfig(**SHAPE),
    "gpt2": lambda: GPT2Config(
        vocab_size=SHAPE["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=128
    ),
    "mixtral": lambda: MixtralConfig(**SHAPE, **EXPERTS),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **SHAPE, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
}
REFUSED = {
    "gemma2": lambda: Gemma2Config(**SHAPE, head_dim=16),  # caps its logits
    "granite": lambda: GraniteConfig(**SHAPE, logits_scaling=4.0),
    "cohere": lambda: CohereConfig(**SHAPE, logit_scale=0.1),
}
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=1, name_or_path="tiny")


def make_policy(config, change=lambda base: None):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    base.requires_grad_(False)
    for parameter in base.parameters():
        if parameter.dim() == 2:
            parameter.mul_(10)
    change(base)
    model = add_adapter(base, LoraSection(rank=4, alpha=8), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return Policy(model, TOKENIZER, UpdateConfig())


def by_the_model(policy, batch):
    """Log-probabilities of each completion by a forward of its own, with nothing of ours."""
    rows = []
    for row in range(batch.num_completions):
        prompt, length = batch.prompts[int(batch.group_ids[row])], int(batch.loss_mask[row].sum())
        ids = torch.cat([prompt, batch.completion_ids[row, :length]])
        logprobs = policy.model(input_ids=ids[None]).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
        rows.append(logprobs.gather(1, ids[len(prompt) :, None])[:, 0])
    return torch.cat(rows)


@pytest.mark.parametrize("name", TRAINED)
def test_logprobs_and_gradients_are_the_models_own(name):
    policy = make_policy(TRAINED[name]())
    assert policy.trunk.fallback_reason
    batch = build_batch(lengths=(5, 3, 9, 4), prompt_lengths=(6, 3))
    parameters = policy.trainable_parameters()
    ours = policy.logprobs(batch).logprobs[batch.loss_mask]
    theirs = by_the_model(policy, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1, len(ours))
    wanted = torch.autograd.grad((weights * theirs).sum(), parameters)
    got = torch.autograd.grad((weights * ours).sum(), parameters)
    assert any(g.abs().max() > 1e-2 for g in wanted)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_logits_that_are_more_than_a_product_are_refused(name):
    with pytest.raises(UserError, match="scales or caps its logits or biases its head"):
        make_policy(REFUSED[name]())


def test_a_biased_head_is_refused():
    with pytest.raises(UserError, match="'phi'.*biases its head"):
        make_policy(TRAINED["phi"](), lambda base: base.lm_head.bias.data.fill_(0.001))
