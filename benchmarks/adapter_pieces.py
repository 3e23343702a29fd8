"""An adapter as files that travel: bfloat16, in pieces of at most 16 MiB, and together again."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mathrl.run.files import atomic

PIECE_BYTES = 16 << 20
_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"


def pack(adapter: Path, out: Path) -> list[Path]:
    """Write the adapter, rounded to bfloat16, as ``out/piece-0.safetensors`` … beside its configuration."""
    tensors = load_file(adapter / _TENSORS)
    pieces: list[dict[str, torch.Tensor]] = [{}]
    room = PIECE_BYTES - (1 << 16)  # the header of a file has the names
    left = room
    for name, tensor in sorted(tensors.items()):
        half = tensor.to(torch.bfloat16).contiguous()
        if half.nbytes > left and pieces[-1]:
            pieces.append({})
            left = room
        pieces[-1][name] = half
        left -= half.nbytes
    with atomic(out) as folder:
        folder.mkdir(parents=True)
        for number, piece in enumerate(pieces):
            save_file(piece, folder / f"piece-{number}.safetensors", metadata={"format": "pt"})
        (folder / _CONFIG).write_text((adapter / _CONFIG).read_text())
    return sorted(out.glob("piece-*.safetensors"))


def unpack(pieces: Path, adapter: Path) -> None:
    """The adapter of ``pack`` as peft's folder, in float32."""
    tensors: dict[str, torch.Tensor] = {}
    for piece in sorted(pieces.glob("piece-*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(piece).items()}
    with atomic(adapter) as folder:
        folder.mkdir(parents=True)
        save_file(tensors, folder / _TENSORS, metadata={"format": "pt"})
        config = json.loads((pieces / _CONFIG).read_text())
        (folder / _CONFIG).write_text(json.dumps(config, indent=2))
