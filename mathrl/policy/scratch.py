"""A small language model and its tokenizer made from nothing: the base where no pretrained one is at hand."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from mathrl.config import ModelConfig
from mathrl.data import wordproblems
from mathrl.types import derive_seed


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with single digits, learnt from ``texts``; any text is encoded and decoded exactly.

    It keeps Qwen2's tokenizer class: AutoTokenizer picks that class for a folder with a Qwen2 model whatever
    the folder's tokenizer_config says, and with any other pre-tokenizer the ids would silently change.
    """
    return Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=vocab_size, show_progress=False)


def build_base(
    model: ModelConfig, seed: int, texts: Iterable[str] | None = None
) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A Qwen2-architecture model with random weights and a tokenizer for it.

    Args:
        model: sizes; ``vocab_size`` is an upper bound, a small corpus has fewer pieces.
        seed: of the weights; the tokenizer depends on the texts alone.
        texts: what the tokenizer learns from; None: generated word problems.
    """
    tokenizer = build_tokenizer(wordproblems.corpus() if texts is None else texts, model.vocab_size)
    return build_model(model, tokenizer, seed), tokenizer


def build_model(model: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """A Qwen2-architecture model with random weights from ``seed`` for the tokenizer's ids."""
    tokenizer.model_max_length = model.context_length
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.num_kv_heads,
        intermediate_size=model.intermediate_size,
        max_position_embeddings=model.context_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "base model") % 2**63)
        return Qwen2ForCausalLM(config)
