"""A linear layer with the one adapter of all requests: its products, and where their factors lie.

vLLM's compiled layers take each as it is; others call it directly, for an operator of torch's costs Python
more than the product costs the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F


@torch.library.custom_op("mathrl::add_adapter", mutates_args=("y",))
def add_adapter(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, none: torch.Tensor
) -> None:
    """Add the adapter's share to a layer's output; compiled code takes it as it is.

    Args:
        y: (tokens, out), changed in place.
        x: (tokens, in).
        a: (slices · rank, in).
        b: (out, slices · rank); of a slice's outputs only that slice's columns are not 0.
        none: (1,) bool on the CPU: nobody in this step has an adapter.
    """
    if not none.item():
        y.addmm_(x @ a.t(), b.t())


def with_adapter(
    x: torch.Tensor, whole: torch.Tensor, bias: torch.Tensor | None, b: torch.Tensor, none: torch.Tensor
) -> torch.Tensor:
    """x Wᵀ + bias + (x Aᵀ) Bᵀ.

    Args:
        x: (tokens, in).
        whole: (out + slices · rank, in), W above A.
        bias: (out,).
        b: (out, slices · rank); of a slice's outputs only that slice's columns are not 0.
        none: (1,) bool on the CPU: nobody in this step has an adapter.

    Returns:
        (tokens, out).
    """
    width = len(b)
    if none.item():
        return F.linear(x, whole[:width], bias)
    joint = x @ whole.t()
    if x.is_cuda:
        from mathrl.rollout.core.decode_kernels import expand

        return expand(joint, b, bias)
    out = joint[:, :width] + joint[:, width:] @ b.t()
    return out if bias is None else out + bias


def gated_with_adapter(
    x: torch.Tensor, whole: torch.Tensor, bias: torch.Tensor | None, b: torch.Tensor, none: torch.Tensor
) -> torch.Tensor:
    """silu(left half) · right half of ``with_adapter``: (tokens, out / 2)."""
    if x.is_cuda and not none.item():
        from mathrl.rollout.core.decode_kernels import expand_and_gate

        return expand_and_gate(x @ whole.t(), b, bias)
    gate, up = with_adapter(x, whole, bias, b, none).chunk(2, dim=-1)
    return F.silu(gate) * up


# the same for compiled code, which takes them as they are
_opaque = torch.library.custom_op("mathrl::with_adapter", with_adapter, mutates_args=())
_opaque_gated = torch.library.custom_op("mathrl::gated_with_adapter", gated_with_adapter, mutates_args=())


@_opaque.register_fake
def _(
    x: torch.Tensor, whole: torch.Tensor, bias: torch.Tensor | None, b: torch.Tensor, none: torch.Tensor
) -> torch.Tensor:
    return x.new_empty(x.shape[0], b.shape[0])


@_opaque_gated.register_fake
def _(
    x: torch.Tensor, whole: torch.Tensor, bias: torch.Tensor | None, b: torch.Tensor, none: torch.Tensor
) -> torch.Tensor:
    return x.new_empty(x.shape[0], b.shape[0] // 2)


def below(weight: torch.Tensor, rows: int) -> torch.Tensor:
    """(out + rows, in): the weight's numbers, which lie there from now on, above zeros."""
    whole = weight.new_zeros(len(weight) + rows, weight.shape[1])
    whole[: len(weight)].copy_(weight.data)
    weight.data = whole[: len(weight)]
    return whole


def joined(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], whole_a: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """One matrix each for the slices' ``A`` and ``B``, and the slices again, as views of them.

    Args:
        a: a slice's (1, 1, rank, in).
        b: a slice's (1, 1, out, rank).
        whole_a: (slices · rank, in), to be filled.

    Returns:
        ``whole_a``; (sum of out, slices · rank); the views, shaped as they came.
    """
    whole_b = b[0].new_zeros(sum(part.shape[2] for part in b), len(whole_a))
    views_a, views_b, row, out = [], [], 0, 0
    for part_a, part_b in zip(a, b, strict=True):
        rank, width = part_a.shape[2], part_b.shape[2]
        views_a.append(whole_a[row : row + rank][None, None])
        views_b.append(whole_b[out : out + width, row : row + rank][None, None])
        views_a[-1].copy_(part_a)
        views_b[-1].copy_(part_b)
        row, out = row + rank, out + width
    return whole_a, whole_b, tuple(views_a), tuple(views_b)


def as_called(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``with_adapter`` or ``gated_with_adapter``: itself, or its operator for code that is being compiled."""
    if not torch.compiler.is_compiling():
        return product
    return _opaque_gated if product is gated_with_adapter else _opaque
