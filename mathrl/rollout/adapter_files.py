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

from mathrl.policy.merge import Merger, deltas, scaling_of
from mathrl.run.files import json_default
from mathrl.types import Adapter

RAM_DISK = Path("/dev/shm")
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}  # of safetensors
_PREFIX = "mathrl-weights-"


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
    # one copy from the device, not one a tensor: each would wait for all that the device has to do
    flat = torch.cat([t.detach().reshape(-1) for t in adapter.tensors.values()]).to(dtype).cpu()
    parts = flat.split([t.numel() for t in adapter.tensors.values()])
    tensors = {
        name: part.view(t.shape) for part, (name, t) in zip(parts, adapter.tensors.items(), strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(
        json.dumps(dict(adapter.config), default=json_default), encoding="utf-8"
    )


def write_served(adapter: Adapter, folder: Path, dtype: torch.dtype) -> None:
    """The same for an engine, which then has little left to do: alpha/r is in ``B``, as the trainer has it.

    ``B`` is scaled before it is rounded, and the file says alpha = r. vLLM would scale what has been rounded,
    tensor by tensor, for as long as it takes to load all of them. An adapter that is no plain LoRA keeps its
    own scaling.
    """
    config = dict(adapter.config)
    scale = scaling_of(config)
    if scale is not None:
        config["lora_alpha"] = config["r"]
    ends = ("lora_B.weight", "lora_embedding_B")
    names = sorted(adapter.tensors, key=lambda name: name.endswith(ends))  # B at the end
    shapes = {name: adapter.tensors[name].shape for name in names}
    scaled = sum(shape.numel() for name, shape in shapes.items() if name.endswith(ends))
    whole = torch.cat([adapter.tensors[name].detach().reshape(-1) for name in names])  # one copy, as above
    whole[len(whole) - scaled :] *= 1.0 if scale is None else scale
    folder.mkdir(parents=True)
    _write_safetensors(folder / "adapter_model.safetensors", shapes, whole.to(dtype).cpu())
    (folder / "adapter_config.json").write_text(json.dumps(config, default=json_default), encoding="utf-8")


def _write_safetensors(file: Path, shapes: Mapping[str, torch.Size], whole: torch.Tensor) -> None:
    """Tensors that lie one behind the other, as they are, without the interpreter's lock being held.

    The format: https://github.com/huggingface/safetensors#format. Its own ``save_file`` walks the tensors one
    by one, in the way of a thread that trains.
    """
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + shape.numel() * whole.itemsize
        head[name] = {"dtype": _NAMES[whole.dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    words = json.dumps(head).encode()
    words += b" " * (-len(words) % 8)
    with file.open("wb") as out:
        out.write(len(words).to_bytes(8, "little") + words)
        out.write(whole.view(torch.uint8).numpy().data)


def write_merged(adapter: Adapter | None, model: Path, folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Write W + (alpha/r)·B·A, rounded to ``dtype``, as a model folder.

    Args:
        adapter: None writes the weights as they are.
        model: folder of the base model, in transformers' format.
        folder: to be made.
        dtype: of the written weights.

    Returns:
        ``merge/kept`` and ``merge/relative_error`` (see ``Merger``); absent where Δ = 0.

    Raises:
        ValueError: the adapter has weights that the model has not, or is no plain LoRA.
    """
    folder.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".bin", ".index.json")):
            shutil.copy(file, folder)
    left = deltas(adapter) if adapter is not None else {}
    merger = Merger(dtype)
    for file in sorted(model.glob("*.safetensors")):
        tensors = load_file(file)
        for name in tensors:
            delta = left.pop(name, None)
            tensors[name] = tensors[name].to(dtype) if delta is None else merger.merge(tensors[name], delta)
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    if left:
        raise ValueError(f"the model at {model} has no weights {sorted(left)[:3]} that the adapter changes")
    index = model / "model.safetensors.index.json"
    if index.is_file():
        shutil.copy(index, folder)
    if not merger.changed:
        return {}
    return {"merge/kept": merger.kept, "merge/relative_error": merger.relative_error}
