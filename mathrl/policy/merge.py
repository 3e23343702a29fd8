"""Adding an adapter to the weights that it adapts, and what rounding the sums leaves of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mathrl.policy.adapter_folder import check_fits, target_of
from mathrl.types import Adapter


def scaling_of(config: Mapping[str, Any]) -> float | None:
    """alpha/r, by which B·A is multiplied; None where the adapter is no plain LoRA."""
    if any(config.get(name) for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")):
        return None
    return float(config["lora_alpha"]) / int(config["r"])


def deltas(adapter: Adapter) -> dict[str, Tensor]:
    """(alpha/r)·B·A in float32 by the name of the weight that it is added to, in that weight's shape.

    Raises:
        ValueError: the adapter is no plain LoRA.
    """
    config = adapter.config
    scale = scaling_of(config)
    if scale is None:
        raise ValueError("only plain LoRA can be merged: no rsLoRA, DoRA, rank_pattern or alpha_pattern")
    found = {}
    for name, a in adapter.tensors.items():
        if name.endswith("lora_A.weight"):
            b = adapter.tensors[name.replace("lora_A", "lora_B")]
            delta = scale * (b.detach().float().cpu() @ a.detach().float().cpu())
            found[target_of(name)] = delta.t() if config.get("fan_in_fan_out") else delta
    return found


@torch.no_grad()
def merge_into(model: Any, adapter: Adapter) -> Merger:
    """Add an adapter to the weights of a loaded model, in place and in their type; what rounding them kept.

    Raises:
        UserError: the adapter changes weights that the model has not, or has in another shape.
    """
    weights = dict(model.named_parameters())
    check_fits(adapter, {name: weight.shape for name, weight in weights.items()})
    merger = Merger(next(iter(weights.values())).dtype)
    for name, delta in deltas(adapter).items():
        weight = weights[name]
        weight.data = merger.merge(weight.data.cpu(), delta).to(weight.device)
    return merger


class Merger:
    """W + Δ, made in float32 and rounded once to ``dtype``; and how much of all Δ so far that kept."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._along = self._error = self._norm = 0.0

    def merge(self, weight: Tensor, delta: Tensor) -> Tensor:
        """The rounded sum of a weight and its Δ, both on the CPU."""
        base = weight.to(self.dtype).float()
        merged = (weight.float() + delta).to(self.dtype)
        moved = (merged.float() - base).double()
        self._along += float((moved * delta).sum())
        self._error += float((moved - delta).square().sum())
        self._norm += float(delta.double().square().sum())
        return merged

    @property
    def kept(self) -> float:
        """<rounded − W, Δ> / <Δ, Δ>: 1 where all is kept. Less than half a unit in W's last place goes."""
        return self._along / self._norm if self._norm else 1.0

    @property
    def relative_error(self) -> float:
        """‖rounded − W − Δ‖ / ‖Δ‖; 0 where Δ = 0."""
        return (self._error / self._norm) ** 0.5 if self._norm else 0.0

    @property
    def changed(self) -> bool:
        """Whether any Δ was not 0."""
        return self._norm > 0
