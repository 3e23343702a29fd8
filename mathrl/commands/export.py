"""A run's result for others: the adapter for peft and vLLM, the merged model for transformers and vLLM."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from mathrl.commands.model_source import check_base
from mathrl.config import Config
from mathrl.data.hub import push_folder
from mathrl.errors import UserError
from mathrl.policy.loading import load_tokenizer, load_whole, without_bars
from mathrl.policy.merge import Merger, merge_into
from mathrl.recipes import load_config
from mathrl.report.model_card import model_card
from mathrl.report.run_record import MAIN_SET, read_run
from mathrl.rollout.adapter_files import write_adapter
from mathrl.run.checkpoint import CheckpointStore, read_checkpoint
from mathrl.run.files import atomic, writing
from mathrl.run.folder import RunFolder
from mathrl.types import Adapter


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    step: int  # of the checkpoint
    dtype: torch.dtype  # of the merged weights, the base model's own
    kept: float  # share of the adapter's change that rounding to dtype leaves; 1 in float32


def export_run(run_dir: Path, out_dir: Path, which: Literal["last", "best"] = "last") -> Exported:
    """Write ``OUT/adapter`` (peft's files, float32) and ``OUT/merged`` (a transformers model).

    The tokenizer is in both.

    The sum W + (alpha/r)·B·A is made in float32 and rounded once to the base model's own type.

    Args:
        run_dir: a run with at least one checkpoint; it need not be finished.
        out_dir: must not exist, or be empty.
        which: the last checkpoint, or the one with the best lower bound of held-out accuracy.

    Raises:
        UserError: no run or checkpoint there, the base model is gone, or ``out_dir`` is taken or unwritable.
    """
    run = RunFolder(run_dir)
    if not run.config.is_file():
        raise UserError(f"{run_dir} is not a run: it has no config.toml")
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} exists and is not empty: name another folder to export to")
    config = load_config(run.config)
    store = CheckpointStore(run.checkpoints, config.checkpoint.keep_last)
    checkpoint = store.latest() if which == "last" else store.best()
    if checkpoint is None:
        why = "no checkpoint" if which == "last" else "no best checkpoint (evaluate.every_steps 0?)"
        raise UserError(f"{run_dir} has {why}: nothing to export")
    content = read_checkpoint(checkpoint)
    adapter: Adapter = content["state"]["trainer"]["adapter"]
    reference = str(run.reference) if config.makes_reference else config.model.path
    check_base(run_dir, reference)
    trusted = config.model.trust_remote_code
    tokenizer = load_tokenizer(reference, trusted=trusted)
    with writing(out_dir), atomic(out_dir) as temporary:
        temporary.mkdir()
        export_adapter(temporary / "adapter", adapter, reference, tokenizer)
        merged = _write_merged(adapter, reference, tokenizer, temporary / "merged", trusted=trusted)
        card = _card(run_dir, config, content["step"], reference)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return Exported(out_dir, content["step"], merged.dtype, merged.kept)


def push_export(exported: Path, name: str, *, private: bool) -> str:
    """Put an exported run on the hub: the merged model at the top, ``adapter/``, and its README; the address.

    Raises:
        UserError: no login may write there, or the hub cannot be reached; the export stays as it is.
    """
    parts = {"merged": ".", "adapter": "adapter", "README.md": "README.md"}
    by_hand = " && ".join(f"hf upload {name} {exported / part} {place}" for part, place in parts.items())
    with tempfile.TemporaryDirectory(prefix="mathrl-push-", dir=exported.parent) as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(exported / "merged", folder, copy_function=os.link)
        shutil.copytree(exported / "adapter", folder / "adapter", copy_function=os.link)
        shutil.copy(exported / "README.md", folder / "README.md")
        return push_folder(folder, name, private=private, by_hand=by_hand)


def _card(run_dir: Path, config: Config, step: int, reference: str) -> str:
    record = read_run(run_dir)
    after = record.evaluations.get((MAIN_SET, "after"))
    return model_card(config, record.summary, after.protocol if after else {}, step=step, base=reference)


def export_adapter(folder: Path, adapter: Adapter, reference: str, tokenizer: Any) -> None:
    """Write an adapter as peft does, and the tokenizer beside it; all of it or nothing.

    Args:
        folder: to be made or replaced.
        adapter: its tensors are written in float32: in half precision small deltas vanish.
        reference: folder or hub name of the model that it adapts.
        tokenizer: of that model.
    """
    local = Path(reference)
    base = str(local.resolve()) if local.is_dir() else reference
    told = replace(
        adapter, config=dict(adapter.config) | {"base_model_name_or_path": base, "inference_mode": True}
    )
    with atomic(folder) as temporary:
        write_adapter(told, temporary, torch.float32)
        tokenizer.save_pretrained(temporary)


def _write_merged(adapter: Adapter, reference: str, tokenizer: Any, folder: Path, *, trusted: bool) -> Merger:
    """Write reference + adapter as a transformers model; what its rounding kept."""
    base: Any = load_whole(reference, trusted=trusted)
    merger = merge_into(base, adapter)
    with without_bars():
        base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return merger
