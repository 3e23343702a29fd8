"""Model folders of published shapes with random weights: speed and memory do not depend on the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mathrl.data.wordproblems import corpus
from mathrl.memory.shapes import KNOWN_SHAPES, Shape
from mathrl.policy.scratch import build_tokenizer

SMALL = Shape(4096, 512, 12, 8, 4, 1408, True, True, 64)  # about 40 M parameters
SMOL = Shape(49152, 576, 30, 9, 3, 1536, True, True, 64)  # SmolLM2-135M's sizes
SHAPES = {
    "40m": SMALL,
    "135m": SMOL,
    **{name.removeprefix("qwen2.5-"): shape for name, shape in KNOWN_SHAPES.items()},
}


def random_model(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a bfloat16 Qwen2 model of shape ``name`` (in SHAPES) and a tokenizer; returns its folder."""
    target = folder / name
    if (target / "config.json").exists():
        return target
    shape = SHAPES[name]
    tokenizer = build_tokenizer(corpus(), 1024)
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.intermediate_size,
        tie_word_embeddings=shape.tied_head,
        max_position_embeddings=32768,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
