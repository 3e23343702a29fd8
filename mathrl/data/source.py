"""Rows of a local file or of a data set on the hub, as plain dictionaries."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mathrl.data.fields import is_single, single
from mathrl.data.hub import broken_off, gated, http_errors, on_hub, split_revision
from mathrl.data.text_files import Row, read_text_file
from mathrl.errors import UserError, did_you_mean, first_line

_MISSING = object()
_FORMATS = (".jsonl", ".json", ".parquet", ".csv")


def read_file(path: str | Path) -> list[Row]:
    """All rows of a JSON lines, JSON, Parquet or CSV file.

    The format goes by the ending; a ``.json`` file may hold an array or one object a line.

    Raises:
        UserError: no such file, an unknown ending, no rows, or contents that are not what the ending says.
    """
    path = Path(path)
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path} must end in one of {', '.join(_FORMATS)} so that its format is known")
    if not path.is_file():
        raise UserError(f"data file {path} does not exist{_near(path)}")
    if path.stat().st_size == 0:
        raise UserError(f"data file {path} is empty")
    try:
        rows = _read_parquet(path) if path.suffix.lower() == ".parquet" else read_text_file(path)
    except OSError as error:
        raise UserError(f"data file {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"data file {path} is not a valid {path.suffix} file: {first_line(error)}") from None
    if not rows:
        raise UserError(f"data file {path} holds no rows")
    return rows


def _read_parquet(path: Path) -> list[Row]:
    """All rows of a Parquet file. Raises OSError where it cannot be read, ValueError where it is none."""
    datasets = _datasets()
    # The cache lives as long as the call: a changed file must never be answered from an old copy.
    with tempfile.TemporaryDirectory(prefix="mathrl-data-") as cache, _quiet(datasets):
        try:
            table = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache)
        except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            cause = error.__cause__ or error
            if "BatchSize must be greater than 0" in str(cause):  # how it meets a file without rows
                return []
            raise ValueError(str(cause)) from None
        return rows_of(table)


def rows_of(table: Any) -> list[Row]:
    """The rows of a ``datasets.Dataset``; 32-bit floats as they were written, 0.1 and not 0.10000000149."""
    rows: list[Any] = table.to_list()
    for name, feature in table.features.items():
        if "float32" in str(feature):
            for row in rows:
                row[name] = _as_written(row[name], feature)
    return rows


def _as_written(value: Any, feature: Any) -> Any:
    if isinstance(value, float):
        return single(value) if is_single(feature.dtype) else value
    of_items = (
        getattr(feature, "feature", None) or feature
    )  # an array of several dimensions has none of its own
    if isinstance(value, Mapping):
        return {key: _as_written(item, of_items[key]) for key, item in value.items()}
    if isinstance(value, list):
        of_items = of_items[0] if isinstance(of_items, list | tuple) else of_items
        return [_as_written(item, of_items) for item in value]
    return value


def read_hub(
    name: str,
    config: str,
    split: str,
    revision: str = "",
    local_option: str = "--data.path (and --data.eval_path)",
) -> list[Row]:
    """All rows of a split of a data set on the Hugging Face hub, or of its local copy without one.

    Raises:
        UserError: out of reach and there is no copy; or data set, configuration or split is unknown.
    """
    from huggingface_hub.errors import GatedRepoError

    datasets = _datasets()
    reachable = on_hub("data set", name)
    repo, named = split_revision(name)
    was_offline = datasets.config.HF_HUB_OFFLINE
    # Without this, an unreachable hub is tried again for 20 to 30 seconds before the local copy is looked at.
    datasets.config.HF_HUB_OFFLINE = was_offline or not reachable
    try:
        with _quiet(datasets):
            return rows_of(
                datasets.load_dataset(repo, config or None, split=split, revision=revision or named)
            )
    except GatedRepoError:
        raise gated("data set", repo) from None
    except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        if "gated" in str(error):
            raise gated("data set", repo) from None
        raise UserError(
            f"data set {name!r} is not on this machine and the hub cannot be reached: connect, or give a "
            f"local file with {local_option}"
        ) from None
    except ValueError as error:
        several = [] if config else _configs(repo, revision or named)
        if len(several) > 1:
            raise UserError(
                f"data set {name!r} has several configurations, {', '.join(several)}: choose one with "
                "--data.config"
            ) from None
        raise UserError(f"data set {name!r}: {str(error).strip().splitlines()[0]}") from None
    except (OSError, *http_errors(), datasets.exceptions.DatasetGenerationError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise broken_off("data set", name, cause) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _configs(repo: str, revision: str | None) -> list[str]:
    """The configurations of a data set on the hub; empty where they cannot be known."""
    datasets = _datasets()
    try:
        return list(datasets.get_dataset_config_names(repo, revision=revision))
    except (ConnectionError, ValueError, OSError, datasets.exceptions.DatasetNotFoundError):
        return []


def hub_splits(name: str, config: str) -> list[str]:
    """The splits of a data set on the hub; empty where they cannot be known."""
    if not on_hub("data set", name):
        return []
    datasets = _datasets()
    try:
        repo, revision = split_revision(name)
        return list(datasets.get_dataset_split_names(repo, config or None, revision=revision))
    except (ConnectionError, ValueError, datasets.exceptions.DatasetNotFoundError):
        return []


def get_field(row: Row, name: str, where: str) -> Any:
    """The row's field, which may be null; ``reward_model.ground_truth`` is a field of a field.

    Raises:
        UserError: there is no such field; names the place and the fields that there are.
    """
    value = find_column(row, name, _MISSING)
    if value is _MISSING:
        there = field_names(row)
        near = did_you_mean(name, there)
        guess = f"{near} (" if near.startswith("did") else ""
        raise UserError(
            f"{where} has no field {name!r}: {guess}fields: {', '.join(there)}{')' * bool(guess)}"
        )
    return value


def find_column(row: Row, name: str, default: Any = None) -> Any:
    """The row's field by its name or dotted path (a number takes an item of a list); else ``default``."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            # a field of a field that is null in this row is null, not missing
            return None if value is None else default
    return value


def field_names(row: Row, prefix: str = "") -> list[str]:
    """The names of a row's fields, those of fields of fields with dots."""
    names = []
    for key, value in row.items():
        inner = field_names(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
        names += inner or [f"{prefix}{key}"]
    return names


def _near(path: Path) -> str:
    """A tail for "does not exist": near names in the folder."""
    if not path.parent.is_dir():
        return f": there is no folder {path.parent}"
    names = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in _FORMATS)
    return f": {did_you_mean(path.name, names)}" if names else ": check the path"


def _datasets() -> Any:
    import datasets  # takes two seconds; generated problems do without

    return datasets


class _quiet:
    """No progress bars and log lines of ``datasets`` inside: its errors are told once, in one sentence."""

    def __init__(self, datasets: Any) -> None:
        self.datasets = datasets

    def __enter__(self) -> None:
        self.shown = not self.datasets.are_progress_bars_disabled()
        self.level = self.datasets.logging.get_verbosity()
        self.datasets.logging.set_verbosity(logging.CRITICAL)
        self.datasets.disable_progress_bars()

    def __exit__(self, *args: Sequence[object]) -> None:
        self.datasets.logging.set_verbosity(self.level)
        if self.shown:
            self.datasets.enable_progress_bars()
