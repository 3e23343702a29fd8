"""What the hub has, asked with a short time limit: whether a model or a data set can be had at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mathrl.errors import UserError, did_you_mean

_TIMEOUT_S = 5.0


def check_model(name: str) -> None:
    """Refuse a model that cannot be had, at once: transformers alone asks the hub for half a minute.

    Where the hub cannot be reached and a copy is here, this process asks the hub no more.

    Raises:
        UserError: no such folder, a folder without config.json, no such name on the hub, or the hub cannot be
            reached and there is no copy here.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{name} is no model: it has no config.json")
        return
    if path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name}{_near(path)}")

    from huggingface_hub import constants, try_to_load_from_cache

    if not on_hub("model", name, near=_near(path)):
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            raise UserError(
                f"model {name!r} is not on this machine and the hub cannot be reached: connect, or name a "
                "local folder"
            )
        constants.HF_HUB_OFFLINE = True


def on_hub(kind: Literal["model", "data set"], name: str, *, near: str = "") -> bool:
    """Whether the hub answers that it has ``name``; False where it cannot be reached.

    Args:
        near: tail of the message where ``name`` cannot be a name on the hub.

    Raises:
        UserError: it answers that there is no such name, or the name is not of the hub's form.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    # the HTTP client's own error: which client it is depends on the hub library's version
    unreachable: Any = HfHubHTTPError.__bases__[0]
    api = HfApi()
    ask = api.model_info if kind == "model" else api.dataset_info
    try:
        ask(name, timeout=_TIMEOUT_S)
    except RepositoryNotFoundError:
        raise UserError(
            f"there is no {kind} {name!r} on the hub, or it needs a login: check the name"
        ) from None
    except HFValidationError:
        here = "a folder" if kind == "model" else "a known data set"
        raise UserError(f"{name!r} is neither {here} nor a name on the hub{near}") from None
    except (unreachable, OfflineModeIsEnabled, OSError):
        return False
    return True


def _near(path: Path) -> str:
    """A tail for "there is no": near names beside it."""
    folder = path.parent
    names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return f": {did_you_mean(path.name, names)}" if names and len(names) < 30 else ""
