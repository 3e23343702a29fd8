"""One token stream for a whole micro-batch: no padding, each group's prompt once.

A stream of N tokens is [prompt 0, its completions, prompt 1, its completions, …]. Every piece is a
*segment*; a completion's segment attends to its own tokens and to the tokens of its group's prompt, whose
keys and values are computed once. A completion's last token predicts nothing that trains, so it is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mathrl.types import Batch

Index = NDArray[np.int64]


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


class _Rows(NamedTuple):
    """The completions that have a token that trains, R of them, and where the source holds what they read.

    The source is all prompts end to end, then all completions, padded.
    """

    row: Index  # (R,) of the batch; where prompts are shared, ordered by group
    length: Index  # (R,) tokens up to the last one that trains: a mask may have holes
    group: Index  # (R,)
    source: Index  # (R,) first token of the completion in the source
    prompt_length: Index  # (P,)
    prompt_source: Index  # (P,) first token of the prompt in the source


class _Stream(NamedTuple):
    """The stream by the source's tokens, and where each of the R rows lies in it."""

    source: Index  # (N,)
    position: Index  # (N,)
    segments: Segments
    prompt_end: Index  # (R,) last token of the row's prompt
    start: Index  # (R,) first token of the row


def pack(batch: Batch, device: torch.device, *, share_prompts: bool = True) -> Layout:
    """The stream of a batch, on ``device``.

    With ``share_prompts`` false every completion carries a copy of its prompt: equal results, more work.

    Raises:
        ValueError: an empty prompt (its first completion token has nothing to be predicted from).
    """
    mask = batch.loss_mask.cpu().numpy()
    num_rows, width = mask.shape
    rows = _rows(batch, mask, by_group=share_prompts)
    stream = _with_shared_prompts(rows) if share_prompts else _with_own_prompts(rows)

    order = np.zeros(num_rows, dtype=np.int64)
    order[rows.row] = np.arange(len(rows.row))
    token_row, token_t = np.nonzero(mask)
    at = order[token_row]
    predictor = np.where(token_t == 0, stream.prompt_end[at], stream.start[at] + token_t - 1)

    def put(array: Index) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    source_ids = torch.cat([*batch.prompts, batch.completion_ids.flatten()]).to(device)
    slot = put(token_row * width + token_t)
    return Layout(
        input_ids=source_ids[put(stream.source)][None],
        position_ids=put(stream.position)[None],
        segments=stream.segments,
        predictor=put(predictor),
        target=source_ids[int(rows.prompt_length.sum()) :][slot],
        slot=slot,
    )


def _rows(batch: Batch, mask: NDArray[np.bool_], *, by_group: bool) -> _Rows:
    num_rows, width = mask.shape
    lengths = (
        (width - np.argmax(mask[:, ::-1], axis=1)) * mask.any(axis=1) if width else np.zeros(num_rows, int)
    )
    group_ids = batch.group_ids.cpu().numpy()
    prompt_length = np.array([len(p) for p in batch.prompts], dtype=np.int64)
    if prompt_length.size and prompt_length.min() == 0:
        raise ValueError(f"prompt {int(prompt_length.argmin())} of the batch has no tokens")
    index = np.flatnonzero(lengths)
    if by_group:
        index = index[np.argsort(group_ids[index], kind="stable")]
    source = int(prompt_length.sum()) + index * width
    prompt_source = np.cumsum(prompt_length) - prompt_length
    return _Rows(index, lengths[index], group_ids[index], source, prompt_length, prompt_source)


def _with_shared_prompts(rows: _Rows) -> _Stream:
    """Each prompt before the first row of its group."""
    first = np.flatnonzero(np.diff(rows.group, prepend=-1))
    is_prompt = np.zeros(len(rows.row) + len(first), dtype=bool)
    is_prompt[first + np.arange(len(first))] = True
    source, length = np.empty(len(is_prompt), np.int64), np.empty(len(is_prompt), np.int64)
    opening = rows.group[first]
    source[is_prompt], length[is_prompt] = rows.prompt_source[opening], rows.prompt_length[opening]
    source[~is_prompt], length[~is_prompt] = rows.source, rows.length - 1
    start = np.cumsum(length) - length
    own_prompt = np.cumsum(is_prompt) - 1  # index among the prompts
    prefix_start = start[is_prompt][own_prompt]
    prefix_length = np.where(is_prompt, 0, length[is_prompt][own_prompt])
    kept = length > 0
    return _Stream(
        spans(source, length),
        spans(prefix_length, length),
        Segments(start[kept], length[kept], prefix_start[kept], prefix_length[kept]),
        (prefix_start + prefix_length)[~is_prompt] - 1,
        start[~is_prompt],
    )


def _with_own_prompts(rows: _Rows) -> _Stream:
    """A prompt before every row, in one segment with it."""
    prompt = rows.prompt_length[rows.group]
    length = prompt + rows.length - 1
    start = np.cumsum(length) - length
    pairs = np.stack([rows.prompt_source[rows.group], rows.source], axis=1).ravel()
    source = spans(pairs, np.stack([prompt, rows.length - 1], axis=1).ravel())
    segments = Segments(start, length, start, np.zeros_like(length))
    return _Stream(source, spans(np.zeros_like(start), length), segments, start + prompt - 1, start + prompt)
