"""Decoder layers in float32 on a CPU: transformers' own function in fewer passes over memory.

Between two attentions a layer is done in blocks of tokens, by operations that write where their result is
needed. The adapter is folded into the weight for the products with activations (W + s B A), so that only its
own gradients take products of its rank. Backwards are written out and once differentiable; gradients go to
activations and adapters. The same layers decode (rollout/decoding.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mathrl.memory.shapes import why_not_packed
from mathrl.policy.attention import gather
from mathrl.policy.cpu.layers import Layer, Linear, Norm, Rotary
from mathrl.policy.cpu.short_attention import plan_attention
from mathrl.policy.packing import Segments

Attend = Callable[[int, Tensor, Tensor, Tensor, float], Tensor]

BLOCK = 768  # tokens


def blocked_layers(base: Any) -> BlockedLayers | None:
    """The layers of a causal LM where this is the same and faster: a CPU, float32, adapters training."""
    if next(base.parameters()).device.type != "cpu" or why_not_packed(base.config):
        return None
    return BlockedLayers.of(base.get_decoder())


class _AdapterGradients:
    """Sums, over blocks, of the adapters' gradients of linears that share their input."""

    def __init__(self, linears: Sequence[Linear]) -> None:
        self.linears = [
            (i, x.a, x.b, x.scaling) for i, x in enumerate(linears) if x.a is not None and x.b is not None
        ]
        self.a = torch.cat([a for _, a, _, _ in self.linears]) if self.linears else None  # (sum of r, in)
        self.grad_a = None if self.a is None else torch.zeros_like(self.a)
        self.grads_b = [b.new_zeros(b.t().shape) for _, _, b, _ in self.linears]  # (r, out): faster products

    def add(self, x: Tensor, grads: Sequence[Tensor]) -> None:
        """One block: inputs (m, in) and each linear's output gradients (m, out)."""
        if self.a is None or self.grad_a is None:
            return
        inner = x @ self.a.t()
        through, begin = torch.empty_like(inner), 0
        for (i, a, b, _), grad_b in zip(self.linears, self.grads_b, strict=True):
            own = slice(begin, begin + len(a))
            torch.mm(grads[i], b, out=through[:, own])
            grad_b.addmm_(inner[:, own].t(), grads[i])
            begin += len(a)
        self.grad_a.addmm_(through.t(), x)

    def result(self) -> list[Tensor]:
        """A's and B's, linear by linear."""
        found: list[Tensor] = []
        if self.grad_a is not None:
            parts = self.grad_a.split([len(a) for _, a, _, _ in self.linears])
            for (*_, scaling), grad_a, grad_b in zip(self.linears, parts, self.grads_b, strict=True):
                found += [grad_a * scaling, grad_b.t() * scaling]
        return found


def _adapters(linears: Sequence[Linear]) -> list[Tensor]:
    return [x for linear in linears for x in (linear.a, linear.b) if x is not None]


def _blocks(count: int) -> list[slice]:
    return [slice(begin, begin + BLOCK) for begin in range(0, count, BLOCK)]


