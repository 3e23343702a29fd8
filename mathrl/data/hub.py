"""What the hub has, asked with a short time limit: whether a model or a data set can be had at all.

A name may end in a revision, ``owner/name@revision`` (a branch, a tag or a commit).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from mathrl.errors import UserError, did_you_mean

_TIMEOUT_S = 5.0
_LOGIN = "{name} may not be written ({reason}): log in with `hf auth login` (or HF_TOKEN) as its owner"
_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


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
    if path.is_file() or name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1:
        raise UserError(f"there is no model folder {name}{_near(path)}")

    from huggingface_hub import constants, try_to_load_from_cache

    repo, revision = split_revision(name)
    if not on_hub("model", name, near=_near(path)):
        if not isinstance(try_to_load_from_cache(repo, "config.json", revision=revision), str):
            raise UserError(
                f"model {name!r} is not on this machine and the hub cannot be reached: connect, or name a "
                "local folder"
            )
        constants.HF_HUB_OFFLINE = True


def on_hub(kind: Literal["model", "adapter", "data set"], name: str, *, near: str = "") -> bool:
    """Whether the hub answers that it has ``name``; False where it cannot be reached.

    Args:
        near: tail of the message where ``name`` cannot be a name on the hub.

    Raises:
        UserError: it answers that there is no such name, or the name is not of the hub's form.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi()
    ask = api.dataset_info if kind == "data set" else api.model_info
    repo, revision = split_revision(name)
    try:
        ask(repo, revision=revision, timeout=_TIMEOUT_S)
    except GatedRepoError:
        raise gated(kind, repo) from None
    except RevisionNotFoundError:
        raise UserError(f"{kind} {repo!r} has no revision {revision!r} on the hub") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"there is no {kind} {repo!r} on the hub, or it is private: check the name, or log in with "
            "`hf auth login` (or HF_TOKEN)"
        ) from None
    except HFValidationError:
        here = "a known data set" if kind == "data set" else "a folder"
        raise UserError(f"{name!r} is neither {here} nor a name on the hub{near}") from None
    except (OfflineModeIsEnabled, OSError):
        return False
    except http_errors():
        return False
    return True


def http_errors() -> tuple[type[BaseException], ...]:
    """The HTTP client's own errors: which client it is depends on the hub library's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(HfHubHTTPError.__bases__)


def split_revision(name: str) -> tuple[str, str | None]:
    """(name, revision or None) of ``owner/name@revision``."""
    repo, sign, revision = name.partition("@")
    return repo, revision if sign else None


def gated(kind: str, repo: str) -> UserError:
    """What to do about a repository whose terms must be accepted first."""
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{repo}"
    return UserError(
        f"{kind} {repo!r} is gated: accept its terms at {page} and log in with `hf auth login` (or HF_TOKEN)"
    )


@functools.cache
def local_model(path: str, kind: str = "model") -> str:
    """The folder of a model: the path itself, or where the hub's copy is (downloaded where it is not yet).

    Args:
        kind: what else is wanted of a model repository, such as an adapter; for messages.

    Raises:
        UserError: it is gated, has no such revision, or the download broke off; no model of that name.
    """
    if Path(path).expanduser().is_dir() or not path or path.startswith((".", "/", "~")):
        return path

    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    repo, revision = split_revision(path)
    try:
        return snapshot_download(repo, revision=revision, allow_patterns=_MODEL_FILES)
    except GatedRepoError:
        raise gated(kind, repo) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{kind} {path!r} is not on this machine and the hub cannot be reached: connect, or name a local "
            "folder"
        ) from None
    except Exception as error:
        raise broken_off(kind, path, error) from error


def broken_off(kind: str, name: str, error: Exception) -> UserError:
    """What to do about a download that did not end."""
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return UserError(
        f"the download of {kind} {name!r} from the hub broke off ({reason}): begun again, it goes on from "
        "what is there"
    )


def check_push(name: str) -> None:
    """Refuse what is no name on the hub, before anything is written for it.

    Raises:
        UserError: its form.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"--push {name!r} is no name on the hub: give user/name") from None


def push_folder(folder: Path, name: str, *, private: bool, by_hand: str) -> str:
    """Put a folder into a model repository of the hub, made where there is none; its address.

    Args:
        by_hand: the command that does it later.

    Raises:
        UserError: the name is not of the hub's form, no login may write there, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    check_push(name)
    api = HfApi()
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Trained with mathrl")
    except LocalTokenNotFoundError:
        raise UserError(_LOGIN.format(name=name, reason="there is no login")) from None
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in (401, 403):
            raise UserError(_LOGIN.format(name=name, reason=f"the hub answers {status}")) from None
        raise UserError(f"{name} could not be pushed: {' '.join(str(error).split())[:200]}") from None
    except (OSError, http_errors()[0]) as error:
        raise UserError(
            f"{name} could not be pushed, for the hub cannot be reached ({type(error).__name__}): what was "
            f"written stays; push it with `{by_hand}`"
        ) from None
    return address


def _near(path: Path) -> str:
    """A tail for "there is no": near names beside it."""
    folder = path.parent
    names = [p.name for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    return f": {did_you_mean(path.name, names)}" if names and len(names) < 30 else ""
