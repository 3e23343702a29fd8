"""From a batch to the hidden state that predicts each completion token: packed, or a row per completion.

The packed way runs the model's own layers over one token stream (packing.py) with attention that knows its
segments (attention.py). It is taken for architectures whose layers see positions only through rotary
embeddings of fixed frequencies and whose attention is causal over all earlier tokens; every other one gets
ordinary padded rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mathrl.policy.attention import differentiable_once, gather, plan_attention
from mathrl.policy.cpu.blocked import BlockedLayers
from mathrl.policy.packing import Layout, pack
from mathrl.types import Batch

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


def blocked_layers(model: Any) -> BlockedLayers | None:
    """The layers computed in blocks where that is the same and faster: a CPU, float32, adapters training."""
    if next(model.parameters()).device.type != "cpu" or why_not_packed(model.config):
        return None
    return BlockedLayers.of(model.get_decoder())


class Trunk:
    """The model without its head.

    Args:
        base: a transformers causal LM, LoRA layers inside it or not.
        share_prompts: compute a group's prompt once (packed way only).
        gradient_checkpointing: recompute each layer in the backward.
        compile_layers: torch.compile the layers (packed way only); lengths are symbolic, so that other
            batches reuse the code.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        share_prompts: bool = True,
        gradient_checkpointing: bool = False,
        compile_layers: bool = False,
    ) -> None:
        self._base = base
        self.decoder: Any = base.get_decoder()  # type: ignore[operator]
        self.fallback_reason = why_not_packed(base.config)
        self.share_prompts = share_prompts
        self.gradient_checkpointing = gradient_checkpointing
        self._compiled = compile_layers
        layers: Iterable[Any] = () if self.fallback_reason else self.decoder.layers
        self._layers: list[Callable[..., Tensor]] = [
            torch.compile(layer.forward, dynamic=True) if compile_layers else layer for layer in layers
        ]

    def __call__(self, batch: Batch) -> tuple[Tensor, Layout]:
        """The hidden states that predict the n tokens that train: (n, D), and where each belongs."""
        device = next(self.decoder.parameters()).device
        if self.fallback_reason:
            layout = pack(batch, device, share_prompts=False)
            hidden = self._rows(layout)
        else:
            layout = pack(batch, device, share_prompts=self.share_prompts)
            if (blocked := self._blocked()) is not None and len(layout.segments.length):
                return self._in_blocks(blocked, layout), layout
            hidden = self._stream(layout)
        return gather(hidden, layout.predictor), layout

    def _blocked(self) -> BlockedLayers | None:
        if self._compiled or self.gradient_checkpointing or not differentiable_once():
            return None
        return blocked_layers(self._base)

    def _in_blocks(self, blocked: BlockedLayers, layout: Layout) -> Tensor:
        """(n, D) of the tokens that predict."""
        hidden = self.decoder.embed_tokens(layout.input_ids)
        cos, sin = self.decoder.rotary_emb(hidden, layout.position_ids)
        return blocked(hidden[0], cos[0], sin[0], layout.segments, layout.predictor)

    def _stream(self, layout: Layout) -> Tensor:
        """(N, D) over the packed stream."""
        hidden = self.decoder.embed_tokens(layout.input_ids)
        if not hidden.shape[1]:
            return hidden[0]
        if self._compiled and torch.is_grad_enabled():
            hidden.requires_grad_()  # the first layer is then like the others, and the same code serves all
        common = {
            "position_embeddings": self.decoder.rotary_emb(hidden, layout.position_ids),
            "packed": plan_attention(layout.segments, hidden.device, hidden.dtype),
        }
        for layer in self._layers:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(layer, hidden, use_reentrant=False, **common)
            else:
                hidden = layer(hidden, **common)
        return self.decoder.norm(hidden)[0]

    def _rows(self, layout: Layout) -> Tensor:
        """(N, D) of the same stream, computed as right-padded rows."""
        segments = layout.segments
        lengths = torch.from_numpy(segments.length)
        device = layout.input_ids.device
        valid = (torch.arange(int(lengths.max()) if len(lengths) else 0) < lengths[:, None]).to(device)
        ids = torch.zeros(valid.shape, dtype=torch.long, device=device)
        ids[valid] = layout.input_ids[0]
        out = self.decoder(input_ids=ids, attention_mask=valid.long(), use_cache=False)
        return out.last_hidden_state[valid]
