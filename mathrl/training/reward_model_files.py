"""A reward model as it trains, a base with LoRA and a scalar head, and as it is saved for others."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from torch.nn import Parameter

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.loading import (
    ADAPTER,
    add_adapter,
    keep_freed_memory,
    load_tokenizer,
    load_with_head,
    resolve_device,
    resolve_dtype,
    without_bars,
)
from mathrl.policy.lora import fuse
from mathrl.rewards.learned import give_template
from mathrl.rewards.reward_model_folder import QUESTIONS
from mathrl.run.files import atomic


class RewardModel:
    """A sequence classifier of one label on a frozen base; LoRA and head train, in float32.

    Args:
        model: peft model around the classifier.
        tokenizer: with a chat template that writes what is scored.
        base: folder or hub name of the base.
    """

    def __init__(self, model: PeftModel, tokenizer: Any, base: str) -> None:
        self.model, self.tokenizer, self.base = model, tokenizer, base
        fuse(model)
        classifier = model.get_base_model()
        self.head: Parameter = classifier.score.modules_to_save[ADAPTER].weight  # (1, D)
        own = [p for n, p in model.named_parameters() if "lora_" in n and f".{ADAPTER}." in n]
        self.parameters: list[Parameter] = [*own, self.head]

    @classmethod
    def from_base(cls, path: str, config: Config) -> RewardModel:
        """The base at a folder or hub name with a new adapter and a head of zeros: every score is 0.

        Raises:
            UserError: no model or tokenizer there, one that does not fit the other, an architecture without
                a classifier whose head reads the last token, or ``lora.targets`` that fit no layer.
        """
        device = resolve_device(config.run)
        if device.type == "cpu":
            keep_freed_memory()
        trusted = config.model.trust_remote_code
        tokenizer = load_tokenizer(path, trusted=trusted)
        give_template(tokenizer)
        classifier = load_with_head(path, device, resolve_dtype(config.model, device), trusted=trusted)
        rows = classifier.get_input_embeddings().weight.shape[0]
        if len(tokenizer) > rows:
            raise UserError(
                f"the tokenizer of {path!r} has {len(tokenizer)} tokens but the model embeds {rows}: give "
                "--reward_model.base a model with the tokenizer it was made with"
            )
        classifier.config.pad_token_id = tokenizer.pad_token_id
        model = add_adapter(classifier, config.lora, config.run.seed, head="score")
        classifier.score.modules_to_save[ADAPTER].float()
        return cls(model, tokenizer, path)

    @property
    def classifier(self) -> Any:
        return self.model.get_base_model()

    def state(self) -> dict[str, Tensor]:
        """A copy of all that trains, by its name in peft's file."""
        named = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        return {name: tensor.detach().clone() for name, tensor in named.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what ``state`` gave."""
        own = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save(self, checkpoint: Path, adapter: Path, questions: Iterable[str]) -> None:
        """Write the merged classifier and the adapter with its head, each with the tokenizer, whole or not.

        The sum W + (alpha/r)·B·A is made in float32 and rounded once to the base's own type. ``questions``
        are what it was trained on, for checks of overlap. The model itself is merged by this and trains no
        more.
        """
        named = "".join(json.dumps({"question": q}, ensure_ascii=False) + "\n" for q in questions)
        local = Path(self.base)
        settings = self.model.peft_config[ADAPTER]
        settings.base_model_name_or_path = str(local.resolve()) if local.is_dir() else self.base
        with atomic(adapter) as folder:
            self.model.save_pretrained(folder, selected_adapters=[ADAPTER])
            self.tokenizer.save_pretrained(folder)
            (folder / QUESTIONS).write_text(named, encoding="utf-8")
            (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card, not filled in
        dtype = self.classifier.dtype
        merged = self.model.float().merge_and_unload().to(dtype)
        with atomic(checkpoint) as folder, without_bars():
            merged.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            (folder / QUESTIONS).write_text(named, encoding="utf-8")
