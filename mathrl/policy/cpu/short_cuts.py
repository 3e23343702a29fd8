"""The short cuts of a CPU, as the trunk takes them: layers in blocks, attention over few keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mathrl.policy.attention import PackedAttention, differentiable_once
from mathrl.policy.cpu import short_attention
from mathrl.policy.cpu.blocked import blocked_layers
from mathrl.policy.packing import Layout, Segments


class CpuShortCuts:
    """See ``mathrl.policy.trunk.ShortCuts``. None applies where second derivatives are taken."""

    def hidden_states(self, base: Any, layout: Layout) -> Tensor | None:
        """In blocks, where ``blocked_layers`` has the model's layers."""
        if not differentiable_once() or not len(layout.segments.length):
            return None
        layers = blocked_layers(base)
        if layers is None:
            return None
        decoder = base.get_decoder()
        hidden = decoder.embed_tokens(layout.input_ids)
        cos, sin = decoder.rotary_emb(hidden, layout.position_ids)
        return layers(hidden[0], cos[0], sin[0], layout.segments, layout.predictor)

    def plan_attention(self, segments: Segments, device: torch.device, dtype: torch.dtype) -> PackedAttention:
        return short_attention.plan_attention(segments, device, dtype)
