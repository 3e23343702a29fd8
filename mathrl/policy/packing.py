"""One token stream for a whole micro-batch: no padding, each group's prompt once.

A stream of N tokens is [prompt 0, its completions, prompt 1, its completions, …]. Every piece is a
*segment*; a completion's segment attends to its own tokens and to the tokens of its group's prompt, whose
keys and values are computed once. A completion's last token predicts nothing that trains, so it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mathrl.types import Batch

Index = NDArray[np.int64]

PACKED_ARCHITECTURES = frozenset({"qwen2", "qwen3", "llama"})
# frequencies that depend on how long the input is would depend on how a stream is packed
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def why_not_packed(config: Any) -> str:
    """Empty where the packed way applies to this transformers configuration, else the reason it does not."""
    if config.model_type not in PACKED_ARCHITECTURES:
        return f"architecture {config.model_type!r} has no packed forward"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "the model has sliding-window layers"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        return f"rotary embeddings of type {rope!r} depend on the input's length"
    return ""


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each segment lies in the stream; all (S,) int64 on the CPU."""

    start: Index  # first token in the stream
    length: Index  # own tokens, >= 1
    prefix_start: Index  # first token of the prompt it continues
    prefix_length: Index  # 0: it continues nothing

    @property
    def key_length(self) -> Index:
        return self.prefix_length + self.length


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch as a token stream. n = completion tokens that train."""

    input_ids: Tensor  # (1, N) int64
    position_ids: Tensor  # (1, N) int64: position within prompt + completion
    segments: Segments
    predictor: Tensor  # (n,) int64: the stream token whose hidden state predicts the token
    target: Tensor  # (n,) int64: the token
    slot: Tensor  # (n,) int64: row * T + t, where its result goes


def spans(starts: Index, lengths: Index) -> Index:
    """start, start + 1, … (length of them) of every span, end to end: (S,), (S,) -> (sum of lengths,)."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def pack(batch: Batch, device: torch.device, *, share_prompts: bool = True) -> Layout:
    """The stream of a batch, on ``device``.

    With ``share_prompts`` false every completion carries a copy of its prompt: equal results, more work.

    Raises:
        ValueError: an empty prompt (its first completion token has nothing to be predicted from).
    """
    mask = batch.loss_mask.cpu().numpy()
    num_rows, width = mask.shape
    # up to the last token that trains: a mask may have holes
    lengths = (
        (width - np.argmax(mask[:, ::-1], axis=1)) * mask.any(axis=1) if width else np.zeros(num_rows, int)
    )
    group_ids = batch.group_ids.cpu().numpy()
    prompt_lengths = np.array([len(p) for p in batch.prompts], dtype=np.int64)
    if prompt_lengths.size and prompt_lengths.min() == 0:
        raise ValueError(f"prompt {int(prompt_lengths.argmin())} of the batch has no tokens")
    prompt_source = np.cumsum(prompt_lengths) - prompt_lengths  # in the source: all prompts, then all rows
    row_source = int(prompt_lengths.sum()) + np.arange(num_rows) * width

    rows = np.flatnonzero(lengths)
    if share_prompts:
        rows = rows[np.argsort(group_ids[rows], kind="stable")]
        groups = group_ids[rows]
        first = np.flatnonzero(np.diff(groups, prepend=-1))  # a prompt before the first row of each group
        is_prompt = np.zeros(len(rows) + len(first), dtype=bool)
        is_prompt[first + np.arange(len(first))] = True
        source, length = np.empty(len(is_prompt), np.int64), np.empty(len(is_prompt), np.int64)
        source[is_prompt], length[is_prompt] = prompt_source[groups[first]], prompt_lengths[groups[first]]
        source[~is_prompt], length[~is_prompt] = row_source[rows], lengths[rows] - 1
        start = np.cumsum(length) - length
        own_prompt = np.cumsum(is_prompt) - 1  # index among the prompts
        prefix_start = start[is_prompt][own_prompt]
        prefix_length = np.where(is_prompt, 0, length[is_prompt][own_prompt])
        row_prompt_end = (prefix_start + prefix_length)[~is_prompt] - 1
        row_start = start[~is_prompt]
        index = spans(source, length)
        positions = spans(prefix_length, length)
        kept = length > 0
        segments = Segments(start[kept], length[kept], prefix_start[kept], prefix_length[kept])
    else:
        plens = prompt_lengths[group_ids[rows]]
        length = plens + lengths[rows] - 1
        start = np.cumsum(length) - length
        pairs = np.stack([prompt_source[group_ids[rows]], row_source[rows]], axis=1).ravel()
        index = spans(pairs, np.stack([plens, lengths[rows] - 1], axis=1).ravel())
        positions = spans(np.zeros_like(start), length)
        segments = Segments(start, length, start, np.zeros_like(length))
        row_prompt_end = start + plens - 1
        row_start = start + plens

    order = np.zeros(num_rows, dtype=np.int64)
    order[rows] = np.arange(len(rows))
    token_row, token_t = np.nonzero(mask)
    at = order[token_row]
    predictor = np.where(token_t == 0, row_prompt_end[at], row_start[at] + token_t - 1)

    def put(array: Index) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    completion_ids = batch.completion_ids.to(device)
    source_ids = torch.cat([*(p.to(device) for p in batch.prompts), completion_ids.flatten()])
    slot = put(token_row * width + token_t)
    return Layout(
        input_ids=source_ids[put(index)][None],
        position_ids=put(positions)[None],
        segments=segments,
        predictor=put(predictor),
        target=completion_ids.flatten()[slot],
        slot=slot,
    )
