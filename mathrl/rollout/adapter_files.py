"""Weights on their way to an engine in another process: files on a RAM disk, never on a slow one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mathrl.types import Adapter

RAM_DISK = Path("/dev/shm")
_PREFIX = "mathrl-weights-"
_PEFT_PREFIX = "base_model.model."


def weights_folder() -> Path:
    """A new private folder on the RAM disk, else among the temporary files; its owner removes it.

    Folders that killed processes have left are removed here: a RAM disk does not clean itself.
    """
    parent = RAM_DISK if os.access(RAM_DISK, os.W_OK) else Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def write_adapter(adapter: Adapter, folder: Path, dtype: torch.dtype) -> None:
    """Write peft's two files, the tensors rounded to the type that the engine computes in."""
    folder.mkdir(parents=True)
    tensors = {name: t.detach().to(dtype).contiguous().cpu() for name, t in adapter.tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(dict(adapter.config), default=_plain), encoding="utf-8"
    )


def write_merged(adapter: Adapter | None, model: Path, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Write W + (alpha/r)·B·A, rounded to ``dtype``, as a model folder.

    Args:
        adapter: None writes the weights as they are.
        model: folder of the base model, in transformers' format.
        folder: to be made.
        dtype: of the written weights.

    Returns:
        ``merge/kept``: <rounded − W, Δ> / <Δ, Δ> over all adapted weights, the share of the adapter's
        change Δ that rounding leaves (1: all; what is under half a unit in the last place of W vanishes),
        and ``merge/relative_error``: ‖rounded − W − Δ‖ / ‖Δ‖. Both are absent where Δ = 0.

    Raises:
        ValueError: the adapter has weights that the model has not, or is no plain LoRA.
    """
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".bin", ".index.json")):
            shutil.copy(file, folder)
    deltas = _deltas(adapter) if adapter is not None else {}
    dot = norm = error = 0.0
    for file in sorted(model.glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors:
            base = tensors[name].to(dtype)
            delta = deltas.pop(name, None)
            if delta is None:
                tensors[name] = base
                continue
            tensors[name] = (tensors[name].float() + delta).to(dtype)
            moved = (tensors[name].float() - base.float()).double()
            dot += float((moved * delta).sum())
            norm += float(delta.double().square().sum())
            error += float((moved - delta).square().sum())
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    if deltas:
        raise ValueError(f"the model at {model} has no weights {sorted(deltas)[:3]} that the adapter changes")
    index = model / "model.safetensors.index.json"
    if index.is_file():
        shutil.copy(index, folder)
    return {"merge/kept": dot / norm, "merge/relative_error": (error / norm) ** 0.5} if norm > 0 else {}


def _deltas(adapter: Adapter) -> dict[str, Tensor]:
    """(alpha/r)·B·A in float32 by the name of the weight it is added to."""
    config = adapter.config
    if (
        config.get("use_rslora")
        or config.get("use_dora")
        or config.get("rank_pattern")
        or config.get("alpha_pattern")
    ):
        raise ValueError("only plain LoRA can be merged: no rsLoRA, DoRA, rank_pattern or alpha_pattern")
    scale = float(config["lora_alpha"]) / int(config["r"])
    deltas = {}
    for name, a in adapter.tensors.items():
        if name.endswith("lora_A.weight"):
            b = adapter.tensors[name.replace("lora_A", "lora_B")]
            target = name.removeprefix(_PEFT_PREFIX).replace("lora_A.weight", "weight")
            deltas[target] = scale * (b.detach().float().cpu() @ a.detach().float().cpu())
    return deltas


def _plain(value: Any) -> Any:
    """peft's settings hold sets and enums, which JSON does not know."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(getattr(value, "value", value))
