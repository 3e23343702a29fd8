"""Whether a model that is named can be had: a folder here, a copy of the hub's here, or the hub itself."""

from __future__ import annotations

from pathlib import Path

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

    import httpx
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_TIMEOUT_S)
    except RepositoryNotFoundError:
        raise UserError(
            f"there is no model {name!r} on the hub, or it needs a login: check the name"
        ) from None
    except HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor a name on the hub{_near(path)}") from None
    except (httpx.HTTPError, OfflineModeIsEnabled, OSError):
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            raise UserError(
                f"model {name!r} is not on this machine and the hub cannot be reached: connect, or name a "
                "local folder"
            ) from None
        constants.HF_HUB_OFFLINE = True


def _near(path: Path) -> str:
    """A tail for "there is no": near names beside it."""
    folder = path.parent
    names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return f": {did_you_mean(path.name, names)}" if names and len(names) < 30 else ""
