"""A LoRA adapter that is there already, as peft writes it: found, read, held against its model's weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathrl.data.hub import local_model, on_hub
from mathrl.errors import UserError
from mathrl.types import Adapter

PEFT_PREFIX = "base_model.model."
_UNKNOWN = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")


def find_adapter(name: str) -> Path:
    """The folder of an adapter; one on the hub is downloaded.

    Raises:
        UserError: no such folder, no such name on the hub, or it cannot be had.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file() or name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") != 1:
        raise UserError(f"there is no adapter folder {name}")
    on_hub("adapter", name)
    return Path(local_model(name, "adapter"))


def lora_settings(folder: Path) -> dict[str, Any]:
    """The ``lora`` section that makes an adapter of the folder's shape.

    Raises:
        UserError: it is no LoRA adapter, or of a kind that is not served (which).
    """
    settings = adapter_config(folder)
    unknown = [key for key in _UNKNOWN if settings.get(key)]
    if settings.get("peft_type") != "LORA" or unknown:
        kind = ", ".join(unknown) or settings.get("peft_type")
        raise UserError(
            f"the adapter in {folder} uses {kind}, which is not served here: merge it into the model"
        )
    targets = settings["target_modules"]
    return {
        "rank": settings["r"],
        "alpha": float(settings["lora_alpha"]),
        "targets": targets if isinstance(targets, str) else ",".join(sorted(targets)),
    }


def read_adapter(folder: Path) -> Adapter:
    """A peft adapter folder.

    Raises:
        UserError: one of its two files is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors = folder / "adapter_model.safetensors"
    settings = adapter_config(folder)
    try:
        return Adapter(settings, load_file(tensors))
    except FileNotFoundError:
        raise UserError(f"the adapter folder {folder} has no adapter_model.safetensors") from None
    except SafetensorError as error:
        raise UserError(f"{tensors} is damaged ({error})") from None


def adapter_config(folder: Path) -> Mapping[str, Any]:
    """What adapter_config.json says. Raises UserError: there is none, or it is not JSON."""
    path = folder / "adapter_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no adapter: it has no adapter_config.json") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error.msg})") from None
    return dict(settings)


def target_of(name: str) -> str:
    """The weight that a tensor A changes: of ``base_model.model.x.lora_A.weight`` it is ``x.weight``."""
    return name.removeprefix(PEFT_PREFIX).replace("lora_A.weight", "weight")


def check_fits(adapter: Adapter, shapes: Mapping[str, Sequence[int]]) -> None:
    """Hold an adapter against the shapes of a model's weights, by their names.

    Raises:
        UserError: it changes a weight that the model has not or has in another shape, its rank is not the one
            that its configuration says, or it holds more than pairs of A and B.
    """
    config, tensors = adapter.config, adapter.tensors
    names = [name for name in tensors if name.endswith("lora_A.weight")]
    pairs = {*names, *(name.replace("lora_A", "lora_B") for name in names)}
    if not names or pairs != tensors.keys():
        odd = sorted(pairs ^ tensors.keys())
        raise UserError(
            f"the adapter is not made of pairs lora_A and lora_B ({odd[0] if odd else 'it is empty'}): merge "
            "it into its model first"
        )
    made_for = config.get("base_model_name_or_path")
    origin = f"; it was made for {made_for}" if made_for else ""
    for name in names:
        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        target, rank = target_of(name), config["r"]
        if target not in shapes:
            raise UserError(f"the adapter changes {target}, which the model has not{origin}")
        if a.shape[0] != rank or b.shape[1] != rank:
            raise UserError(
                f"the adapter's matrices of {target} have rank {a.shape[0]} and {b.shape[1]}, and its "
                f"adapter_config.json says {rank}"
            )
        own = tuple(shapes[target])
        given = (b.shape[0], a.shape[1])
        if (given[::-1] if config.get("fan_in_fan_out") else given) != own:
            raise UserError(
                f"the adapter changes {target} as a matrix of {given[0]} × {given[1]}, and the model's is "
                f"{own[0]} × {own[-1]}{origin}"
            )
