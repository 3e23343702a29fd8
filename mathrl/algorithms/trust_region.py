"""The KL-constrained natural-gradient step of TRPO (arXiv:1502.05477): pure functions of tensors.

Maximise the surrogate subject to mean KL(old || new) <= delta: with g the gradient of the loss and F the
Hessian of the mean KL at the old weights, the step is sqrt(2 delta / s^T F s) s with s = -F^-1 g
(appendix C). Nothing here ever holds a matrix over parameters, nor the logits of more than a chunk of tokens.

Shapes: N tokens, D width, V vocabulary, n parameters (flat).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

CHUNK_LOGITS = 1 << 24
"""Logits held at once: 64 MiB of float32 for each of the few (chunk, V) tensors of a function below."""

SHRINK = 0.8
"""Factor of the line search: halving would often give away three quarters of a KL a little too large."""

LinearMap = Callable[[Tensor], Tensor]


def to_vector(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of any shapes -> (n,)."""
    return torch.cat([t.reshape(-1) for t in tensors])


def from_vector(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """(n,) -> tensors shaped as ``like``; the inverse of ``to_vector``."""
    parts = vector.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


class Solution(NamedTuple):
    x: Tensor  # (n,)
    image: Tensor  # (n,) A x, known from the iterations without another product
    residual: float  # |b - A x| / |b|
    iterations: int


def conjugate_gradient(product: LinearMap, b: Tensor, iterations: int, tolerance: float = 1e-10) -> Solution:
    """Solve A x = b, A symmetric positive (semi-)definite and known by products (Hestenes & Stiefel 1952).

    Stops after ``iterations``, at |residual| <= tolerance · |b|, or at a direction without curvature.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction = residual.clone()
    norm = start = float(residual @ residual)
    done = 0
    while done < iterations and norm > tolerance**2 * start:
        image = product(direction)
        curvature = float(direction @ image)
        if not curvature > 0:
            break
        length = norm / curvature
        x += length * direction
        residual -= length * image
        before, norm = norm, float(residual @ residual)
        direction = residual + (norm / before) * direction
        done += 1
    return Solution(x, b - residual, math.sqrt(norm / start) if start > 0 else 0.0, done)


def boundary_scale(curvature: float, delta: float) -> float:
    """sqrt(2 delta / s^T F s): the multiple of s whose quadratic KL is delta; 0 where s has no curvature."""
    return math.sqrt(2.0 * delta / curvature) if curvature > 0 else 0.0


def fisher_logits_product(hidden: Tensor, tangent: Tensor, head: Tensor, temperature: float) -> Tensor:
    """W^T (diag p - p p^T) W u / temperature² a token: (N, D), (N, D) -> (N, D).

    The exact Hessian of KL(old || new) in the logits is diag p - p p^T; the head W (V, D) takes it to the
    hidden states. Exact over the whole vocabulary, a chunk of tokens at a time.
    """
    out = torch.empty_like(tangent)
    for rows in chunks(len(hidden), head.shape[0]):
        p = _logprobs(hidden[rows], head, temperature).exp()
        dz = _wide(tangent[rows] @ head.t()) / temperature
        q = p * (dz - torch.linalg.vecdot(p, dz)[:, None])
        out[rows] = ((q / temperature).to(head.dtype) @ head).to(out.dtype)
    return out


class GaussNewton:
    """v -> sum_t J_t^T H_t J_t v over tokens t, H_t the KL Hessian in its hidden state (Schraudolph 2002).

    At the old weights KL's own gradient vanishes, so this is the exact Hessian of the summed KL, not an
    approximation (TRPO, appendix C.1). J v comes from differentiating the (linear) map u -> J^T u.

    Args:
        hidden: (N, D) with its graph, which must be differentiable twice; both graphs are kept.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Tensor,
        parameters: Sequence[Parameter],
        temperature: float = 1.0,
    ):
        self.hidden, self.head, self.parameters = hidden, head, list(parameters)
        self.temperature = temperature
        self._cotangent = torch.zeros_like(hidden, requires_grad=True)
        self._pulled = torch.autograd.grad(hidden, self.parameters, self._cotangent, create_graph=True)

    def __call__(self, vector: Tensor) -> Tensor:
        """(n,) -> (n,)."""
        pieces = from_vector(vector, self.parameters)
        (tangent,) = torch.autograd.grad(self._pulled, self._cotangent, pieces, retain_graph=True)
        image = fisher_logits_product(self.hidden.detach(), tangent, self.head, self.temperature)
        return to_vector(torch.autograd.grad(self.hidden, self.parameters, image, retain_graph=True))


class Moved(NamedTuple):
    """How far the distributions of some tokens moved."""

    kl: Tensor  # (N,) KL(old || new), nats, exact over the vocabulary
    old_logprobs: Tensor  # (N,) of the targets
    new_logprobs: Tensor  # (N,)


@torch.no_grad()
def compare_tokens(old: Tensor, new: Tensor, head: Tensor, targets: Tensor, temperature: float) -> Moved:
    """KL(old || new) and the targets' logprobs from hidden states (N, D); the head (V, D) is the same."""
    columns: list[list[Tensor]] = [[], [], []]
    for rows in chunks(len(old), head.shape[0]):
        before = _logprobs(old[rows], head, temperature)
        after = _logprobs(new[rows], head, temperature)
        columns[0].append(torch.linalg.vecdot(before.exp(), before - after))
        for column, logprobs in zip(columns[1:], (before, after), strict=True):
            column.append(logprobs.gather(1, targets[rows, None]).squeeze(1))
    empty = torch.empty(0, device=old.device)
    return Moved(*(torch.cat(c) if c else empty for c in columns))


class Trial(NamedTuple):
    """What a candidate step measured."""

    loss: float
    kl: float  # mean KL(old || new), nats a token


class Accepted(NamedTuple):
    fraction: float  # of the full step; 0: none was accepted
    trial: Trial  # of the accepted step, else of the old weights


def line_search(
    measure: Callable[[float], Trial], loss_before: float, delta: float, shrinkages: int
) -> Accepted:
    """The largest of 1, 0.8, 0.64 … of the full step that lowers the loss with a measured KL <= delta.

    ``measure(fraction)`` sets the weights to old + fraction · step and measures them. A trial that is not
    finite is refused like any other. Nothing accepted: fraction 0, and the caller puts the old weights back.
    """
    for power in range(shrinkages + 1):
        fraction = SHRINK**power
        trial = measure(fraction)
        if trial.loss < loss_before and trial.kl <= delta:
            return Accepted(fraction, trial)
    return Accepted(0.0, Trial(loss_before, 0.0))


def chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Slices of tokens whose logits fit in CHUNK_LOGITS."""
    size = max(1, CHUNK_LOGITS // vocabulary)
    return (slice(start, start + size) for start in range(0, tokens, size))


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _logprobs(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    return (_wide(hidden @ head.t()) / temperature).log_softmax(-1)
