"""Drawing tokens by decode_kernels.py in place of vLLM's Gumbel sampling."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch


def _nothing() -> None:
    """In place of a tensor that is gone."""


class Drawing:
    """In place of vLLM's Gumbel sampling; it remembers the log-probabilities of what it has drawn last.

    Args:
        draw: ``decode_kernels.draw``.
        sample: vLLM's ``gumbel_sample``.
        score: vLLM's ``compute_topk_scores``.
        tensors: vLLM's class ``LogprobsTensors``.
    """

    def __init__(
        self, draw: Callable[..., Any], sample: Callable[..., Any], score: Callable[..., Any], tensors: Any
    ) -> None:
        self._draw, self._sample, self._score, self._tensors = draw, sample, score, tensors
        self._last: tuple[Any, Any, Any] = (_nothing, _nothing, None)  # logits, tokens, log-probabilities

    def sample(
        self,
        logits: torch.Tensor,
        places: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        positions: torch.Tensor,
        apply_temperature: bool,
        **others: Any,
    ) -> Any:
        """As ``gumbel_sample``: (rows,) tokens."""
        self._last = _nothing, _nothing, None
        if apply_temperature or any(value is not None and value is not False for value in others.values()):
            return self._sample(logits, places, temperature, seeds, positions, apply_temperature, **others)
        tokens, logprobs = self._draw(logits, places.contiguous(), temperature, seeds, positions.contiguous())
        self._last = weakref.ref(logits), weakref.ref(tokens), logprobs
        return tokens

    def score(
        self,
        logits: torch.Tensor,
        num_logprobs: int,
        sampled_token_ids: torch.Tensor,
        cu_num_logits: Any = None,
        max_per_req_token_ids: int = 0,
        logits_mode: bool = False,
        **others: Any,
    ) -> Any:
        """As ``compute_topk_scores``; ranks are not looked for where only the drawn tokens are scored."""
        seen, drawn, logprobs = self._last
        own = seen() is logits and drawn() is sampled_token_ids
        if own and num_logprobs == max_per_req_token_ids == 0 and not logits_mode and cu_num_logits is None:
            ranks = torch.zeros_like(sampled_token_ids)
            return self._tensors(sampled_token_ids[:, None], logprobs[:, None], ranks)
        return self._score(
            logits,
            num_logprobs,
            sampled_token_ids,
            cu_num_logits,
            max_per_req_token_ids=max_per_req_token_ids,
            logits_mode=logits_mode,
            **others,
        )
