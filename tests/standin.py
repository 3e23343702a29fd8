"""A causal policy small enough to differentiate by hand: embeddings, one recurrent mix, a low-rank adapter.

It has the methods of mathrl.policy.Policy that the update rules use, in any precision, and no transformer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mathrl.types import Batch, TokenOutputs


class StandinPolicy(nn.Module):
    """h_t = tanh(W h_{t-1} + e_t + B A e_t), e_t the last token's embedding; logits = h H^T; A and B adapt."""

    def __init__(self, vocab: int = 11, width: int = 6, rank: int = 2, seed: int = 0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        self.embed = nn.Parameter(normal(vocab, width), requires_grad=False)
        self.mix = nn.Parameter(0.5 * normal(width, width), requires_grad=False)
        self.head = nn.Parameter(normal(vocab, width), requires_grad=False)
        self.lora_a = nn.Parameter(0.5 * normal(rank, width))
        self.lora_b = nn.Parameter(0.5 * normal(width, rank))
        self.version, self.pad_id, self.eos_id = 0, 0, 1
        self.device = torch.device("cpu")
        self.value = None
        self.forwards = 0
        self._on = True

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [self.lora_a, self.lora_b]

    @contextlib.contextmanager
    def reference(self) -> Iterator[None]:
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def head_weight(self) -> Tensor:
        return self.head

    def hidden_states(self, batch: Batch, *, reference: bool = False, adapter: str = "default") -> Tensor:
        self.forwards += 1
        rows = []
        for row in range(batch.num_completions):
            prompt = batch.prompts[int(batch.group_ids[row])]
            tokens = torch.cat([prompt, batch.completion_ids[row]])
            x = self.embed[tokens]
            if self._on and not reference:
                x = x + x @ self.lora_a.T @ self.lora_b.T
            h, states = torch.zeros_like(x[0]), []
            for step in x:
                h = torch.tanh(self.mix @ h + step)
                states.append(h)
            rows.append(torch.stack(states[len(prompt) - 1 : len(tokens) - 1]))
        return torch.stack(rows)

    def logprobs(
        self, batch: Batch, *, entropy: bool = False, reference: bool = False, temperature: float = 1.0
    ) -> TokenOutputs:
        logits = self.hidden_states(batch, reference=reference) @ self.head.T / temperature
        every = logits.log_softmax(-1)
        picked = every.gather(-1, batch.completion_ids[..., None]).squeeze(-1)
        entropies = -(every.exp() * every).sum(-1)
        mask = batch.loss_mask
        return TokenOutputs(
            torch.where(mask, picked, 0.0), torch.where(mask, entropies, 0.0) if entropy else None
        )

    @torch.no_grad()
    def annotate(
        self, batch: Batch, *, old: bool, reference: bool, values: bool, temperature: float = 1.0
    ) -> Batch:
        if old:
            batch = batch.add(old_logprobs=self.logprobs(batch, temperature=temperature).logprobs)
        if reference:
            with self.reference():
                batch = batch.add(ref_logprobs=self.logprobs(batch, temperature=temperature).logprobs)
        return batch


def made_batch(
    lengths: list[int],
    rewards: list[float],
    group_size: int,
    *,
    vocab: int = 11,
    seed: int = 1,
    width: int | None = None,
    dtype: torch.dtype = torch.float64,
) -> Batch:
    """Random tokens of these completion lengths; ``rewards`` and groups in order."""
    generator = torch.Generator().manual_seed(seed)
    width = width or max(lengths)
    groups = len(lengths) // group_size
    mask = torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, vocab, (len(lengths), width), generator=generator)
    return Batch(
        prompts=tuple(torch.randint(2, vocab, (3 + g,), generator=generator) for g in range(groups)),
        group_ids=torch.arange(groups).repeat_interleave(group_size),
        completion_ids=torch.where(mask, ids, 0),
        loss_mask=mask,
        rewards=torch.tensor(rewards, dtype=dtype),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
    )
