"""The kernels of a decoding step (decode_kernels.py) in place of vLLM's, where they are the faster ones."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from typing import Any

import torch

from mathrl.rollout.core.process import runs_vllm

TRIED = ("0.26",)  # versions of vLLM in which this has run on a GPU
SWITCH = "MATHRL_DECODE_KERNELS"  # in the environment; 0: vLLM's own kernels
ENOUGH = 512
"""Sequences times key heads from which one program each keeps a GPU busy; FlashAttention splits fewer."""


def _nothing() -> None:
    """In place of a tensor that is gone."""


class Drawing:
    """In place of vLLM's Gumbel sampling; it remembers the log-probabilities of what it has drawn last.

    Args:
        draw: ``decode_kernels.draw``.
        sample: vLLM's ``gumbel_sample``.
        score: vLLM's ``compute_topk_scores``.
        tensors: vLLM's class ``LogprobsTensors``.
    """

    def __init__(
        self, draw: Callable[..., Any], sample: Callable[..., Any], score: Callable[..., Any], tensors: Any
    ) -> None:
        self._draw, self._sample, self._score, self._tensors = draw, sample, score, tensors
        self._last: tuple[Any, Any, Any] = (_nothing, _nothing, None)  # logits, tokens, log-probabilities

    def sample(
        self,
        logits: torch.Tensor,
        places: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        apply_temperature: bool,
        **others: Any,
    ) -> Any:
        """As ``gumbel_sample``: (rows,) tokens."""
        self._last = _nothing, _nothing, None
        if apply_temperature or any(value is not None and value is not False for value in others.values()):
            return self._sample(logits, places, temperature, seeds, positions, apply_temperature, **others)
        tokens, logprobs = self._draw(logits, places.contiguous(), temperature, seeds, positions.contiguous())
        self._last = weakref.ref(logits), weakref.ref(tokens), logprobs
        return tokens

    def score(
        self,
        logits: torch.Tensor,
        num_logprobs: int,
        sampled_token_ids: torch.Tensor,
        cu_num_logits: Any = None,
        max_per_req_token_ids: int = 0,
        logits_mode: bool = False,
        **others: Any,
    ) -> Any:
        """As ``compute_topk_scores``; ranks are not looked for where only the drawn tokens are scored."""
        seen, drawn, logprobs = self._last
        own = seen() is logits and drawn() is sampled_token_ids
        if own and num_logprobs == max_per_req_token_ids == 0 and not logits_mode and cu_num_logits is None:
            ranks = torch.zeros_like(sampled_token_ids)
            return self._tensors(sampled_token_ids[:, None], logprobs[:, None], ranks)
        return self._score(
            logits,
            num_logprobs,
            sampled_token_ids,
            cu_num_logits,
            max_per_req_token_ids=max_per_req_token_ids,
            logits_mode=logits_mode,
            **others,
        )


def attend_by_rows(kind: Any, attend: Callable[..., None]) -> None:
    """Change vLLM's class ``FlashAttentionImpl``: many sequences of one token each take ``attend``."""
    forward = kind.forward

    def chosen(
        self: Any,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Any,
        output: torch.Tensor,
        output_scale: Any = None,
        output_block_scale: Any = None,
    ) -> Any:
        scales = output_scale, output_block_scale
        if attn_metadata is None or scales != (None, None) or not fits(self, query, kv_cache, attn_metadata):
            return forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *scales)
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        n, lengths = attn_metadata.num_actual_tokens, attn_metadata.seq_lens
        attend(query[:n], keys, values, output[:n], attn_metadata.block_table, lengths, self.scale)
        return output

    kind.forward = chosen


def fits(layer: Any, query: torch.Tensor, kv_cache: torch.Tensor, metadata: Any) -> bool:
    """Whether ``attend`` computes this layer's attention: plain, causal, one token a sequence, of many."""
    window = metadata.sliding_window if metadata.sliding_window is not None else layer.sliding_window
    return bool(
        metadata.max_query_len == 1
        and metadata.num_actual_tokens == len(metadata.seq_lens)
        and metadata.num_actual_tokens * layer.num_kv_heads >= ENOUGH
        and metadata.causal is True
        and not metadata.use_cascade
        and metadata.mm_prefix_range_tensor is None
        and metadata.rswa_prefix_lens is None
        and tuple(window) == (-1, -1)
        and layer.dcp_world_size == 1
        and layer.alibi_slopes is None
        and not layer.logits_soft_cap
        and layer.sinks is None
        and getattr(layer.attn_type, "value", layer.attn_type) == "decoder"
        and layer.head_size in (64, 128)
        and layer.num_queries_per_kv <= 16
        and query.dtype == kv_cache.dtype
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.stride()[1:] == (layer.head_size, 1)
    )


def use_decode_kernels() -> None:
    """Change vLLM's sampler and attention, in the core's process, where that has been tried."""
    if not runs_vllm(TRIED, SWITCH) or not torch.cuda.is_available():
        return
    from mathrl.rollout.core.decode_kernels import attend, draw

    sampler: Any = importlib.import_module("vllm.v1.worker.gpu.sample.sampler")
    outputs: Any = importlib.import_module("vllm.v1.outputs")
    drawing = Drawing(draw, sampler.gumbel_sample, sampler.compute_topk_scores, outputs.LogprobsTensors)
    sampler.gumbel_sample, sampler.compute_topk_scores = drawing.sample, drawing.score
    attention: Any = importlib.import_module("vllm.v1.attention.backends.flash_attn")
    attend_by_rows(attention.FlashAttentionImpl, attend)
