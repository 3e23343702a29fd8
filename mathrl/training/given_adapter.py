"""Starting from an adapter that is there already: model + adapter become the reference.

The policy is that reference with a new adapter of zeros, so that it starts as the given one, and the KL is
measured from there, as after a supervised stage with LoRA. Engines, evaluations and exports see an ordinary
model in the run's folder. The sum is made in float32 and rounded once to the type that the run computes in.
"""

from __future__ import annotations

from pathlib import Path

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.adapter_folder import adapter_config, check_fits, find_adapter, lora_settings, read_adapter
from mathrl.policy.loading import (
    add_turn_end,
    load_shapes,
    load_tokenizer,
    load_whole,
    resolve_device,
    resolve_dtype,
    without_bars,
)
from mathrl.policy.merge import merge_into
from mathrl.run.files import atomic


def check_adapter(config: Config) -> None:
    """Refuse ``model.adapter`` where it does not fit ``model.path``; no weights of the model are read.

    Raises:
        UserError: there is no such adapter, it is damaged or of a kind that is not served, or it was made for
            a model of other sizes.
    """
    folder = find_adapter(config.model.adapter)
    if (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(f"model.adapter {folder} is a model, not an adapter: name it as model.path")
    lora_settings(folder)
    try:
        check_fits(read_adapter(folder), load_shapes(config.model))
    except UserError as error:
        raise UserError(f"model.adapter {config.model.adapter} on {config.model.path}: {error}") from None


def make_merged_reference(config: Config, out_dir: Path) -> float:
    """Write model + adapter as an ordinary transformers folder, whole or not at all.

    Returns:
        The share of the adapter's change that rounding to the run's type keeps; 1 in float32.

    Raises:
        UserError: as ``check_adapter``, or the model cannot be loaded.
    """
    model, trusted = config.model, config.model.trust_remote_code
    dtype = resolve_dtype(model, resolve_device(config.run))
    base = load_whole(model.path, trusted=trusted, dtype=dtype)
    tokenizer = load_tokenizer(model.path, trusted=trusted)
    merger = merge_into(base, read_adapter(find_adapter(model.adapter)))
    add_turn_end(base, tokenizer, model)
    with atomic(out_dir) as folder, without_bars():
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return merger.kept


def made_for(config: Config) -> str:
    """The name of the model that ``model.adapter`` says it was made for; empty where it does not."""
    return str(adapter_config(find_adapter(config.model.adapter)).get("base_model_name_or_path") or "")
