"""Attention of many sequences of one token each by decode_kernels.py in place of FlashAttention."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from typing import Any

import torch

logger = logging.getLogger("vllm.mathrl")

ENOUGH = 512
"""Sequences times key heads from which one program each keeps a GPU busy; FlashAttention splits fewer."""


def attend_by_rows(kind: Any, attend: Callable[..., None]) -> None:
    """Change vLLM's class ``FlashAttentionImpl``: many sequences of one token each take ``attend``.

    Before the first of them, while nothing is recorded yet, both attend to the same random numbers in the
    engine's own cache; where they do not agree, vLLM's stays.
    """
    forward = kind.forward
    agreed: dict[Any, bool] = {}  # by the shape of a layer

    def is_agreed(self: Any, layer: Any, kv_cache: torch.Tensor, metadata: Any) -> bool:
        shape = self.head_size, self.num_kv_heads, self.num_queries_per_kv, kv_cache.dtype
        if shape not in agreed:
            if _is_recorded():
                return False
            agreed[shape] = agree(self, layer, kv_cache, metadata, forward, attend)
        return agreed[shape]

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
        own = attn_metadata is not None and scales == (None, None)
        if (
            not own
            or not fits(self, query, kv_cache, attn_metadata)
            or not is_agreed(self, layer, kv_cache, attn_metadata)
        ):
            return forward(self, layer, query, key, value, kv_cache, attn_metadata, output, *scales)
        n, lengths = attn_metadata.num_actual_tokens, attn_metadata.seq_lens
        keys, values = _split(self, kv_cache)
        attend(query[:n], keys, values, output[:n], attn_metadata.block_table, lengths, self.scale)
        return output

    kind.forward = chosen


def _split(layer: Any, kv_cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Keys and values, each (pages, tokens a page, key heads, dim)."""
    return kv_cache.transpose(1, 2).split(layer.head_size, dim=-1)


def _is_recorded() -> bool:
    return torch.cuda.is_current_stream_capturing()


def agree(
    impl: Any,
    layer: Any,
    kv_cache: torch.Tensor,
    metadata: Any,
    forward: Callable[..., Any],
    attend: Callable[..., None],
) -> bool:
    """Whether both ways give the same over random pages of this cache, which holds what it held afterwards.

    Args:
        impl: vLLM's attention of a layer.
        layer: what vLLM hands to ``forward`` with it.
        metadata: of any step of one token a sequence.
    """
    pages, page = min(4, len(kv_cache)), kv_cache.shape[2]
    n = min(32, len(kv_cache) // pages)
    used = kv_cache[: n * pages]
    before = used.clone()
    heads = impl.num_kv_heads * impl.num_queries_per_kv
    try:
        query = torch.empty(n, heads, impl.head_size, dtype=kv_cache.dtype, device=kv_cache.device).normal_()
        used.normal_()
        whole: dict[str, Any] = {"dtype": torch.int32, "device": kv_cache.device}
        step = copy(metadata)
        vars(step).update(
            num_actual_tokens=n,
            query_start_loc=torch.arange(n + 1, **whole),
            seq_lens=torch.linspace(1, pages * page, n, device=kv_cache.device).int(),
            max_seq_len=pages * page,
            block_table=torch.arange(n * pages, **whole).flip(0).view(n, pages).contiguous(),
            scheduler_metadata=None,
            max_num_splits=0,
        )
        want, found = torch.zeros_like(query), torch.zeros_like(query)
        unused = query[:, : impl.num_kv_heads]
        forward(impl, layer, query, unused, unused, kv_cache, step, want)
        attend(query, *_split(impl, kv_cache), found, step.block_table, step.seq_lens, impl.scale)
        same = bool(torch.allclose(want.float(), found.float(), atol=2e-2, rtol=2e-2))
        if not same:
            logger.error("attention of many sequences stays vLLM's: ours gives other numbers here")
        return same
    except Exception as error:  # noqa: BLE001 - whatever it is, vLLM's own attention does without
        logger.error("attention of many sequences stays vLLM's: %s", error)
        return False
    finally:
        used.copy_(before)


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
