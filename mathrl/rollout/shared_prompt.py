"""Key/value memory of a rollout: each prompt once, each completion preallocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

ATTENTION = "mathrl_shared_prompt"
_EXTRA_TERMS = ("sliding_window", "softcap", "s_aux", "position_bias")


class SharedPromptCache(Cache):
    """Keys and values of P prompts, once each, and of up to P·G completions.

    The G completions of a problem read one copy of its prompt: attention over the prompt is a product of
    G queries with the same keys ("Hydragen", arXiv:2402.05099, section 3, with one softmax over both parts
    instead of a combination by log-sum-exp). Completions have a preallocated block of T slots in which the
    first ``n`` rows live; a finished row is overwritten by the last live one, so no step copies the block.

    Args:
        prompts: the prompts' cache after the prefill; P rows, left-padded to L.
        prompt_mask: (P, L) bool, False at padding.
        group_size: G.
        max_tokens: T, tokens a completion will have at most.
    """

    def __init__(self, prompts: Cache, prompt_mask: Tensor, group_size: int, max_tokens: int) -> None:
        super().__init__(layers=[])
        self.prompt_keys: list[Tensor] = [layer.keys for layer in prompts.layers]  # (P, Hkv, L, D)
        self.prompt_values: list[Tensor] = [layer.values for layer in prompts.layers]
        self.prompt_length = prompt_mask.shape[1]
        num_problems, dtype = prompt_mask.shape[0], self.prompt_keys[0].dtype
        self.padding: Tensor | None = None  # (P, 1, 1, L) added to the scores
        if not prompt_mask.all():
            blank = torch.zeros(prompt_mask.shape, dtype=dtype, device=prompt_mask.device)
            self.padding = blank.masked_fill(~prompt_mask, torch.finfo(dtype).min)[:, None, None]
        self.group_size, self.num_rows, self.length = group_size, num_problems * group_size, 0
        self.slots = torch.arange(
            self.num_rows, device=prompt_mask.device
        )  # (n,) group·G + completion of each row
        self.in_order = True  # slots is 0 … P·G - 1
        self.keys: list[Tensor] = []  # (P·G, Hkv, T, D)
        self.values: list[Tensor] = []
        for keys, values in zip(self.prompt_keys, self.prompt_values, strict=True):
            heads = keys.shape[1]
            self.keys.append(keys.new_empty(self.num_rows, heads, max_tokens, keys.shape[3]))
            self.values.append(values.new_empty(self.num_rows, heads, max_tokens, values.shape[3]))

    @staticmethod
    def fits(prompts: Cache) -> bool:
        """Whether every layer of this cache attends to all that came before, and to nothing else."""
        return bool(prompts.layers) and all(type(layer) is DynamicLayer for layer in prompts.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store (n, Hkv, 1, D) keys and values of the newest token; attention reads the rest from here."""
        self.keys[layer_idx][: self.num_rows, :, self.length] = key_states[:, :, 0]
        self.values[layer_idx][: self.num_rows, :, self.length] = value_states[:, :, 0]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prompt_length + self.length

    def attend(self, layer_idx: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of the newest token to its prompt and its completion.

        Args:
            layer_idx: index of the layer.
            query: (n, H, 1, D).
            scaling: factor of the scores.

        Returns:
            (n, 1, H, Dv).
        """
        n, heads, _, dim = query.shape
        prompt_keys, prompt_values = self.prompt_keys[layer_idx], self.prompt_values[layer_idx]
        num_prompts, kv_heads, prompt_length, _ = prompt_keys.shape
        each, size = heads // kv_heads, self.group_size
        query = (query * scaling).reshape(n, kv_heads, each, dim)

        grouped = self._to_slots(query).view(num_prompts, size, kv_heads, each, dim).transpose(1, 2)
        grouped = grouped.reshape(num_prompts, kv_heads, size * each, dim)
        scores = grouped @ prompt_keys.transpose(2, 3)  # (P, Hkv, G·each, L)
        if self.padding is not None:
            scores = scores + self.padding
        scores = scores.view(num_prompts, kv_heads, size, each, prompt_length).transpose(1, 2)
        scores = self._to_rows(scores.reshape(num_prompts * size, kv_heads, each, prompt_length))

        own = slice(0, self.length + 1)
        own_scores = query @ self.keys[layer_idx][:n, :, own].transpose(2, 3)  # (n, Hkv, each, t + 1)
        weights = torch.cat((scores, own_scores), dim=3).softmax(dim=3, dtype=torch.float32).to(query.dtype)
        out = weights[..., prompt_length:] @ self.values[layer_idx][:n, :, own]

        grouped = self._to_slots(weights[..., :prompt_length])
        grouped = grouped.view(num_prompts, size, kv_heads, each, prompt_length).transpose(1, 2)
        grouped = grouped.reshape(num_prompts, kv_heads, size * each, prompt_length) @ prompt_values
        grouped = grouped.view(num_prompts, kv_heads, size, each, -1).transpose(1, 2)
        out = out + self._to_rows(grouped.reshape(num_prompts * size, kv_heads, each, -1))
        return out.reshape(n, 1, heads, -1)

    def advance(self) -> None:
        """The newest token's keys and values are stored in every layer."""
        self.length += 1

    def keep(self, index: Tensor, moved: Tensor) -> None:
        """Keep ``n'`` rows.

        Args:
            index: (n',) row that becomes row i.
            moved: (m,) those i with index[i] != i; their rows come from n' or beyond.
        """
        source = index[moved]
        for block in (*self.keys, *self.values):
            block[moved, :, : self.length] = block[source, :, : self.length]
        self.slots = self.slots[index]
        self.num_rows = len(index)
        self.in_order = False
        groups, position = torch.unique(self.slots // self.group_size, return_inverse=True)
        if len(groups) * 2 <= len(self.prompt_keys[0]):  # at most half of the prompts live: drop the others
            self.slots = position * self.group_size + self.slots % self.group_size
            self.prompt_keys = [keys[groups] for keys in self.prompt_keys]
            self.prompt_values = [values[groups] for values in self.prompt_values]
            self.padding = None if self.padding is None else self.padding[groups]

    def _to_slots(self, rows: Tensor) -> Tensor:
        """(n, …) -> (P·G, …), zero where no row lives."""
        if self.in_order:
            return rows
        spread = rows.new_zeros(len(self.prompt_keys[0]) * self.group_size, *rows.shape[1:])
        return spread.index_copy_(0, self.slots, rows)

    def _to_rows(self, slots: Tensor) -> Tensor:
        return slots if self.in_order else slots[self.slots]


def shared_prompt_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prompt_cache: SharedPromptCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over a ``SharedPromptCache``, one token a row.

    Raises:
        NotImplementedError: the model asks for more than softmax(q·k·scaling)·v.
    """
    extra = [name for name in _EXTRA_TERMS if kwargs.get(name) is not None]
    if shared_prompt_cache is None or extra or query.shape[2] != 1:
        raise NotImplementedError(f"shared-prompt attention of {type(module).__name__} with {extra}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    return shared_prompt_cache.attend(layer_idx, query, scaling), None


AttentionInterface.register(ATTENTION, shared_prompt_attention)
