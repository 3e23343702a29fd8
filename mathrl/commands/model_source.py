"""What is evaluated: a model folder, a hub name or a run, with or without an adapter, as a Policy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mathrl.config import Config
from mathrl.data.hub import check_model
from mathrl.errors import UserError
from mathrl.policy.adapter_folder import adapter_config, find_adapter, lora_settings, read_adapter
from mathrl.recipes import config_of, load_config
from mathrl.run.folder import RunFolder

if TYPE_CHECKING:  # names are checked before torch is loaded, which takes seconds
    from mathrl.policy.model import Policy


def check_reward_model_is_there(path: str, option: str) -> None:
    """Refuse a reward model that cannot be had, at once: transformers asks the hub for most of a minute.

    Raises:
        UserError: no such folder, and no such name on the hub or the hub cannot be reached.
    """
    if not Path(path).expanduser().is_dir():
        try:
            check_model(path)
        except UserError as error:
            raise UserError(f"{option} {path!r} holds no sequence-classification model: {error}") from None


def check_base(run: Path, model: str) -> None:
    """Refuse, at once, a run whose model cannot be had.

    Raises:
        UserError: as ``check_model``; a relative folder may lie where the run was trained.
    """
    try:
        check_model(model)
    except UserError as error:
        if Path(model).expanduser().is_absolute():
            raise
        raise UserError(
            f"{error}; the run {run} names its model {model!r} as seen from where it was trained: if that is "
            "a folder there, run this command there"
        ) from None


@dataclass(frozen=True)
class ModelSource:
    """Where the weights are and how they are asked."""

    model: str  # folder or hub name of the base
    adapter: Path | None
    config: Config
    run: Path | None = None  # the run folder that was named

    @property
    def name(self) -> str:
        """For titles and folder names."""
        if self.run is not None:
            return self.run.name
        name = Path(self.model).name or self.model
        return f"{name}+{self.adapter.name}" if self.adapter else name

    def facts(self) -> dict[str, str]:
        """Model, adapter, and a hash of what local weight files hold: an evaluation of others is not resumed.

        They are read whole, about a second a gigabyte; loading them reads them again from memory.
        """
        folders = [p for p in (Path(self.model), self.adapter) if p is not None and p.is_dir()]
        digest = hashlib.blake2b(digest_size=8)
        for file in sorted(file for folder in folders for file in folder.glob("*.safetensors")):
            with file.open("rb") as content:
                own = hashlib.file_digest(content, hashlib.blake2b)
            digest.update(file.name.encode() + own.digest())
        return {"model": self.model, "adapter": str(self.adapter or ""), "weights": digest.hexdigest()}

    def load(self) -> Policy:
        """The policy with the adapter's weights; without an adapter it is the model itself.

        Raises:
            UserError: model, tokenizer or adapter cannot be loaded, or they do not fit each other.
        """
        from mathrl.policy.model import Policy

        policy = Policy.from_pretrained(self.model, self.config)
        if self.adapter is not None:
            try:
                policy.load_adapter(read_adapter(self.adapter))
            except UserError as error:
                raise UserError(f"adapter {self.adapter} on model {self.model}: {error}") from None
        return policy


@dataclass(frozen=True)
class EndpointSource:
    """A model behind the OpenAI API."""

    url: str
    model: str  # the name it is served by; empty: the only one
    tokenizer: str  # folder or hub name, for whole prompts; empty: chat turns
    concurrency: int
    config: Config
    adapter: Path | None = None
    run: Path | None = None

    @property
    def name(self) -> str:
        """For titles and folder names."""
        return (self.model or "endpoint").replace("/", "--")

    def facts(self) -> dict[str, str]:
        """Where completions came from: an evaluation of another server is not resumed."""
        return {"endpoint": self.url, "model": self.model, "tokenizer": self.tokenizer}


def find_endpoint(
    url: str, model: str, tokenizer: str, concurrency: int, overrides: Sequence[tuple[str, str]]
) -> EndpointSource:
    """The server at ``url``; nothing is asked of it yet.

    Raises:
        UserError: an override that is none of a recipe's fields.
    """
    table: dict[str, Any] = {"model": {"path": tokenizer or "endpoint"}, "sft": {"skip": True}}
    return EndpointSource(url, model, tokenizer, concurrency, config_of(table, "evaluation", overrides))


def find_model(
    model: str, adapter: str, overrides: Sequence[tuple[str, str]], *, reference: bool = False
) -> ModelSource:
    """``model`` may be a run folder (its reference with its adapter), a model folder or a hub name.

    Args:
        adapter: peft folder or hub name; empty: the run's, or none.
        overrides: ``--section.key value`` pairs of the recipe (model.prompt, model.dtype, rollout.engine …).
        reference: of a run folder its reference alone, asked as the run asks.

    Raises:
        UserError: no such folder or hub model, a run without an adapter, or an adapter of a kind that is not
            served.
    """
    path = Path(model).expanduser()
    run = path if (path / "config.toml").is_file() else None
    table: dict[str, Any] = {}
    if reference and (run is None or adapter):
        raise UserError(
            f"--reference asks for the reference of a run without its adapter: {model} is no run folder"
            if run is None
            else "--reference and --adapter exclude each other"
        )
    if run is not None:
        own = load_config(run / "config.toml")
        folder = RunFolder(run)
        table = {"model": own.model.model_dump() | {"adapter": ""}, "rollout": own.rollout.model_dump()}
        model = str(folder.reference) if own.makes_reference else own.model.path
        if not (reference or adapter):
            adapter = str(folder.adapter)
            if not folder.adapter.is_dir():
                raise UserError(
                    f"{run} has no adapter yet: train it to the end, name a checkpoint's with --adapter, or "
                    "evaluate its reference with --reference"
                )
    elif path.is_dir():
        model = str(path)
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        base = adapter_config(path).get("base_model_name_or_path") or "MODEL"
        raise UserError(f"{path} is an adapter, not a model: evaluate {base} with --adapter {path}")
    if run is None:
        check_model(model)
    else:
        check_base(run, model)
    source = find_adapter(adapter) if adapter else None
    table.setdefault("model", {})["path"] = model
    table["sft"] = {"skip": True}
    table["update"] = {"fused_lora": False}
    table["lora"] = lora_settings(source) if source else {"rank": 1}
    config = config_of(table, "evaluation", overrides)
    if config.model.adapter:
        raise UserError(
            "model.adapter is where training starts: the adapter to evaluate is named with --adapter"
        )
    return ModelSource(model, source, config, run)
