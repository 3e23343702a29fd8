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


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(N, in) -> (N, out) and the inner product x Aᵀ (N, r)."""
    inner = x @ a.t()
    return F.linear(x, weight, bias).addmm_(inner, b.t()), inner


class _LoraLinear(torch.autograd.Function):
    """y = x Wᵀ + bias + (x Aᵀ) Bᵀ with W and bias frozen; differentiable twice.

    x (N, in), W (out, in), A (r, in), B (out, r), all of one type; the scaling is in B already. The inner
    product is an output only so that a second derivative can see through it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, inner = _forward(x, weight, bias, a, b)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, a, b, inner)
        return out, inner

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_inner: Tensor | None
    ) -> tuple[Tensor | None, None, None, Tensor | None, Tensor | None]:
        x, weight, a, b, inner = ctx.saved_tensors
        if grad is None:
            if grad_inner is None:
                return None, None, None, None, None
            return grad_inner @ a, None, None, grad_inner.t() @ x, None
        through = grad @ b  # (N, r)
        if grad_inner is not None:
            through = through + grad_inner
        grad_x = (grad @ weight).addmm_(through, a) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, through.t() @ x, grad.t() @ inner


# The same for compiled code, once differentiable. Opaque on purpose: a compiler that sees y + h Bᵀ writes y,
# copies it and adds to the copy; in here the sum is accumulated in place.
@torch.library.custom_op("mathrl::lora_linear", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return _forward(x, weight, bias, a, b)


@torch.library.custom_op("mathrl::lora_linear_backward", mutates_args=())
def _opaque_backward(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    through = grad @ b
    return (grad @ weight).addmm_(through, a), through.t() @ x, grad.t() @ inner


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], weight.shape[0])), x.new_empty((x.shape[0], a.shape[0]))


@_opaque_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, inner: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, a, b = inputs
    ctx.save_for_backward(x, weight, a, b, output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, grad_a, grad_b = _opaque_backward(grad.contiguous(), *ctx.saved_tensors)
    return grad_x, None, None, grad_a, grad_b


_opaque.register_autograd(_differentiate, setup_context=_save)


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> Tensor:
    """x Wᵀ + bias + scaling (x Aᵀ) Bᵀ: (…, in) -> (…, out), in the type of ``x``; A, B of any float type."""
    a, b = a.to(x.dtype), (b * scaling).to(x.dtype)
    apply = _opaque if torch.compiler.is_compiling() else _LoraLinear.apply
    out, _ = apply(x.flatten(0, -2), weight, bias, a, b)
    return out.unflatten(0, x.shape[:-1])


class FusedLoraLinear(PeftLinear):
    """peft's LoRA linear with the fused forward where it applies, peft's own where it does not."""

    def plain_adapter(self) -> str | None:
        """The adapter of x Wᵀ + s (x Aᵀ) Bᵀ; "" where W alone counts, None where peft's forward is needed."""
        if self.merged or self.disable_adapters:
            return None if self.merged and self.disable_adapters else ""
        if len(self.active_adapters) != 1:
            return None
        name = self.active_adapters[0]
        if name not in self.lora_A or (
            self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        ):
            return None
        return str(name)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self.plain_adapter()
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base = self.base_layer
        if not name:
            return base(x)
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
