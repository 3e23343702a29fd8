"""Which layers an adapter is put on: ``lora.targets``, held against the model's own."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from mathrl.config import LoraSection
from mathrl.errors import UserError, did_you_mean


def check_targets(base: Any, lora: LoraSection, *, head: str = "") -> list[str]:
    """The names in ``lora.targets``, each a linear layer's or the end of its path: peft drops others.

    Args:
        base: a transformers model; its weights are not looked at.
        head: name of a classifier's head, which is no target either.

    Raises:
        UserError: there is no name, one fits no linear layer, or one is the head's or the embedding's.
    """
    names = [name.strip() for name in lora.targets.split(",") if name.strip()]
    if not names:
        raise UserError("lora.targets is empty: say all-linear, or layer names joined by commas")
    if names == ["all-linear"]:
        return names
    ends = {id(base.get_input_embeddings()), id(base.get_output_embeddings())}
    if head:
        ends.add(id(getattr(base, head)))
    linear = []
    for name, module in base.named_modules():
        if id(module) in ends and name.split(".")[-1] in names:
            raise UserError(
                f"lora.targets names {name!r}: the embedding and the head stay frozen; leave it out"
            )
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            linear.append(name)
    known = sorted({name.split(".")[-1] for name in linear})
    for wanted in names:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in linear):
            raise UserError(
                f"lora.targets names {wanted!r}, which fits no linear layer: {did_you_mean(wanted, known)}"
            )
    return names
