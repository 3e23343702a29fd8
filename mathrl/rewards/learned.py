"""A learned reward model beside the verifiers: any transformers sequence classifier, batched.

What a reward model reads is a conversation, written by its tokenizer's chat template. ``give_template`` gives
a tokenizer without one the plain form of the prompts, so that the text format travels with the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from mathrl.config import RewardConfig
from mathrl.errors import UserError
from mathrl.rewards.reward_model_folder import checkpoint_of
from mathrl.types import Completion, Problem

Message = Mapping[str, str]
"""A message of a conversation: ``role`` and ``content``."""

_LONGEST = 4096  # tokens of a text; longer ones are cut
_ADAPTER = "adapter_config.json"

# the plain prompt and its completion; a completion that was sampled begins with a space already
_PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ message['content'] if message['content'][:1] in [' ', '\\n'] else ' ' + message['content'] }}"
    "{{ eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'Question: ' + message['content'] + '\\nAnswer:' }}"
    "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
    "{% endfor %}"
)


def conversation(question: str, answer: str) -> tuple[Message, Message]:
    """A question and what was answered."""
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def give_template(tokenizer: Any) -> None:
    """Let a tokenizer without a chat template write conversations as plain prompts are, with their BOS."""
    if getattr(tokenizer, "chat_template", None):
        return
    first = tokenizer("1")["input_ids"][:1]
    bos = "{{ bos_token }}" if first and first[0] == tokenizer.bos_token_id else ""
    tokenizer.chat_template = bos + _PLAIN


def write_conversations(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[str]:
    """Each conversation as the text that the tokenizer's chat template makes of it."""
    if not conversations:
        return []
    texts: list[str] = tokenizer.apply_chat_template([list(c) for c in conversations], tokenize=False)
    return texts


