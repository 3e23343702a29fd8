"""The loss of worked solutions, packed end to end into one stream of tokens.

Attention and positions start afresh with every example, so a packed step has the loss of the same examples
one by one. Only tokens that train get logits, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mathrl.data.prompts import PromptTemplate
from mathrl.distributed.agreement import together
from mathrl.distributed.collectives import own_share, sum_ranks
from mathrl.memory.shapes import Shape, why_not_packed
from mathrl.policy.attention import IMPLEMENTATION
from mathrl.policy.logprobs import chunk_rows
from mathrl.policy.trunk import Trunk
from mathrl.training.batch import by_tokens, padded
from mathrl.types import Batch, Problem


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and the completion to learn."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # ends in EOS

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def num_predicted(self) -> int:
        """Tokens that others come before."""
        return self.num_tokens - 1

    @property
    def num_predicted_of_prompt(self) -> int:
        return max(0, len(self.prompt_ids) - 1)


def encode_example(template: PromptTemplate, problem: Problem, *, direct: bool = False) -> Example:
    """The problem with its worked solution, or ``direct``: with its final answer alone."""
    return encode_examples(template, [problem], direct=direct)[0]


def encode_examples(
    template: PromptTemplate, problems: Sequence[Problem], *, direct: bool = False
) -> list[Example]:
    """``encode_example`` of each problem, much faster than one by one."""
    write = template.direct_answer_text if direct else template.completion_text
    completions = template.encode_completions([write(problem) for problem in problems])
    return [Example(*ids) for ids in zip(template.encode_all(problems), completions, strict=True)]


def tokens_that_fit(model: Any) -> int:
    """Tokens whose forward keeps an eighth of the machine's memory for its backward, a quarter of a GPU's.

    0 for an architecture whose sizes are not known.
    """
    device, dtype = model.device, model.dtype
    cuda = device.type == "cuda"
    size = torch.cuda.mem_get_info(device)[1] / 4 if cuda else psutil.virtual_memory().total / 8
    try:
        shape = Shape.of(model.config)
    except AttributeError:
        return 0
    token = shape.activation_bytes(dtype.itemsize, rank=0, keys=1.0, compiled=False, checkpointing=False)
    return max(256, int(size / token))


class SftLoss:
    """Weighted mean negative log-likelihood of packed examples.

    Args:
        model: a transformers causal LM; attention and positions of an example never reach its neighbours.
        prompt_weight: of a prompt token in the mean; a completion token weighs 1.
        compile_layers: torch.compile the layers, where the packed way applies.
        most_tokens: of one forward and backward; 0: all examples at once.
    """

    def __init__(
        self,
        model: Any,
        prompt_weight: float = 0.0,
        *,
        compile_layers: bool = False,
        most_tokens: int = 0,
    ) -> None:
        if not why_not_packed(model.config):
            model.set_attn_implementation(IMPLEMENTATION)
        self.trunk = Trunk(model, share_prompts=False, compile_layers=compile_layers)
        self.head: Tensor = model.get_output_embeddings().weight
        self.prompt_weight, self.most_tokens = prompt_weight, most_tokens

    def __call__(self, examples: Sequence[Example], weight: Tensor | None = None) -> Tensor:
        """The scalar loss, differentiable.

        Args:
            examples: of this rank; none gives 0, without gradient.
            weight: of the whole step, on all ranks, which divides the sum; None: of these examples.
        """
        if not examples:
            return torch.zeros((), device=self.head.device)
        nll, weights, _ = self._tokens(examples, self.prompt_weight)
        return (nll * weights).sum() / (weights.sum() if weight is None else weight)

    def backward(self, examples: Sequence[Example], weight: Tensor) -> Tensor:
        """Add the gradient of the loss, ``most_tokens`` of the examples at a time; the loss, detached.

        ``weight`` (of the whole step) divides the sum of each part, so that how it is cut changes nothing.
        """
        total = torch.zeros((), device=self.head.device)
        for part in by_tokens(examples, self.most_tokens or sum(e.num_tokens for e in examples)):
            loss = self(part, weight)
            loss.backward()
            total += loss.detach()
        return total

    def weight(self, examples: Sequence[Example]) -> Tensor:
        """The sum of the weights of all the examples' tokens that train, a float32 scalar."""
        completions = sum(e.num_predicted - e.num_predicted_of_prompt for e in examples)
        prompts = sum(e.num_predicted_of_prompt for e in examples)
        return torch.tensor(completions + self.prompt_weight * prompts, dtype=torch.float32).to(
            self.head.device
        )

    @torch.no_grad()
    def held_out(self, examples: Sequence[Example], batch_tokens: int) -> tuple[float, float]:
        """(nats a completion token, share of completions whose every token is the likeliest one).

        A completion whose every token is the likeliest after its prefix is what greedy decoding writes. Each
        rank computes its share of the examples.
        """
        sums = torch.zeros(3, dtype=torch.float64)
        with together("held-out solutions"):
            for part in by_tokens(own_share(examples), batch_tokens):
                nll, _, rows = self._tokens(part, 0.0)
                sums += torch.tensor([nll.sum().item(), len(nll), rows])
        total, count, exact = sum_ranks(sums).tolist()
        return total / count, exact / len(examples)

    def _tokens(self, examples: Sequence[Example], prompt_weight: float) -> tuple[Tensor, Tensor, int]:
        """(n,) nll and (n,) weights of the tokens that train; rows all of whose tokens are the likeliest."""
        batch, weights = _batch(examples, prompt_weight)
        hidden, layout = self.trunk(batch)
        weights = weights.to(hidden.device).flatten()[layout.slot]
        losses, hits = [], []
        rows = chunk_rows(self.head.shape[0], hidden.device)
        for begin in range(0, hidden.shape[0], rows):
            part = slice(begin, begin + rows)
            nll, hit = checkpoint(_nll, hidden[part], self.head, layout.target[part], use_reentrant=False)
            losses.append(nll)
            hits.append(hit)
        missed = layout.slot[~torch.cat(hits)] // batch.completion_ids.shape[1]
        return torch.cat(losses), weights, len(examples) - len(missed.unique())


def _nll(hidden: Tensor, head: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) negative log-likelihood of ``target``, float32 or wider; (n,) bool whether it is the likeliest."""
    logits = hidden @ head.t()
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(dim=1) == target


def _batch(examples: Sequence[Example], prompt_weight: float) -> tuple[Batch, Tensor]:
    """Examples as rows of a Batch, and the (B, T) float32 weights of their tokens.

    A row's "prompt" is its first token, which nothing predicts; all later ones are its "completion".
    """
    ids, valid = padded([(*e.prompt_ids, *e.completion_ids) for e in examples], 0)
    before = torch.tensor([e.num_predicted_of_prompt for e in examples])
    weights = torch.where(
        torch.arange(ids.shape[1] - 1) < before[:, None], prompt_weight, valid[:, 1:].float()
    )
    batch = Batch(
        prompts=ids[:, 0].split(1),
        group_ids=torch.arange(len(examples)),
        completion_ids=ids[:, 1:],
        loss_mask=weights > 0,
        rewards=torch.zeros(len(examples)),
        truncated=torch.zeros(len(examples), dtype=torch.bool),
    )
    return batch, weights
