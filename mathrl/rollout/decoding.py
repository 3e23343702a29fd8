"""One decoding step of a causal LM: over the shared-prompt memory, or over transformers' own cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from mathrl.policy.cpu.blocked import blocked_layers
from mathrl.policy.cpu.shared_prompt import ATTENTION, SharedPromptCache


class Decoder(Protocol):
    """The rows that still run, n of P·G at the start."""

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Feed (n,) tokens at (n,) positions; the (n, V) logits of the next ones."""
        ...

    def keep(self, index: Tensor, moved: Tensor) -> None:
        """Keep rows ``index`` (n',); ``moved`` (m,) are those i with index[i] != i."""
        ...


class SharedPromptDecoder:
    """Prompts once, completions preallocated; through the model's own forward where blocked.py has none."""

    def __init__(
        self, model: nn.Module, prompts: Cache, prompt_mask: Tensor, group_size: int, max_tokens: int
    ):
        self.model: Any = model
        self.cache = SharedPromptCache(prompts, prompt_mask, group_size, max_tokens)
        self.layers = blocked_layers(model)

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        if self.layers is not None:
            decoder = self.model.get_decoder()
            hidden = decoder.embed_tokens(tokens)
            cos, sin = decoder.rotary_emb(hidden, positions[None])
            hidden = self.layers.decode(hidden, cos[0], sin[0], self.cache.extend)
            self.cache.advance()
            return self.model.get_output_embeddings()(hidden)
        with attention(self.model, ATTENTION):
            logits: Tensor = self.model(
                input_ids=tokens[:, None],
                position_ids=positions[:, None],
                past_key_values=self.cache,
                shared_prompt_cache=self.cache,
                use_cache=True,
            ).logits
        self.cache.advance()
        return logits[:, -1]

    def keep(self, index: Tensor, moved: Tensor) -> None:
        self.cache.keep(index, moved)


class PlainDecoder:
    """transformers' own cache, a copy of the prompt per completion: right for any causal LM it can cache."""

    def __init__(self, model: nn.Module, prompts: Cache, prompt_mask: Tensor, group_size: int):
        self.model, self.cache = model, prompts
        self.cache.batch_repeat_interleave(group_size)
        self.mask = prompt_mask.repeat_interleave(group_size, dim=0).long()

    def step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), dim=1)
        logits: Tensor = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=positions[:, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits[:, -1]

    def keep(self, index: Tensor, moved: Tensor) -> None:
        self.cache.batch_select_indices(index)
        self.mask = self.mask[index]


def prefill(model: nn.Module, prompts: list[tuple[int, ...]], pad_id: int) -> tuple[Cache, Tensor, Tensor]:
    """Compute every prompt once.

    Args:
        prompts: P non-empty lists of token ids.
        pad_id: any valid id; it is masked.

    Returns:
        the cache of P rows, the (P, L) bool mask of the left-padded prompts, the first tokens' (P, V) logits.
    """
    device, width = next(model.parameters()).device, max(len(ids) for ids in prompts)
    ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=device)
    cache = DynamicCache(config=model.config)
    out = model(
        input_ids=ids,
        attention_mask=mask.long(),
        position_ids=(mask.long().cumsum(dim=1) - 1).clamp_(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return cache, mask, out.logits[:, -1]


def can_share_prompts(model: nn.Module) -> bool:
    """Whether the shared-prompt memory gives this model's own logits: both ways are tried on two prompts.

    Sliding windows, recurrent states, soft caps, attention sinks and models whose attention cannot be
    replaced all end here.
    """
    if not getattr(model, "_supports_attention_backend", False):
        return False
    prompts, size = [(1, 2, 3, 4, 5), (3, 1, 2)], 2
    cache, mask, logits = prefill(model, prompts, pad_id=0)
    if not SharedPromptCache.fits(cache):
        return False
    ways: list[Decoder] = [
        SharedPromptDecoder(model, cache, mask, size, max_tokens=2),
        PlainDecoder(model, cache, mask, size),
    ]
    start = mask.sum(dim=1).repeat_interleave(size)
    tokens = torch.arange(2 * size, device=mask.device)
    order = torch.tensor([3, 1, 2], device=mask.device)
    seen: list[Tensor] = []
    for way in ways:
        try:
            first = way.step(tokens, start)
            way.keep(order, torch.tensor([0], device=mask.device))
            seen.append(torch.cat((first, way.step(tokens[order], start[order] + 1))).float())
        except NotImplementedError:
            return False
    tolerance = 1e-4 if logits.dtype == torch.float32 else 5e-2
    return bool((seen[0] - seen[1]).abs().max() <= tolerance * seen[1].abs().max())


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Inside, the model attends by this function of transformers' attention interface."""
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before
