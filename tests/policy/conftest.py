"""Tiny random models of the packed architectures, and batches of random tokens."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from mathrl.config import LoraSection, UpdateConfig
from mathrl.memory.shapes import why_not_packed
from mathrl.policy.attention import IMPLEMENTATION
from mathrl.policy.loading import add_adapter
from mathrl.policy.model import Policy
from mathrl.types import Batch

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2": lambda: Qwen2Config(**SHAPE),
    "qwen3": lambda: Qwen3Config(**SHAPE, head_dim=16),
    "llama": lambda: LlamaConfig(**SHAPE),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=None),
}
TOKENIZER = SimpleNamespace(pad_token_id=0, eos_token_id=1)

MakePolicy = Callable[..., Policy]
MakeBatch = Callable[..., Batch]


def build_policy(architecture: str = "qwen2", lora: LoraSection | None = None, **update: Any) -> Policy:
    """The same weights at every call; B is not zero, so that the adapter does something."""
    torch.manual_seed(7)
    config = CONFIGS[architecture]()
    implementation = "sdpa" if why_not_packed(config) else IMPLEMENTATION
    base = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    base.requires_grad_(False)
    for parameter in base.parameters():  # the default 0.02 would make every token about equally likely
        if parameter.dim() == 2:
            parameter.mul_(10)
        else:  # norms and biases of a fresh model are ones and zeros, which would hide mistakes
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = add_adapter(base, lora or LoraSection(rank=4, alpha=8), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
    return Policy(model, TOKENIZER, UpdateConfig(**update))


def build_batch(
    lengths: tuple[int, ...] = (5, 1, 9, 4, 12, 3, 1, 7, 8),
    prompt_lengths: tuple[int, ...] = (6, 3, 11),
    seed: int = 0,
) -> Batch:
    """Rows of these completion lengths, dealt to the prompts in turn blocks."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.randint(2, VOCABULARY, (n,), generator=generator)  # noqa: E731
    prompts = tuple(draw(n) for n in prompt_lengths)
    rows, width = len(lengths), max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    per_group = -(-rows // len(prompts))
    return Batch(
        prompts=prompts,
        group_ids=torch.arange(rows) // per_group,
        completion_ids=torch.where(mask, draw(rows * width).view(rows, width), 0),
        loss_mask=mask,
        rewards=torch.zeros(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )


@pytest.fixture
def make_policy() -> MakePolicy:
    return build_policy


@pytest.fixture
def make_batch() -> MakeBatch:
    return build_batch
