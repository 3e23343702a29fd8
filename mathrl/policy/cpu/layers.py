"""What a decoder layer is made of, read off transformers' and peft's modules, for blocked.py to compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mathrl.policy.lora import FusedLoraLinear


def _trains(parameter: Tensor) -> bool:
    return parameter.requires_grad and torch.is_grad_enabled()


class Linear(NamedTuple):
    """A frozen linear layer and the adapter that is active on it, if one is."""

    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    a: Tensor | None = None  # (r, in)
    b: Tensor | None = None  # (out, r)
    scaling: float = 0.0

    @classmethod
    def of(cls, module: nn.Module) -> Linear | None:
        """None where the module computes something else, or trains more than an adapter."""
        if type(module) is nn.Linear:
            found = cls(module.weight, module.bias)
        elif not isinstance(module, FusedLoraLinear):
            return None
        else:
            name, base = module.plain_adapter(), module.base_layer
            if name is None:
                return None
            found = cls(base.weight, base.bias)
            if name:
                a, b = module.lora_A[name].weight, module.lora_B[name].weight
                found = cls(base.weight, base.bias, a, b, module.scaling[name])
        every = [x for x in (found.weight, found.bias, found.a, found.b) if x is not None]
        trains = _trains(found.weight) or (found.bias is not None and _trains(found.bias))
        return None if trains or any(x.dtype != torch.float32 for x in every) else found

    def folded(self) -> Tensor:
        """(out, in): W + s B A."""
        if self.a is None or self.b is None:
            return self.weight
        return torch.addmm(self.weight, self.b, self.a, alpha=self.scaling)


class Norm(NamedTuple):
    """Root-mean-square norm, arXiv:1910.07467: y = x w / sqrt(mean(x²) + eps), w frozen."""

    weight: Tensor  # (D,)
    eps: float

    @classmethod
    def of(cls, module: Any) -> Norm | None:
        """None where its weight trains."""
        weight = module.weight
        if _trains(weight) or weight.dtype != torch.float32:
            return None
        return cls(weight, module.variance_epsilon)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, D) -> y (…, D) and 1 / sqrt(…) (…, 1)."""
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(self.eps).rsqrt_()
        return (x * scale).mul_(self.weight), scale

    def backward(self, grad: Tensor, x: Tensor, scale: Tensor) -> Tensor:
        """Gradient of x from that of y; ``grad`` is overwritten."""
        grad.mul_(self.weight)
        along = torch.linalg.vecdot(grad, x)[..., None] * scale.pow(3).div_(-x.shape[-1])
        return grad.mul_(scale).addcmul_(x, along)


@dataclass(frozen=True, slots=True)
class Layer:
    """What a decoder layer is made of."""

    norm: Norm
    qkv: tuple[Linear, Linear, Linear]
    head_norms: tuple[Norm, Norm] | None  # of queries and keys, a head at a time (Qwen3)
    head_dim: int
    out: Linear
    mlp_norm: Norm
    gate_up: tuple[Linear, Linear]
    down: Linear

    def joined(self) -> tuple[Tensor, Tensor | None]:
        """Weights (D, (H + 2 H_kv) d) and bias of queries, keys and values in one product."""
        weight = torch.cat([linear.folded() for linear in self.qkv]).t()
        biases = [linear.bias for linear in self.qkv if linear.bias is not None]
        return weight, torch.cat(biases) if biases else None

    @property
    def heads(self) -> int:
        return self.qkv[0].weight.shape[0] // self.head_dim

    @classmethod
    def of(cls, module: Any) -> Layer | None:
        """None where a part of the layer is not what is computed here."""
        attention, mlp = module.self_attn, module.mlp
        if not isinstance(mlp.act_fn, nn.SiLU) and type(mlp.act_fn).__name__ != "SiLUActivation":
            return None
        norms = [Norm.of(module.input_layernorm), Norm.of(module.post_attention_layernorm)]
        named = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
        heads = [Norm.of(norm) for norm in named if norm is not None]
        modules = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears = [Linear.of(m) for m in (*modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
        if None in norms or None in heads or None in linears:
            return None
        q, k, v, out, gate, up, down = linears
        both = (heads[0], heads[1]) if heads else None
        return cls(norms[0], (q, k, v), both, attention.head_dim, out, norms[1], (gate, up), down)  # type: ignore[arg-type]


class Rotary(NamedTuple):
    """Rotary embedding of N tokens: x cos + (x, its halves swapped) sin; repeated over the heads (H d)."""

    cos: Tensor  # (N, H d)
    sin: Tensor  # (N, H d), the first half of every head negated

    @classmethod
    def of(cls, cos: Tensor, sin: Tensor, heads: int) -> Rotary:
        """From transformers' (N, d), for up to this many heads."""
        half = cos.shape[1] // 2
        return cls(cos.repeat(1, heads), torch.cat((-sin[:, :half], sin[:, half:]), dim=1).repeat(1, heads))

    def __call__(self, x: Tensor, rows: slice, out: Tensor | None = None, *, back: bool = False) -> Tensor:
        """(m, H, d) at some rows -> the same rotated, or rotated back."""
        swapped = x.roll(x.shape[2] // 2, 2).flatten(1)
        flat = x.flatten(1)
        width = flat.shape[1]
        turned = torch.mul(flat, self.cos[rows, :width], out=None if out is None else out.flatten(1))
        return turned.addcmul_(swapped, self.sin[rows, :width], value=-1 if back else 1).view_as(x)
