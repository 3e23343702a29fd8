"""Linears that read one input (queries, keys and values; gate and up) as one product, adapters included.

An adapter of rank r costs a layer little arithmetic but many passes over what the layer writes. Here the
inner products x Aᵀ stand beside x in one matrix, and one product with [W, B] gives all outputs; the
backward's one product with the same matrix gives both the gradient through W and that of x Aᵀ. For compiled
layers (once differentiable), where the rest of a layer is fused around it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mathrl.policy.attention import PackedAttention
from mathrl.policy.lora import FusedLoraLinear


def _beside(weights: Sequence[Tensor], b: Tensor) -> Tensor:
    """[W, B] (sum of out, in + k r): each W_i (out_i, in), its B_i (out_i, r) in columns of its own."""
    width, rank = weights[0].shape[1], b.shape[1]
    whole = b.new_empty((b.shape[0], width + len(weights) * rank))
    torch.cat(tuple(weights), out=whole[:, :width])
    whole[:, width:].zero_()
    begin = 0
    for index, weight in enumerate(weights):
        own = slice(begin, begin := begin + weight.shape[0])
        column = width + index * rank
        whole[own, column : column + rank] = b[own]
    return whole


@torch.library.custom_op("mathrl::joined_lora", mutates_args=())
def joined_lora(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """k linears of x, their outputs side by side, and x beside its inner products.

    Args:
        x: (N, in).
        weights: k of (out_i, in), frozen.
        bias: (sum of out,) or None, frozen.
        a: (k r, in), the A of one linear below the other's.
        b: (sum of out, r), likewise, the scaling in it.

    Returns:
        (N, sum of out): x W_iᵀ + bias_i + (x A_iᵀ) B_iᵀ; and [x, x Aᵀ] (N, in + k r), for the backward.
    """
    width = x.shape[1]
    wide = x.new_empty((x.shape[0], width + a.shape[0]))
    wide[:, :width] = x
    torch.mm(x, a.t(), out=wide[:, width:])
    return F.linear(wide, _beside(weights, b), bias), wide


@torch.library.custom_op("mathrl::joined_lora_backward", mutates_args=())
def _backward(
    grad: Tensor, wide: Tensor, weights: Sequence[Tensor], a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, a and b."""
    width, rank = a.shape[1], b.shape[1]
    through = grad @ _beside(weights, b)  # (N, in + k r)
    x, inner = wide[:, :width], wide[:, width:]
    grad_x = torch.addmm(through[:, :width], through[:, width:], a)
    grad_a = through[:, width:].t() @ x
    grad_b = torch.empty_like(b)
    begin = 0
    for index, weight in enumerate(weights):
        own = slice(begin, begin := begin + weight.shape[0])
        torch.mm(grad[:, own].t(), inner[:, index * rank : (index + 1) * rank], out=grad_b[own])
    return grad_x, grad_a, grad_b


@joined_lora.register_fake
def _(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    return x.new_empty((x.shape[0], b.shape[0])), x.new_empty((x.shape[0], x.shape[1] + a.shape[0]))


@_backward.register_fake
def _(
    grad: Tensor, wide: Tensor, weights: Sequence[Tensor], a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return grad.new_empty((grad.shape[0], a.shape[1])), a.new_empty(a.shape), b.new_empty(b.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, weights, _, a, b = inputs
    ctx.save_for_backward(output[1], a, b, *weights)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    wide, a, b, *weights = ctx.saved_tensors
    grad_x, grad_a, grad_b = _backward(grad.contiguous(), wide, weights, a, b)
    return grad_x, [None] * len(weights), None, grad_a, grad_b


joined_lora.register_autograd(_differentiate, setup_context=_save)


def read_together(x: Tensor, *modules: nn.Module) -> Sequence[Tensor]:
    """What the modules make of x (…, in), one (…, out_i) each; in one product where all have an adapter."""
    parts = [_adapted(module) for module in modules]
    known = [part for part in parts if part is not None]
    ranks = {a.shape[0] for _, _, a, _ in known}
    if len(known) < len(parts) or len(ranks) > 1 or len({bias is None for _, bias, _, _ in known}) > 1:
        return [module(x) for module in modules]
    weights, biases, a, b = zip(*known, strict=True)
    bias = None if biases[0] is None else torch.cat([each for each in biases if each is not None])
    joined, _ = joined_lora(
        x.flatten(0, -2), list(weights), bias, torch.cat(a).to(x.dtype), torch.cat(b).to(x.dtype)
    )
    return joined.unflatten(0, x.shape[:-1]).split([w.shape[0] for w in weights], dim=-1)


def _adapted(module: nn.Module) -> tuple[Tensor, Tensor | None, Tensor, Tensor] | None:
    """Weight, bias, A and s B of a plain LoRA linear whose adapter is on; None of anything else."""
    name = module.plain_adapter() if isinstance(module, FusedLoraLinear) else None
    if not name:
        return None
    base = module.base_layer
    b = module.lora_B[name].weight * module.scaling[name]
    return base.weight, base.bias, module.lora_A[name].weight, b


def decoder_layer(
    layer: Any, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor], packed: PackedAttention
) -> Tensor:
    """A decoder layer of PACKED_ARCHITECTURES (packing.py) over a packed stream: (1, N, D) -> (1, N, D).

    The same as transformers' own forward of it, but for ``read_together``.
    """
    attention, mlp = layer.self_attn, layer.mlp
    x = layer.input_layernorm(hidden)
    q, k, v = (
        y.unflatten(-1, (-1, attention.head_dim))
        for y in read_together(x, attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):  # Qwen3: a head at a time
        q, k = attention.q_norm(q), attention.k_norm(k)
    turn = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # type: ignore[attr-defined]
    q, k = turn(q, k, *position_embeddings, unsqueeze_dim=2)
    out = packed(q[0], k[0], v[0], attention.scaling)
    hidden = hidden + attention.o_proj(out.flatten(-2)[None])
    x = layer.post_attention_layernorm(hidden)
    gate, up = read_together(x, mlp.gate_proj, mlp.up_proj)
    return hidden + mlp.down_proj(mlp.act_fn(gate) * up)
