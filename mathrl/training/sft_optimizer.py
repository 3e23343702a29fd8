"""The supervised stage's optimiser: float32 masters, kept and put back, and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mathrl.config import SftConfig
from mathrl.distributed.collectives import sum_gradients


class Masters:
    """AdamW on float32 masters of the model's weights: steps of 1e-6 would vanish in bfloat16."""

    def __init__(self, model: Any, sft: SftConfig) -> None:
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in self.weights]
        self.max_grad_norm = sft.max_grad_norm
        decayed = [m for m in self.masters if m.dim() >= 2]  # norms and biases are not decayed
        others = [m for m in self.masters if m.dim() < 2]
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": sft.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.95),
            fused=True,
        )

    def snapshot(self) -> list[Tensor]:
        """Copies of the masters, in the machine's own memory."""
        return [master.detach().to("cpu", copy=True) for master in self.masters]

    @torch.no_grad()
    def restore(self, snapshot: Sequence[Tensor]) -> None:
        """Put the weights back to where ``snapshot`` was taken."""
        for weight, master, kept in zip(self.weights, self.masters, snapshot, strict=True):
            master.copy_(kept)
            if master is not weight:
                weight.copy_(master)

    def step(self, learning_rate: float) -> float:
        """Add the ranks' gradients, clip, step, clear them; returns their norm before clipping."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if master is not weight and weight.grad is not None:
                master.grad, weight.grad = weight.grad.float(), None
        sum_gradients(self.masters)
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.max_grad_norm)
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                if master is not weight:
                    weight.copy_(master)
        return norm.item()


def schedule(step: int, sft: SftConfig) -> float:
    """Factor of the learning rate at a 0-based step: warm-up, then cosine to 0 at max_train_steps."""
    return warmup_cosine(step, sft.max_train_steps, sft.warmup_fraction)


def warmup_cosine(step: int, num_steps: int, warmup_fraction: float) -> float:
    """Factor of a learning rate at a 0-based step: linear over the warm-up, then cosine to 0 at num_steps."""
    warmup = max(1, round(warmup_fraction * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))