def encode_conversations(tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> list[tuple[int, ...]]:
    """Token ids of each conversation, up to the token at which a classifier reads its score.

    transformers reads it at the last token that is not the pad token. Where a tokenizer pads with its end
    token, the end of a text is therefore not read, and is left out here.
    """
    texts = write_conversations(tokenizer, conversations)
    if not texts:
        return []
    found = []
    for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
        end = len(ids)
        while end and ids[end - 1] == tokenizer.pad_token_id:
            end -= 1
        found.append(tuple(ids[:end]))
    return found


class RewardModelScorer:
    """(problems, completions) -> one score each: the logit of a single label, else the last label's log-odds.

    Question and completion are given as the chat of its template where the tokenizer has one, else as a
    sentence pair. A batch holds ``batch_size`` texts of similar length, padded on the right, where a causal
    model sees none of it; a model whose scores depend on padding gets batches of equal lengths. So scores do
    not depend on order or neighbours (up to rounding).
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int, batch_size: int = 32):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.pads = True
        self.pads = self._padding_changes_nothing()

    def __call__(self, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[float]:
        return self.score(
            [
                conversation(p.question_with_options, c.text)
                for p, c in zip(problems, completions, strict=True)
            ]
        )

    @torch.no_grad()
    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Scores of conversations, in their order."""
        encoded = self._encode(conversations)
        scores = [0.0] * len(encoded)
        for chosen in self._batches([len(e["input_ids"]) for e in encoded]):
            inputs = self.tokenizer.pad(
                [encoded[i] for i in chosen], padding_side="right", return_tensors="pt", verbose=False
            )
            logits = self.model(**inputs.to(self.model.device)).logits.float()
            if logits.shape[1] > 1:
                logits = logits[:, -1:] - logits[:, :-1].logsumexp(1, keepdim=True)
            for i, score in zip(chosen, logits[:, 0].tolist(), strict=True):
                scores[i] = score
        return scores

    def _batches(self, lengths: Sequence[int]) -> Iterable[list[int]]:
        """Indices by length, at most ``batch_size`` together."""
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            other = batch and not self.pads and lengths[batch[0]] != lengths[i]
            if other or len(batch) == self.batch_size:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _padding_changes_nothing(self) -> bool:
        """Whether a short text has one score, alone and beside a longer one."""
        short, long = (conversation("1 + 1 = ?", text) for text in ("2", "1 + 1 = 2, and so on. " * 4))
        (alone,), (padded, _) = self.score([short]), self.score([short, long])
        rounding = 1e-3 if self.model.dtype == torch.float32 else 3e-2
        return abs(alone - padded) <= rounding * (1 + abs(alone))

    def _encode(self, conversations: Sequence[Sequence[Message]]) -> list[dict[str, Any]]:
        limit = {"truncation": True, "max_length": self.max_tokens, "verbose": False}
        if not conversations:
            return []
        if getattr(self.tokenizer, "chat_template", None):
            texts = write_conversations(self.tokenizer, conversations)
            found = self.tokenizer(texts, add_special_tokens=False, **limit)
        else:  # what was said last is the answer, all before it the question
            questions = ["\n".join(m["content"] for m in said[:-1]) for said in conversations]
            found = self.tokenizer(questions, [said[-1]["content"] for said in conversations], **limit)
        return [{name: found[name][i] for name in found} for i in range(len(conversations))]


def make_reward_model(config: RewardConfig) -> RewardModelScorer | None:
    """The recipe's reward model on the GPU where there is one; None where the recipe has none.

    ``reward.model_path`` is a sequence-classification checkpoint, a peft adapter of one, or the run folder of
    ``mathrl reward-model``.

    Raises:
        UserError: the folder or name holds no sequence-classification model with a tokenizer.
    """
    return load_reward_model(config.learned, "reward.model_path") if config.learned else None


def check_reward_model(path: str, option: str) -> None:
    """Refuse what ``load_reward_model`` would, as far as it is seen without the weights: before long work.

    Raises:
        UserError: as ``make_reward_model``.
    """
    path = checkpoint_of(path)
    with _told(path, option):
        AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if Path(path, _ADAPTER).is_file():
            _base_of(path)
        else:
            made = AutoConfig.from_pretrained(path, trust_remote_code=False).architectures or []
            if made and not any("SequenceClassification" in name for name in made):
                raise ValueError(f"it is a {made[0]}: it is no reward model until trained as one")


@contextmanager
def _told(path: str, option: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{option} {path!r} holds no sequence-classification model with its "
            f"tokenizer ({reason}); give a local folder or a hub name, or leave it empty"
        ) from error


def load_reward_model(path: str, option: str) -> RewardModelScorer:
    """The reward model at a folder or hub name; ``option`` names in errors what said so.

    Raises:
        UserError: as ``make_reward_model``.
    """
    path = checkpoint_of(path)
    with _told(path, option):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = _load_adapted(path) if Path(path, _ADAPTER).is_file() else _load_classifier(path)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"{option} {path!r}: its tokenizer has {len(tokenizer)} tokens but the model embeds {rows}: they "
            "do not belong together"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"{option} {path!r}: its tokenizer has neither a pad nor an end token, so texts cannot be "
                "scored together: set pad_token in its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = min(int(getattr(model.config, "max_position_embeddings", 0) or _LONGEST), _LONGEST)
    return RewardModelScorer(model.to(device), tokenizer, max_tokens=limit)


def _load_classifier(path: str, **settings: Any) -> Any:
    """A classifier; ``settings`` of one whose head an adapter brings, so that nothing is missing there."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    if settings:
        transformers_logging.set_verbosity_error()
    if Path(path).is_dir():  # read before a bar is; downloads keep theirs
        transformers_logging.disable_progress_bar()
    try:
        model, found = AutoModelForSequenceClassification.from_pretrained(
            path, trust_remote_code=False, output_loading_info=True, **settings
        )
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
    if found["missing_keys"] and not settings:  # transformers makes them up, at random
        raise ValueError(
            f"{min(found['missing_keys'])} is missing: it is no reward model until trained as one"
        )
    return model


def _load_adapted(path: str) -> Any:
    """The base of an adapter with its scalar head, the adapter merged into it."""
    base = _load_classifier(_base_of(path), num_labels=1)
    return PeftModel.from_pretrained(base, path).merge_and_unload()


def _base_of(path: str) -> str:
    """What the adapter at ``path`` was trained on. Raises ValueError for one that brings no head."""
    said = json.loads(Path(path, _ADAPTER).read_text(encoding="utf-8"))
    if said.get("task_type") != "SEQ_CLS":
        raise ValueError(
            f"its adapter is for {said.get('task_type')}, not for SEQ_CLS: it has no scalar head"
        )
    return str(said["base_model_name_or_path"])
