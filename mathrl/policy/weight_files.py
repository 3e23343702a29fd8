"""The weight files of a model's folder: whole, or refused before anything is made of them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mathrl.errors import UserError, first_line


def check_weights(path: str) -> None:
    """Refuse a local model whose weight files are not whole, before anything is made of it.

    Only their headers are read. Names on the hub are not looked at.

    Raises:
        UserError: a file is damaged, or one that the index names is missing.
    """
    folder = Path(path)
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(name for name in shards if not (folder / name).is_file())
            if missing:
                raise UserError(f"the model in {folder} lacks {missing[0]}, which {index.name} names")
        for file in sorted(folder.glob("*.safetensors")):
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{file} is damaged ({first_line(error)}): copy or download the model again"
                ) from error
    except (json.JSONDecodeError, KeyError, AttributeError) as error:
        raise UserError(f"{index} is damaged ({first_line(error)})") from error
