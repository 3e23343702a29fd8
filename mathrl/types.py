"""The records that travel through a step: Problem -> Completion -> Group -> Score -> Batch.

All are frozen: every arrow of the data flow returns a new value. Everything before Batch is plain Python
and can be pickled. Shapes: P problems a step, G completions a problem, B = P·G, T completion tokens (padded).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # torch takes seconds to import; commands that touch no tensor do without
    import torch
    from torch import Tensor

FinishReason = Literal["stop", "length"]

_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # of a surrogate pair, as JSON escapes it
_OPTION_LETTERS = "ABCDEFGHIJ"  # that the verifiers read


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its reference answer."""

    id: str
    question: str
    answer: str  # the reference, as text; parsed by the verifier of ``answer_type``
    answer_type: str = "number"
    solution: str | None = None  # worked solution, for supervised training only
    options: tuple[str, ...] = ()  # option texts of a multiple-choice question
    meta: Mapping[str, Any] = field(default_factory=dict)  # level, subject, num_steps, template …
    system_prompt: str = ""  # of this problem; takes the place of the recipe's in a chat
    row: Mapping[str, Any] = field(default_factory=dict)  # of the data, where the verifier asks

    @property
    def lettered_options(self) -> tuple[str, ...]:
        """The options as they are asked, ``A) …``: the reference is a letter, or is taken for one."""
        if len(self.options) > len(_OPTION_LETTERS):
            return self.options
        return tuple(f"{letter}) {text}" for letter, text in zip(_OPTION_LETTERS, self.options, strict=False))

    @property
    def question_with_options(self) -> str:
        """The question, and each option on a line below it."""
        return "\n".join([self.question, *self.lettered_options])


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after a prompt."""

    token_ids: tuple[int, ...]  # length >= 1; ends in EOS where finish_reason is "stop"
    text: str  # decoded without special tokens
    finish_reason: FinishReason
    sampling_logprobs: tuple[float, ...] | None = (
        None  # by the engine, one a token, after temperature/top-p/top-k
    )


@dataclass(frozen=True, slots=True)
class Score:
    """What the verifier and the reward rules said of a completion."""

    reward: float
    outcome: str  # a verifiers.Outcome value
    extracted: str | None = None
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)  # weighted reward terms; they sum to ``reward``

    @property
    def correct(self) -> bool:
        return self.outcome == "correct"


@dataclass(frozen=True, slots=True)
class Group:
    """The G completions of one problem, and their scores once they are verified."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]  # G
    policy_version: int = 0
    scores: tuple[Score, ...] = ()  # empty before verification, else G

    @property
    def rewards(self) -> tuple[float, ...]:
        return tuple(score.reward for score in self.scores)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. ``temperature`` 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    max_completion_tokens: int = 256
    logprobs: bool = True  # record sampling_logprobs


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter in peft's own format: its configuration and its tensors, on the CPU or not."""

    config: Mapping[str, Any]  # peft LoraConfig.to_dict()
    tensors: Mapping[str, Tensor]  # peft state-dict names


@dataclass(frozen=True, slots=True)
class Batch:
    """Completions as tensors. Completions are right-padded to T; prompts are kept once a group.

    The layout of the model's forward (packed, shared prompt) is the policy's business, not the batch's.
    """

    prompts: tuple[Tensor, ...]  # P × (L_p,) int64
    group_ids: Tensor  # (B,) int64: index of the row's prompt
    completion_ids: Tensor  # (B, T) int64
    loss_mask: Tensor  # (B, T) bool: True = the token trains
    rewards: Tensor  # (B,) float32
    truncated: Tensor  # (B,) bool: ended at the length limit
    sampling_logprobs: Tensor | None = None  # (B, T) float32, by the engine
    old_logprobs: Tensor | None = None  # (B, T) float32, by the policy before the update
    ref_logprobs: Tensor | None = None  # (B, T) float32, adapter off
    values: Tensor | None = None  # (B, T) float32: value of the prefix before token t
    returns: Tensor | None = None  # (B, T) float32: target of the value model
    advantages: Tensor | None = None  # (B, T) float32
    sampled_mask: Tensor | None = None  # (B, T) bool: tokens that were sampled; None: loss_mask has them all
    places: Tensor | None = (
        None  # (B,) int64: the row's number among the step's rows, of all ranks; None: 0 … B-1
    )
    num_places: int = 0  # rows of the step on all ranks, whatever part of them this is; 0: B

    @property
    def num_completions(self) -> int:
        return self.completion_ids.shape[0]

    @property
    def num_tokens(self) -> int:
        """Completion tokens that train."""
        return int(self.loss_mask.sum())

    @property
    def sampled(self) -> Tensor:
        """(B, T) bool: what rewards and advantages are of, though not all of it may train."""
        return self.loss_mask if self.sampled_mask is None else self.sampled_mask

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: sampled tokens of each row."""
        return self.sampled.sum(dim=1)

    def add(self, **tensors: Tensor | None) -> Batch:
        """The batch with these fields set."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def rows(self, index: Sequence[int] | Tensor) -> Batch:
        """The batch of these rows, T and the prompts cut to what they need."""
        import torch

        index = torch.as_tensor(index, dtype=torch.long, device=self.completion_ids.device)
        kept, group_ids = torch.unique(self.group_ids[index], return_inverse=True)
        trained = self.loss_mask[index].any(dim=0).nonzero()
        width = int(trained.max()) + 1 if len(trained) else 0
        changes: dict[str, Any] = {
            "prompts": tuple(self.prompts[i] for i in kept.tolist()),
            "group_ids": group_ids,
            "places": index if self.places is None else self.places[index],
            "num_places": self.num_places or self.num_completions,
        }
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in changes and isinstance(value, torch.Tensor):
                changes[f.name] = value[index, :width] if value.dim() == 2 else value[index]
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Batch:
        import torch

        moved: dict[str, Any] = {"prompts": tuple(p.to(device, non_blocking=True) for p in self.prompts)}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, torch.Tensor):
                moved[f.name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


@dataclass(frozen=True, slots=True)
class TokenOutputs:
    """What a policy forward says of each completion token."""

    logprobs: Tensor  # (B, T) float32, 0 where masked; of logits / temperature
    entropy: Tensor | None = None  # (B, T) float32 nats, 0 where masked


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (run seed, step, problem id, …); equal parts give equal seeds on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def whole_text(text: str) -> str:
    """The text with U+FFFD for every half of a surrogate pair: JSON can hold one, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def read_json(text: str) -> Any:
    """The value of a JSON text, its texts as ``whole_text`` has them. Raises ValueError where it is none."""
    value = json.loads(text)
    if not _HALF.search(text):
        return value
    return json.loads(whole_text(json.dumps(value, ensure_ascii=False)))
