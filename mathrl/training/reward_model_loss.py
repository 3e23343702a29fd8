"""Bradley–Terry loss of ranked pairs, packed: both sides of a pair in one stream, what they share once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from mathrl.errors import UserError
from mathrl.policy.trunk import Trunk
from mathrl.training.batch import by_tokens, padded
from mathrl.training.reward_model_data import EncodedPair
from mathrl.types import Batch

log = logging.getLogger(__name__)


def bradley_terry(scores: Tensor, margins: Tensor, center_coef: float) -> Tensor:
    """(n, 2) scores of chosen and rejected, (n,) margins -> (n,) losses.

    −log σ(s⁺ − s⁻ − m) + c (s⁺ + s⁻)²: Bradley & Terry 1952 as the loss of arXiv:2203.02155 (eq. 1) with the
    margin of arXiv:2307.09288 (eq. 2); the second term (arXiv:2312.09244) fixes what the first leaves free, a
    constant added to all scores of a question. At equal scores and no margin it is log 2.
    """
    chosen, rejected = scores.unbind(1)
    return -F.logsigmoid(chosen - rejected - margins) + center_coef * (chosen + rejected).square()


class PairScores:
    """(n pairs) -> (n, 2) scores in float32 or wider: the head's product with each text's last hidden state.

    Args:
        model: a transformers sequence classifier, LoRA layers inside it or not.
        head: (1, D), the weight of its head, differentiable or not.
        settings: of the Trunk (gradient_checkpointing, compile_layers).
    """

    def __init__(self, model: Any, head: Tensor | Parameter, **settings: bool) -> None:
        self.trunk = Trunk(model, share_prompts=True, **settings)
        self.head = head

    def __call__(self, pairs: Sequence[EncodedPair]) -> Tensor:
        hidden, _ = self.trunk(batch_of(pairs))
        return (hidden.to(self.head.dtype) @ self.head[0]).view(-1, 2)


class RankingLoss:
    """Mean Bradley–Terry loss over a step's pairs, in micro-batches of at most ``max_tokens`` tokens."""

    def __init__(self, scores: PairScores, center_coef: float, max_tokens: int) -> None:
        self.scores, self.center_coef, self.max_tokens = scores, center_coef, max_tokens

    def backward(self, pairs: Sequence[EncodedPair]) -> tuple[float, Tensor]:
        """Add the gradient of the mean loss; returns the loss and the (n, 2) scores, detached.

        The denominator is that of the whole step, so how it is cut changes nothing.
        """
        total, found = 0.0, []
        for part in by_tokens(pairs, self.max_tokens):
            scores = self.scores(part)
            loss = self.losses(part, scores).sum() / len(pairs)
            loss.backward()
            total += loss.item()
            found.append(scores.detach())
        return total, torch.cat(found)

    @torch.no_grad()
    def evaluate(self, pairs: Sequence[EncodedPair]) -> tuple[float, Tensor]:
        """Mean loss and (n, 2) scores on the CPU, without gradients."""
        parts = list(by_tokens(pairs, self.max_tokens))
        scores = torch.cat([self.scores(part) for part in parts])
        return float(self.losses(pairs, scores).mean()), scores.cpu()

    def halve(self, pairs: Sequence[EncodedPair]) -> None:
        """Go on with micro-batches of half the tokens, as memory ran out on ``pairs``.

        Raises:
            UserError: they were single pairs already.
        """
        sizes = [pair.num_tokens for pair in pairs]
        if all(len(part) == 1 for part in by_tokens(pairs, self.max_tokens)):
            raise UserError(
                f"a single pair of {max(sizes)} tokens does not fit in the device's memory: set "
                "--update.gradient_checkpointing true, leave long pairs out, or take a smaller base"
            )
        self.max_tokens = min(self.max_tokens, sum(sizes)) // 2
        log.warning(
            "out of memory in a micro-batch: going on with update.micro_batch_tokens %d", self.max_tokens
        )

    def losses(self, pairs: Sequence[EncodedPair], scores: Tensor) -> Tensor:
        """(n,) losses of pairs with these scores."""
        margins = torch.tensor([p.pair.margin for p in pairs], dtype=scores.dtype, device=scores.device)
        return bradley_terry(scores, margins, self.center_coef)


def batch_of(pairs: Sequence[EncodedPair]) -> Batch:
    """Two rows a pair, chosen first; the "prompt" of both is what they begin with alike.

    Only the hidden state at a text's last token is wanted: the token after it, which is none of the text, is
    the only one that "trains", for a hidden state is that of the token it predicts. Sides that share nothing
    have their own first tokens as prompts.
    """
    prompts: list[Tensor] = []
    rows: list[tuple[int, ...]] = []
    groups: list[int] = []
    for pair in pairs:
        shared = pair.num_shared
        for ids in (pair.chosen_ids, pair.rejected_ids):
            if not shared or len(rows) % 2 == 0:
                prompts.append(torch.tensor(ids[: max(shared, 1)]))
            groups.append(len(prompts) - 1)
            rows.append(ids[max(shared, 1) :])
    lengths = torch.tensor([len(row) for row in rows])
    completion_ids, _ = padded([(*row, 0) for row in rows], 0)
    return Batch(
        prompts=tuple(prompts),
        group_ids=torch.tensor(groups),
        completion_ids=completion_ids,
        loss_mask=torch.arange(completion_ids.shape[1]) == lengths[:, None],
        rewards=torch.zeros(len(rows)),
        truncated=torch.zeros(len(rows), dtype=torch.bool),
    )
