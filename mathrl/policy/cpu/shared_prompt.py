"""Key/value memory of a rollout: each prompt once, each completion preallocated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

ATTENTION = "mathrl_shared_prompt"
_SHORT = 32  # tokens: up to here a product a row is slower than multiplying and adding up
_EXTRA_TERMS = ("sliding_window", "softcap", "s_aux", "position_bias")

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class SharedPromptCache(Cache):
    """Keys and values of P prompts, once each, and of up to P·G completions.

    The G completions of a problem read one copy of its prompt: attention over the prompt is a product of
    G queries with the same keys, combined with that over the completion by the parts' log-sum-exps
    ("Hydragen", arXiv:2402.05099, section 3). Completions have a preallocated block of T slots in which the
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
        self.keys: list[Tensor] = []  # (T, P·G, Hkv, D)
        self.values: list[Tensor] = []
        for keys, values in zip(self.prompt_keys, self.prompt_values, strict=True):
            heads = keys.shape[1]
            self.keys.append(keys.new_empty(max_tokens, self.num_rows, heads, keys.shape[3]))
            self.values.append(values.new_empty(max_tokens, self.num_rows, heads, values.shape[3]))

    @staticmethod
    def fits(prompts: Cache) -> bool:
        """Whether every layer of this cache attends to all that came before, and to nothing else."""
        return bool(prompts.layers) and all(type(layer) is DynamicLayer for layer in prompts.layers)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store (n, Hkv, 1, D) keys and values of the newest token; attention reads the rest from here."""
        self._store(layer_idx, key_states[:, :, 0], value_states[:, :, 0])
        return key_states, value_states

    def _store(self, layer_idx: int, key: Tensor, value: Tensor) -> None:
        self.keys[layer_idx][self.length, : self.num_rows] = key
        self.values[layer_idx][self.length, : self.num_rows] = value

    def extend(self, layer_idx: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Store (n, Hkv, D) keys and values of the newest token, and attend with its queries (n, H, D)."""
        self._store(layer_idx, key, value)
        return self.attend(layer_idx, query, scaling)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prompt_length + self.length

    def attend(self, layer_idx: int, query: Tensor, scaling: float) -> Tensor:
        """Attention of the newest token to its prompt and its completion.

        Args:
            layer_idx: index of the layer.
            query: (n, H, D).
            scaling: factor of the scores.

        Returns:
            (n, H, Dv).
        """
        before, before_sum = self._prompt(layer_idx, query, scaling)
        own, own_sum = self._own(layer_idx, query, scaling)
        share = torch.sigmoid(before_sum - own_sum).to(own.dtype)
        return torch.lerp(own, before, share[..., None])

    def _prompt(self, layer_idx: int, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """Attention of (n, H, D) queries to their prompts: (n, H, Dv), and the scores' log-sum-exp (n, H)."""
        keys, values = self.prompt_keys[layer_idx], self.prompt_values[layer_idx]
        slots = self._to_slots(query).unflatten(0, (-1, self.group_size)).transpose(1, 2)  # (P, H, G, D)
        if query.device.type == "cpu":
            out, total = _flash(slots, keys, values, attn_mask=self.padding, scale=scaling)
        else:
            each = query.shape[1] // keys.shape[1]
            keys, values = (x.repeat_interleave(each, 1) for x in (keys, values))
            scores = ((slots * scaling) @ keys.transpose(2, 3)).float()
            scores = scores if self.padding is None else scores + self.padding
            total = scores.logsumexp(dim=3)
            out = (scores - total[..., None]).exp().to(query.dtype) @ values
        out, total = out.transpose(1, 2).flatten(0, 1), total.transpose(1, 2).flatten(0, 1)
        return self._to_rows(out), self._to_rows(total)

    def _own(self, layer_idx: int, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """The same over the completions' own tokens."""
        n, length = len(query), self.length + 1
        keys, values = (x[:length, :n] for x in (self.keys[layer_idx], self.values[layer_idx]))
        each = query.shape[1] // keys.shape[2]
        query = query * scaling
        if each == 1 and length <= _SHORT and query.device.type == "cpu":
            scores = (keys * query).sum(-1)  # (t, n, H)
            total = scores.logsumexp(dim=0)
            return (scores.sub_(total).exp_()[..., None] * values).sum(0), total
        scores = query.unflatten(1, (-1, each)) @ keys.permute(1, 2, 3, 0)  # (n, Hkv, each, t)
        scores = scores.float()
        total = scores.logsumexp(dim=3)
        out = (scores - total[..., None]).exp().to(query.dtype) @ values.permute(1, 2, 0, 3)
        return out.flatten(1, 2), total.flatten(1, 2)

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
            block[: self.length, moved] = block[: self.length, source]
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
    return shared_prompt_cache.attend(layer_idx, query[:, :, 0], scaling)[:, None], None


AttentionInterface.register(ATTENTION, shared_prompt_attention)
