"""Sampling from W + (alpha/r)·B·A as one weight, without touching W."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def _lora_linears(model: nn.Module) -> list[Any]:
    """The adapter's linear layers, or [] where folding one of them would not be the same function."""
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        base = layer.get_base_layer()
        extras = layer.lora_variant or any(layer.lora_bias.values()) or layer.fan_in_fan_out
        plain = type(base) is nn.Linear and not extras
        # in half precision the sum would round small deltas away
        if not plain or base.weight.dtype != torch.float32 or layer.merged or layer.disable_adapters:
            return []
    return layers


@contextmanager
def folded_adapter(model: nn.Module) -> Iterator[bool]:
    """Inside, every LoRA layer computes one product with W + (alpha/r)·B·A; outside, W is what it was.

    peft's ``merge_adapter``/``unmerge_adapter`` add and subtract in place, which drifts W by rounding a
    little more at every step; here W itself is set aside and put back, bit for bit. Costs a second copy of
    the adapted weights while it lasts. Yields False, and does nothing, where there is no adapter or folding
    would change the function (half precision, DoRA and other variants, adapter switched off).
    """
    layers = _lora_linears(model)
    set_aside = []
    try:
        for layer in layers:
            base = layer.get_base_layer()
            weight = base.weight
            names = [name for name in layer.active_adapters if name in layer.lora_A]
            with torch.no_grad():
                total = weight + sum(layer.get_delta_weight(name) for name in names)
            base.weight = nn.Parameter(total, requires_grad=False)
            layer.merged_adapters.extend(names)
            set_aside.append((layer, base, weight))
        yield bool(layers)
    finally:
        for layer, base, weight in set_aside:
            base.weight = weight
            layer.merged_adapters.clear()
