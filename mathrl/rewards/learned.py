"""A learned reward model beside the verifiers: any transformers sequence classifier, batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mathrl.config import RewardConfig
from mathrl.errors import UserError
from mathrl.types import Completion, Problem


class RewardModelScorer:
    """(problems, completions) -> one score each: the logit of a single label, else the last label's log-odds.

    Question and completion are given as the chat of its template where the tokenizer has one, else as a
    sentence pair. A batch holds ``batch_size`` texts of similar length; the order of the scores is that of
    the input and does not depend on the batches (up to rounding).
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int, batch_size: int = 32):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_tokens, self.batch_size = max_tokens, batch_size

    @torch.no_grad()
    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[float]:
        encoded = [self._encode(p, c) for p, c in zip(problems, completions, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
        scores = [0.0] * len(encoded)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            inputs = self.tokenizer.pad([encoded[i] for i in chosen], return_tensors="pt")
            logits = self.model(**inputs.to(self.model.device)).logits.float()
            if logits.shape[1] > 1:
                logits = logits[:, -1:] - logits[:, :-1].logsumexp(1, keepdim=True)
            for i, score in zip(chosen, logits[:, 0].tolist(), strict=True):
                scores[i] = score
        return scores

    def _encode(self, problem: Problem, completion: Completion) -> dict[str, Any]:
        limit = {"truncation": True, "max_length": self.max_tokens}
        if getattr(self.tokenizer, "chat_template", None):
            chat = [
                {"role": "user", "content": problem.question},
                {"role": "assistant", "content": completion.text},
            ]
            text = self.tokenizer.apply_chat_template(chat, tokenize=False)
            return dict(self.tokenizer(text, add_special_tokens=False, **limit))
        return dict(self.tokenizer(problem.question, completion.text, **limit))


def make_reward_model(config: RewardConfig) -> RewardModelScorer | None:
    """The recipe's reward model on the GPU where there is one; None where the recipe has none.

    Raises:
        UserError: the folder or name holds no sequence-classification model with a tokenizer.
    """
    if not config.model_path or config.model_weight == 0:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model_path)
        model = AutoModelForSequenceClassification.from_pretrained(config.model_path)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"reward.model_path {config.model_path!r} holds no sequence-classification model with its "
            f"tokenizer ({reason}); give a local folder or a hub name, or leave it empty"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = min(int(getattr(model.config, "max_position_embeddings", 0) or 4096), 4096)
    return RewardModelScorer(model.to(device), tokenizer, max_tokens=limit)
