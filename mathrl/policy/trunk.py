"""From a batch to the hidden state that predicts each completion token: packed, or a row per completion.

The packed way runs the model's own layers over one token stream (packing.py) with attention that knows its
segments (attention.py). It is taken for architectures whose layers see positions only through rotary
embeddings of fixed frequencies and whose attention is causal over all earlier tokens; every other one gets
ordinary padded rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mathrl.memory.shapes import why_not_packed
from mathrl.policy.attention import PackedAttention, gather, plan_attention
from mathrl.policy.compile_cache import keep_compiled
from mathrl.policy.packing import Layout, Segments, pack
from mathrl.types import Batch


class ShortCuts(Protocol):
    """Other ways to the same numbers, up to rounding, where a device has faster ones."""

    def hidden_states(self, base: Any, layout: Layout) -> Tensor | None:
        """The (n, D) hidden states that predict a layout's tokens; None where the layers are to be run."""
        ...

    def plan_attention(
        self, segments: Segments, device: torch.device, dtype: torch.dtype
    ) -> PackedAttention: ...


def short_cuts_of(base: nn.Module) -> ShortCuts | None:
    """Those of a CPU; on any other device none of them is even loaded."""
    if next(base.parameters()).device.type != "cpu":
        return None
    from mathrl.policy.cpu.short_cuts import CpuShortCuts

    return CpuShortCuts()


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
        self.compile(compile_layers)
        self.short_cuts = short_cuts_of(base)

    def compile(self, on: bool) -> None:
        """Compile the layers from now on, or run them as they are."""
        self._compiled = on
        if on:
            keep_compiled()
        layers: Iterable[Any] = () if self.fallback_reason else self.decoder.layers
        self._layers: list[Callable[..., Tensor]] = [
            torch.compile(layer.forward, dynamic=True) if on else layer for layer in layers
        ]

    def __call__(self, batch: Batch) -> tuple[Tensor, Layout]:
        """The hidden states that predict the n tokens that train: (n, D), and where each belongs."""
        device = next(self.decoder.parameters()).device
        if self.fallback_reason:
            layout = pack(batch, device, share_prompts=False)
            hidden = self._rows(layout)
        else:
            layout = pack(batch, device, share_prompts=self.share_prompts)
            if self.short_cuts and not (self._compiled or self.gradient_checkpointing):
                wanted = self.short_cuts.hidden_states(self._base, layout)
                if wanted is not None:
                    return wanted, layout
            hidden = self._stream(layout)
        return gather(hidden, layout.predictor), layout

    def _stream(self, layout: Layout) -> Tensor:
        """(N, D) over the packed stream."""
        hidden = self.decoder.embed_tokens(layout.input_ids)
        if not hidden.shape[1]:
            return hidden[0]
        if self._compiled and torch.is_grad_enabled():
            hidden.requires_grad_()  # the first layer is then like the others, and the same code serves all
        plan = self.short_cuts.plan_attention if self.short_cuts else plan_attention
        common = {
            "position_embeddings": self.decoder.rotary_emb(hidden, layout.position_ids),
            "packed": plan(layout.segments, hidden.device, hidden.dtype),
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