class _Project(torch.autograd.Function):
    """Hidden states (N, D) -> rotated queries (N, H, d), rotated keys and values (N, H_kv, d)."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, hidden: Tensor, rotary: Rotary, *adapters: Tensor
    ) -> tuple[Tensor, ...]:
        weights = [linear.folded().t() for linear in layer.qkv]
        count, d = hidden.shape[0], layer.head_dim
        outputs = tuple(hidden.new_empty(count, w.shape[1] // d, d) for w in weights)
        scales, before = [], []
        for rows in _blocks(count):
            x, scale = layer.norm.forward(hidden[rows])
            scales.append(scale)
            for i, (linear, weight) in enumerate(zip(layer.qkv, weights, strict=True)):
                target = outputs[i][rows]
                if i == 2:
                    _linear(x, weight, linear.bias, target.flatten(1))
                    continue
                heads = _linear(x, weight, linear.bias).unflatten(1, (-1, d))
                if layer.head_norms:
                    before.append(heads)
                    heads, scale = layer.head_norms[i].forward(heads)
                    before.append(scale)
                rotary(heads, rows, target)
        ctx.layer, ctx.rotary = layer, rotary
        ctx.save_for_backward(hidden, *scales, *before)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layer: Layer = ctx.layer
        hidden, *saved = ctx.saved_tensors
        blocks = _blocks(hidden.shape[0])
        scales, before = saved[: len(blocks)], saved[len(blocks) :]
        sums = _AdapterGradients(layer.qkv)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[1] else None
        weights = [linear.folded() for linear in layer.qkv] if grad_hidden is not None else []
        for n, rows in enumerate(blocks):
            own = []
            for i in range(3):
                grad = grads[i][rows]
                if i < 2:
                    grad = ctx.rotary(grad, rows, back=True)
                    if layer.head_norms:
                        heads, scale = before[4 * n + 2 * i : 4 * n + 2 * i + 2]
                        grad = layer.head_norms[i].backward(grad, heads, scale)
                own.append(grad.flatten(1))
            block = hidden[rows]
            x = (block * scales[n]).mul_(layer.norm.weight)
            sums.add(x, own)
            if grad_hidden is not None:
                grad_x = own[0] @ weights[0]
                grad_x.addmm_(own[1], weights[1]).addmm_(own[2], weights[2])
                grad_hidden[rows] = layer.norm.backward(grad_x, block, scales[n])
        return None, grad_hidden, None, *sums.result()


class _Feed(torch.autograd.Function):
    """(n, D) hidden, (n, H d) attended -> (n, D): h = hidden + attended Woᵀ, then h + mlp(norm(h))."""

    @staticmethod
    def forward(ctx: Any, layer: Layer, hidden: Tensor, attended: Tensor, *adapters: Tensor) -> Tensor:
        out, down = layer.out.folded().t(), layer.down.folded().t()
        gate, up = (linear.folded().t() for linear in layer.gate_up)
        result, saved = torch.empty_like(hidden), []
        for rows in _blocks(hidden.shape[0]):
            h = _linear(attended[rows], out, layer.out.bias).add_(hidden[rows])
            y, scale = layer.mlp_norm.forward(h)
            g = _linear(y, gate, layer.gate_up[0].bias)
            u = _linear(y, up, layer.gate_up[1].bias)
            target = result[rows]
            _linear(F.silu(g).mul_(u), down, layer.down.bias, target)
            target.add_(h)
            saved += [h, scale, g, u]
        ctx.layer = layer
        ctx.save_for_backward(attended, *saved)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: Layer = ctx.layer
        attended, *saved = ctx.saved_tensors
        sums = [_AdapterGradients(x) for x in ((layer.out,), layer.gate_up, (layer.down,))]
        out, down = layer.out.folded(), layer.down.folded()
        gate, up = (linear.folded() for linear in layer.gate_up)
        grad_hidden, grad_attended = torch.empty_like(grad), torch.empty_like(attended)
        for n, rows in enumerate(_blocks(len(grad))):
            h, scale, g, u = saved[4 * n : 4 * n + 4]
            own = grad[rows]
            grad_act = own @ down
            s = F.silu(g)
            if layer.down.a is not None:
                sums[2].add(s * u, [own])
            grad_up = s.mul_(grad_act)
            grad_gate = torch.ops.aten.silu_backward(grad_act.mul_(u), g)
            if any(linear.a is not None for linear in layer.gate_up):
                sums[1].add((h * scale).mul_(layer.mlp_norm.weight), [grad_gate, grad_up])
            grad_y = (grad_gate @ gate).addmm_(grad_up, up)
            grad_h = torch.add(layer.mlp_norm.backward(grad_y, h, scale), own, out=grad_hidden[rows])
            sums[0].add(attended[rows], [grad_h])
            torch.mm(grad_h, out, out=grad_attended[rows])
        return None, grad_hidden, grad_attended, *(x for part in sums for x in part.result())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """x weight + bias, with weight (in, out)."""
    return torch.mm(x, weight, out=out) if bias is None else torch.addmm(bias, x, weight, out=out)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, norm: Norm, x: Tensor) -> Tensor:
        y, scale = norm.forward(x)
        ctx.norm = norm
        ctx.save_for_backward(x, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.norm.backward(grad.clone(), *ctx.saved_tensors)


class BlockedLayers:
    """The decoder's layers over a packed stream."""

    def __init__(self, layers: list[Layer], norm: Norm) -> None:
        self.layers, self.norm = layers, norm
        self._joined: list[tuple[Tensor, Tensor | None]] | None = None  # of decoding

    @classmethod
    def of(cls, decoder: Any) -> BlockedLayers | None:
        """None where something in the decoder, as it is now, is not computed here."""
        layers = [Layer.of(layer) for layer in decoder.layers]
        norm = Norm.of(decoder.norm)
        found = [layer for layer in layers if layer is not None]
        return cls(found, norm) if norm is not None and len(found) == len(layers) else None

    def __call__(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, segments: Segments, wanted: Tensor
    ) -> Tensor:
        """Final hidden states of some tokens.

        Args:
            hidden: (N, D), the embedded tokens.
            cos, sin: (N, d), of the rotary embedding.
            segments: of the stream.
            wanted: (n,) int64 tokens; the last layer computes nothing for the others after its attention.

        Returns:
            (n, D).
        """
        attend = plan_attention(segments, hidden.device, hidden.dtype)
        rotary = Rotary.of(cos, sin, self.layers[0].heads)
        for layer in self.layers:
            query, key, value = _Project.apply(layer, hidden, rotary, *_adapters(layer.qkv))
            attended = attend(query, key, value, layer.head_dim**-0.5).flatten(1)
            if layer is self.layers[-1]:
                hidden, attended = gather(hidden, wanted), gather(attended, wanted)
            rest = _adapters((layer.out, *layer.gate_up, layer.down))
            hidden = _Feed.apply(layer, hidden, attended, *rest)
        return _Normalize.apply(self.norm, hidden)

    def decode(self, hidden: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """(n, D) embedded tokens, each the next of its own sequence, (n, d) -> final hidden states (n, D).

        ``attend`` is given a layer's index, queries (n, H, d), keys and values (n, H_kv, d) and the scale,
        and returns (n, H, d). Without gradients.
        """
        if self._joined is None:
            self._joined = [layer.joined() for layer in self.layers]
        rotary = None
        for index, (layer, (weight, bias)) in enumerate(zip(self.layers, self._joined, strict=True)):
            x, _ = layer.norm.forward(hidden)
            heads = _linear(x, weight, bias).unflatten(1, (-1, layer.head_dim))
            turning = heads.shape[1] - layer.qkv[2].weight.shape[0] // layer.head_dim
            turned, value = heads[:, :turning], heads[:, turning:]
            if layer.head_norms:
                parts = (turned[:, : layer.heads], turned[:, layer.heads :])
                turned = torch.cat(
                    [norm.forward(x)[0] for norm, x in zip(layer.head_norms, parts, strict=True)], 1
                )
            rotary = rotary or Rotary.of(cos, sin, turning)
            turned = rotary(turned, slice(None))
            query, key = turned[:, : layer.heads], turned[:, layer.heads :]
            attended = attend(index, query, key, value, layer.head_dim**-0.5)
            hidden = _Feed.apply(layer, hidden, attended.flatten(1))
        return self.norm.forward(hidden)[0]
