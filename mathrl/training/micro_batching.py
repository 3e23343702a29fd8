"""Work over a batch in micro-batches; one that does not fit in memory is done again in halves.

A loss is a sum over rows whose weights do not depend on how the rows are cut (objective.py), so the result is
the same up to the order of the sum.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mathrl.errors import UserError
from mathrl.training.batch import micro_batches
from mathrl.types import Batch

log = logging.getLogger(__name__)

_SMALLEST = 16  # tokens; update.micro_batch_tokens has the same bound
_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class MicroBatches:
    """Cuts batches, and remembers what fitted.

    Args:
        max_tokens: of a micro-batch (update.micro_batch_tokens); halved for good when memory runs out.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens

    def run(
        self, batch: Batch, work: Callable[[Tensor, Batch], None], gradients_of: Sequence[Tensor] = ()
    ) -> None:
        """Call ``work(rows, batch.rows(rows))`` for parts of the batch that together are all that trains.

        A row without a token that trains has nothing to compute, and is in no part.

        Args:
            batch: any.
            work: may run out of memory, but must change nothing else before it does than the gradients of
                ``gradients_of``, which are put back before the part is done again.
            gradients_of: the parameters that ``work`` adds gradients to.

        Raises:
            UserError: a single completion does not fit.
        """
        rest = batch.loss_mask.any(dim=1).nonzero()[:, 0].cpu()
        while len(rest):
            done = self._pass(batch, rest, work, gradients_of)
            rest = rest[~torch.isin(rest, done)]

    def _pass(
        self, batch: Batch, rest: Tensor, work: Callable[[Tensor, Batch], None], parameters: Sequence[Tensor]
    ) -> Tensor:
        """Work through ``rest`` until all is done or memory runs out; returns the rows that are done."""
        done: list[Tensor] = [rest[:0]]
        left = batch if len(rest) == batch.num_completions else batch.rows(rest)
        for part in micro_batches(left, self.max_tokens):
            rows = rest[part]
            before = _copies([p.grad for p in parameters])
            if fits(lambda rows=rows: work(rows, batch.rows(rows))):  # type: ignore[misc]
                done.append(rows)
                continue
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.grad = gradient
            self._halve(batch, rows)
            break
        return torch.cat(done)

    def _halve(self, batch: Batch, rows: Tensor) -> None:
        if len(rows) == 1 or self.max_tokens <= _SMALLEST:
            size = int(batch.lengths[rows].sum()) + len(batch.prompts[int(batch.group_ids[rows[0]])])
            raise UserError(
                f"a single completion of {size} tokens with its prompt does not fit in the device's memory: "
                "set --update.gradient_checkpointing true, lower rollout.max_completion_tokens, or take a "
                "smaller model (`mathrl plan` shows what takes how much)"
            )
        self.max_tokens = max(_SMALLEST, self.max_tokens // 2)
        log.warning(
            "out of memory in a micro-batch: going on with update.micro_batch_tokens %d", self.max_tokens
        )


def _copies(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The same tensors, copied by a few launches instead of one each."""
    copies = [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]
    pairs = [(copy, t) for copy, t in zip(copies, tensors, strict=True) if copy is not None and t is not None]
    if pairs:
        torch._foreach_copy_([copy for copy, _ in pairs], [tensor for _, tensor in pairs])
    return copies


def fits(work: Callable[[], object]) -> bool:
    """Whether the work ended with memory to spare; if not, its tensors are freed when this returns."""
    try:
        work()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        if not any(text in str(error) for text in _NO_MEMORY):
            raise
    else:
        return True
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False
