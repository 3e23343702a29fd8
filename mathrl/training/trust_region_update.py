"""TRPO's update rule: the trust-region step of trust_region.py on the LoRA parameters of a policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mathrl.algorithms.losses import Totals
from mathrl.algorithms.trust_region import (
    GaussNewton,
    Solution,
    Trial,
    boundary_scale,
    compare_tokens,
    conjugate_gradient,
    from_vector,
    line_search,
    to_vector,
)
from mathrl.config import Config
from mathrl.distributed.agreement import together
from mathrl.distributed.collectives import sum_gradients, sum_ranks
from mathrl.errors import NonFiniteError
from mathrl.training.batch import rows_at, step_rows
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import Meter, global_totals
from mathrl.training.update_rule import Update
from mathrl.types import Batch, TokenOutputs, derive_seed

if TYPE_CHECKING:
    from mathrl.policy.model import Policy


@dataclass(frozen=True, slots=True)
class _Part:
    """A micro-batch, and what the old policy computed on it."""

    batch: Batch
    hidden: Tensor  # (N, D) of the tokens that train, no graph


class TrustRegion(Update):
    """One natural-gradient step a rollout: as far as KL(old || new) <= delta allows, and only if it helps."""

    def move(self, policy: Policy, batch: Batch) -> dict[str, float]:
        """Gradient, natural gradient, line search; trust_region/… metrics too."""
        cfg, totals = self.config.algorithm, global_totals(batch)
        meter = Meter()
        gradient = self._gradient(policy, batch, totals, meter)
        old = to_vector([p.detach() for p in self.parameters]).clone()
        step, solved = self._boundary_step(policy, batch, gradient)
        parts = self._old_parts(policy, batch)
        before = self._measure(policy, parts, totals, moved=False)

        def measure(fraction: float) -> Trial:
            self._set(old + fraction * step)
            return self._measure(policy, parts, totals)

        taken = line_search(measure, before.loss, cfg.trust_region_kl, cfg.line_search_steps)
        if not taken.fraction:
            self._set(old)
        return meter.metrics() | {
            "policy/loss": before.loss,
            "policy/grad_norm": float(gradient.norm()),
            "policy/kl_old": taken.trial.kl,
            "trust_region/accepted": float(taken.fraction > 0),
            "trust_region/kl": taken.trial.kl,
            "trust_region/step_fraction": taken.fraction,
            "trust_region/improvement": before.loss - taken.trial.loss,
            "trust_region/cg_residual": solved.residual,
            "trust_region/cg_iterations": float(solved.iterations),
        }

    def _boundary_step(self, policy: Policy, batch: Batch, gradient: Tensor) -> tuple[Tensor, Solution]:
        """(n,) the natural-gradient step whose quadratic KL is delta, and how it was solved for."""
        cfg = self.config.algorithm
        fisher = _Fisher(policy, self._sample(batch), self.parameters, self.config, self.loss.micro_batches)
        solved = conjugate_gradient(lambda v: fisher(v) + cfg.cg_damping * v, -gradient, cfg.cg_iterations)
        curvature = float(solved.x @ (solved.image - cfg.cg_damping * solved.x))  # s^T F s, undamped
        return boundary_scale(curvature, cfg.trust_region_kl) * solved.x, solved

    def _gradient(self, policy: Policy, batch: Batch, totals: Totals, meter: Meter) -> Tensor:
        """(n,) gradient of the loss over all ranks."""
        for parameter in self.parameters:
            parameter.grad = None
        self.loss.backward(policy, batch.add(old_logprobs=None), meter, totals)
        sum_gradients(self.parameters)
        gradient = to_vector([torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters])
        for parameter in self.parameters:
            parameter.grad = None
        if not math.isfinite(float(gradient.norm())):
            raise NonFiniteError("the gradient is not finite", self.loss.rows_to_blame(policy, batch))
        return gradient

    def _sample(self, batch: Batch) -> Batch:
        """This rank's rows among the completions whose curvature is measured.

        That is fisher_fraction of the step's on all ranks, drawn anew each step.
        """
        total = step_rows(batch)
        count = math.ceil(self.config.algorithm.fisher_fraction * total)
        seed = derive_seed(self.config.run.seed, "fisher", self.num_calls)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        return batch.rows(rows_at(batch, order[:count].sort().values))

    @torch.no_grad()
    def _old_parts(self, policy: Policy, batch: Batch) -> list[_Part]:
        parts: list[_Part] = []

        def add(rows: Tensor, part: Batch) -> None:
            parts.append(_Part(part, policy.hidden_states(part)[part.loss_mask]))

        with together("the old policy's states"):
            self.loss.micro_batches.run(batch, add)
        return parts

    @torch.no_grad()
    def _measure(self, policy: Policy, parts: list[_Part], totals: Totals, moved: bool = True) -> Trial:
        """Loss and mean KL(old || current weights) over all ranks; ``moved`` False: at the old weights."""
        both = torch.zeros(2, dtype=torch.float64, device=self.parameters[0].device)
        with together("a trial of the line search"):
            for part in parts:
                both += self._measure_part(policy, part, totals, moved)
        return Trial(*sum_ranks(both).tolist())

    def _measure_part(self, policy: Policy, part: _Part, totals: Totals, moved: bool) -> Tensor:
        """(2,) float64: a micro-batch's share of loss and mean KL."""
        batch, mask = part.batch, part.batch.loss_mask
        hidden = policy.hidden_states(batch)[mask] if moved else part.hidden
        targets, temperature = batch.completion_ids[mask], self.config.rollout.temperature
        found = compare_tokens(part.hidden, hidden, policy.head_weight(), targets, temperature)
        placed = torch.zeros(2, *mask.shape, dtype=found.kl.dtype, device=mask.device)
        placed[0, mask], placed[1, mask] = found.old_logprobs, found.new_logprobs
        own = batch.add(old_logprobs=placed[0])
        losses = self.loss.rows(own, TokenOutputs(placed[1]), totals).losses
        return torch.stack((losses.sum(), found.kl.sum() / totals.tokens)).double()

    @torch.no_grad()
    def _set(self, weights: Tensor) -> None:
        for parameter, value in zip(self.parameters, from_vector(weights, self.parameters), strict=True):
            parameter.copy_(value)


