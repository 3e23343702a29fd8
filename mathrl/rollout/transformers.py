"""The embedded engine: samples from the policy's own model, on any device transformers runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mathrl.policy.cpu.folding import folded_adapter
from mathrl.rollout.base import OnCompletion, OnTokens, PromptEncoder, check_lengths, eos_ids
from mathrl.rollout.decoding import (
    Decoder,
    PlainDecoder,
    SharedPromptDecoder,
    attention,
    can_share_prompts,
    prefill,
)
from mathrl.rollout.sampling import draw
from mathrl.rollout.texts import texts_of
from mathrl.types import Adapter, Completion, FinishReason, Group, Problem, Sampling, derive_seed

_MEMORY_BYTES = 2 << 30  # of one batch; fixed, not measured: the same run must split the same way everywhere


class TransformersEngine:
    """Samples all P·G completions of a step in one batch, from the model object that is being trained.

    A prompt is computed once and its keys and values are shared by its G completions; finished completions
    leave the batch. As the model is the policy's own, ``load`` has nothing to copy, and nobody may train it
    meanwhile (an adapter may be folded into its weights).

    Args:
        model: a transformers causal LM, plain or wrapped by peft.
        tokenizer: decodes completions and names the EOS token.
        encode: problem -> prompt token ids.
        sampling: settings where ``sample`` is not given others.
        max_rows: completions sampled at once; 0: as many as fit in 2 GiB of keys, values and logits.
        take_over: gives an adapter to ``model`` where that is not the model that is trained.
    """

    name = "transformers"
    exact_logprobs = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        encode: PromptEncoder,
        sampling: Sampling,
        *,
        max_rows: int = 0,
        take_over: Callable[[Adapter], None] | None = None,
    ) -> None:
        self.version = 0
        self.on_tokens: OnTokens | None = None
        self.tokenizer, self.encode, self.sampling, self.max_rows = tokenizer, encode, sampling, max_rows
        self.streams, self._take_over = take_over is not None, take_over
        self._wrapped: Any = model
        unwrap = getattr(model, "get_base_model", None)  # peft's
        self._model: Any = unwrap() if unwrap else model
        self._reference = False
        self._shares_prompts: bool | None = None
        self._eos_ids = eos_ids(self._model, tokenizer)

    def sample(
        self,
        problems: Sequence[Problem],
        group_size: int,
        sampling: Sampling | None = None,
        *,
        seed: int = 0,
        on_completion: OnCompletion | None = None,
    ) -> list[Group]:
        """Sample ``group_size`` completions a problem; see ``mathrl.rollout.base.Engine.sample``.

        The rounding of a matrix product may depend on the size of its batch, so a token whose noise falls
        within rounding of a boundary can differ between batches; nothing else of a completion can.
        """
        sampling = sampling or self.sampling
        prompts = [tuple(self.encode(problem)) for problem in problems]
        context = getattr(self._model.config, "max_position_embeddings", None) or 2**31
        check_lengths(problems, prompts, sampling.max_completion_tokens, context)
        done: dict[tuple[int, int], Completion] = {}
        with self._ready():
            for rows in self._batches(prompts, group_size, sampling.max_completion_tokens):
                seeds = [derive_seed(seed, problems[p].id, i) for p in rows for i in range(group_size)]
                for row, completion in self._run(
                    prompts[rows.start : rows.stop], seeds, group_size, sampling
                ):
                    p, i = rows.start + row // group_size, row % group_size
                    done[p, i] = completion
                    if on_completion:
                        on_completion(p, i, completion)
        return [
            Group(problem, prompt, tuple(done[p, i] for i in range(group_size)), policy_version=self.version)
            for p, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
        ]

    def load(self, adapter: Adapter | None, version: int) -> None:
        """Sample as this version from now on; None switches the adapter off while sampling."""
        if adapter is not None and self._take_over is not None:
            self._take_over(adapter)
        self._reference = adapter is None
        self.version = version

    def close(self) -> None:
        """Nothing to free: the model is the policy's."""

    def _run(
        self, prompts: list[tuple[int, ...]], seeds: list[int], group_size: int, sampling: Sampling
    ) -> Iterator[tuple[int, Completion]]:
        """Sample P·G rows at once; yields (row, completion) as they finish, row = problem·G + completion."""
        cache, mask, first = prefill(self._model, prompts, pad_id=0)
        limit, device, total = sampling.max_completion_tokens, mask.device, len(seeds)
        decoder: Decoder
        if self._shares_prompts:
            decoder = SharedPromptDecoder(self._model, cache, mask, group_size, limit)
        else:
            decoder = PlainDecoder(self._model, cache, mask, group_size)
        eos = torch.tensor(self._eos_ids, device=device)
        ids = torch.zeros(total, limit, dtype=torch.long, device=device)
        logprobs = torch.zeros(total, limit, device=device)
        # of the n live rows: row, seed, position of the newest token
        rows, noise = torch.arange(total, device=device), torch.tensor(seeds, device=device)
        positions = mask.sum(dim=1).repeat_interleave(group_size)
        logits = first.repeat_interleave(group_size, dim=0)
        for step in range(limit):
            tokens, chosen = draw(logits, sampling, noise, step)
            ids[rows, step], logprobs[rows, step] = tokens, chosen
            if self.on_tokens:
                self.on_tokens(len(rows) * (step + 1))
            ended = torch.isin(tokens, eos)
            leaving = ended if step + 1 < limit else torch.ones_like(ended)
            if leaving.any():
                out = rows[leaving]
                kept = logprobs[out, : step + 1].tolist() if sampling.logprobs else None
                completions = self._completions(ids[out, : step + 1].tolist(), kept, ended[leaving].tolist())
                yield from zip(out.tolist(), completions, strict=True)
                if leaving.all():
                    return
                index, moved = _close_ranks(~leaving)
                decoder.keep(index, moved)
                rows, noise, positions, tokens = (x[index] for x in (rows, noise, positions, tokens))
            logits = decoder.step(tokens, positions)
            positions = positions + 1

    def _completions(
        self, ids: list[list[int]], logprobs: list[list[float]] | None, stopped: list[bool]
    ) -> list[Completion]:
        texts = texts_of(self.tokenizer, ids)
        reasons: list[FinishReason] = ["stop" if s else "length" for s in stopped]
        values = [tuple(row) for row in logprobs] if logprobs is not None else [None] * len(ids)
        return [Completion(tuple(i), t, r, v) for i, t, r, v in zip(ids, texts, reasons, values, strict=True)]

    @contextmanager
    def _ready(self) -> Iterator[None]:
        """The model in evaluation mode, its adapter folded in or off, its attention transformers' own."""
        training = self._model.training
        with ExitStack() as stack, torch.no_grad():
            self._model.eval()
            stack.callback(self._model.train, training)
            if self._reference and self._wrapped is not self._model:
                stack.enter_context(self._wrapped.disable_adapter())
            stack.enter_context(folded_adapter(self._model))
            if getattr(self._model, "_supports_sdpa", False):
                stack.enter_context(attention(self._model, "sdpa"))
            if self._shares_prompts is None:
                self._shares_prompts = can_share_prompts(self._model)
            yield

    def _batches(self, prompts: list[tuple[int, ...]], group_size: int, limit: int) -> Iterator[range]:
        """Consecutive problems whose completions are sampled at once."""
        config = self._model.config
        width = max((len(p) for p in prompts), default=1)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        token = 2 * config.num_hidden_layers * kv_heads * head_dim * 4
        hidden = 4 * (8 * config.hidden_size + 3 * (getattr(config, "intermediate_size", 0) or 0))
        copies = 1 if self._shares_prompts else group_size
        problem = width * (hidden + copies * token) + group_size * (limit * token + 12 * config.vocab_size)
        size = max(1, self.max_rows // group_size if self.max_rows else _MEMORY_BYTES // problem)
        for start in range(0, len(prompts), size):
            yield range(start, min(start + size, len(prompts)))


def _close_ranks(keep: Tensor) -> tuple[Tensor, Tensor]:
    """How the last live rows fill the places of those that leave.

    Args:
        keep: (n,) bool.

    Returns:
        index (n',): the row that becomes row i; moved (m,): those i whose row changes.
    """
    count = int(keep.sum())
    index = torch.arange(count, device=keep.device)
    moved = (~keep[:count]).nonzero()[:, 0]
    index[moved] = keep[count:].nonzero()[:, 0] + count
    return index, moved
