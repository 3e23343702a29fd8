"""LoRA linears in one autograd node, in the compute type of the base.

peft's own forward casts activations to the float32 of the adapter's masters and back and runs the product,
the scaling and the sum as separate nodes. Here the masters are cast instead (they are small) and the sum is
accumulated by the matrix product itself. The modules stay peft's, so names on disk do not change.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + (x Aᵀ) Bᵀ with W and bias frozen; differentiable twice.

    x (…, in), W (out, in), A (r, in), B (out, r), all of one type; the scaling is in B already.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        rows = x.reshape(-1, x.shape[-1])
        out = F.linear(rows, weight, bias)
        return out.addmm_(rows @ a.t(), b.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        x, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])
        rows = x.reshape(-1, x.shape[-1])
        inner = grad @ b  # (N, r)
        grad_a = inner.t() @ rows
        # h is as cheap to compute again as to keep
        grad_b = grad.t() @ (rows @ a.t())
        grad_x = torch.addmm(grad @ weight, inner, a).view(x.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, grad_a, grad_b


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """x Wᵀ + bias + scaling (x Aᵀ) Bᵀ: (…, in) -> (…, out), in the type of ``x``; A, B of any float type."""
    a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
    return _LoraLinear.apply(x, weight, bias, a, b)


class FusedLoraLinear(PeftLinear):
    """peft's LoRA linear with the fused forward where it applies, peft's own where it does not."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and not self.merged:
            return self.base_layer(x)
        name = self.active_adapters[0]
        if self.merged or args or kwargs or len(self.active_adapters) != 1 or name not in self.lora_A:
            return super().forward(x, *args, **kwargs)
        if self.training and not isinstance(self.lora_dropout[name], nn.Identity):
            return super().forward(x)
        base = self.base_layer
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        return lora_linear(x, base.weight, base.bias, a, b, self.scaling[name])


def fuse(model: nn.Module) -> int:
    """Give every plain LoRA linear of the model the fused forward; returns how many.

    Variants of LoRA (DoRA and the like), quantised bases and adapters with a bias keep peft's forward.
    """
    count = 0
    for module in model.modules():
        if type(module) is PeftLinear and _plain(module):
            module.__class__ = FusedLoraLinear
            count += 1
    return count


def _plain(module: PeftLinear) -> bool:
    return (
        type(module.base_layer) is nn.Linear
        and not module.fan_in_fan_out
        and not module.lora_variant
        and not any(module.lora_bias.values())
    )