class _Fisher:
    """Fisher-vector products of the mean KL over a batch's tokens, all ranks.

    The graph of a batch that fits in one micro-batch is kept between products; of several, each is computed
    again, since all together would not fit where one does. What runs out of memory is done again in halves.
    """

    def __init__(
        self, policy: Policy, batch: Batch, parameters: list[Any], config: Config, parts: MicroBatches
    ):
        self.policy, self.batch, self.parameters, self.config = policy, batch, parameters, config
        self.micro_batches = parts
        self.tokens = global_totals(batch).tokens
        self.kept: GaussNewton | None = None  # of the whole batch

    def __call__(self, vector: Tensor) -> Tensor:
        product = torch.zeros_like(vector)

        def add(rows: Tensor, part: Batch) -> None:
            whole = part.num_tokens == self.batch.num_tokens
            graph = self.kept
            if graph is None or not whole:
                self.kept = None  # its memory, before another graph is built
                graph = self._linearise(part)
            product.add_(graph(vector))
            if whole:
                self.kept = graph

        # the kernel here too: checkpointed layers are computed again
        with together("a Fisher product"), sdpa_kernel(SDPBackend.MATH):
            self.micro_batches.run(self.batch, add)
        return sum_ranks(product) / max(self.tokens, 1.0)

    def _linearise(self, part: Batch) -> GaussNewton:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
            hidden = self.policy.hidden_states(part)[part.loss_mask]
            head, temperature = self.policy.head_weight(), self.config.rollout.temperature
            return GaussNewton(hidden, head, self.parameters, temperature)
