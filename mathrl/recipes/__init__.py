"""Recipes: TOML files in this folder or anywhere, with ``--section.key value`` on top.

A recipe may begin with ``extends = "other"`` (a name, or a file beside it) and says only what it changes.
``load_recipe`` resolves one to a Config; ``dump`` writes a Config as TOML that loads to the same Config.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mathrl.config import Config
from mathrl.errors import UserError, did_you_mean
from mathrl.recipes.fields import (
    all_fields,
    differences,
    find_field,
    is_flag,
    is_table,
    kinds_of,
    range_of,
    section_of,
    unknown_field,
    value_of,
    values_by_name,
)
from mathrl.recipes.kinds_of_run import refuse_of_other_kinds
from mathrl.recipes.writing import dump

_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}
"""What is wanted, by the first word of pydantic's kind of error: int_parsing, int_from_float, bool_type …"""

__all__ = [
    "all_fields",
    "check_named",
    "config_of",
    "differences",
    "dump",
    "find_field",
    "find_recipe",
    "is_flag",
    "is_table",
    "kinds_of",
    "load_config",
    "load_recipe",
    "range_of",
    "recipe_descriptions",
    "recipe_names",
    "values_by_name",
]


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files(__name__)
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def recipe_descriptions() -> dict[str, str]:
    """Name -> its line of description, of the recipes that come with the package."""
    return {name: str(_packaged(name).get("description", "")) for name in recipe_names()}


def load_recipe(recipe: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
    """The Config of a packaged recipe (by name) or a TOML file (by path), overrides applied last.

    Raises:
        UserError: unknown recipe or key (with near names), wrong type, value out of range.
    """
    where, table = f"recipe {recipe!r}", _read(recipe)
    config = config_of(table, where, overrides)
    refuse_of_other_kinds(config, table, where, {name for name, _ in overrides})
    return config


def find_recipe(recipe: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
    """``load_recipe``; without a name quickstart, or default where the model or the data are one's own.

    Raises:
        UserError: as ``load_recipe``.
    """
    named = {name for name, value in overrides if value}
    own = named & {"model.path", "data.path", "data.source", "data.mix", "reward_model.base"}
    return load_recipe(recipe or ("default" if own else "quickstart"), overrides)


def check_named(config: Config) -> None:
    """Refuse a recipe for a model and data of one's own that names neither, before anything is loaded.

    Raises:
        UserError: which is missing, and how it is named.
    """
    model, data = config.model, config.data
    if not model.path and not model.from_scratch:
        raise UserError(
            "no model is named: --model.path with a folder or a hub name (a small one is built from nothing "
            "by the recipe quickstart: mathrl train quickstart)"
        )
    if not (data.source or data.path or data.mix):
        raise UserError(
            "no problems are named: --data.path with a file, or --data.source with a known data set or a hub "
            "name (mathrl data lists the known ones)"
        )


def load_config(path: Path) -> Config:
    """The Config that a run saved."""
    return config_of(_parse(path), where=str(path))


def config_of(table: dict[str, Any], where: str, overrides: Sequence[tuple[str, Any]] = ()) -> Config:
    """A nested table, then overrides, as a Config; errors name the field, its value and what it may be."""
    for dotted, text in overrides:
        _set(table, dotted, text)
    _refuse_unknown(table, Config, prefix="", where=where)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(_sentence(e) for e in error.errors())}") from None


def _read(recipe: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table of a recipe on top of the one it extends."""
    path = Path(recipe)
    if recipe.endswith(".toml") or path.is_file():
        if not path.is_file():
            raise UserError(
                f"recipe file {recipe!r} does not exist: check the path, or name one of {recipe_names()}"
            )
        name, table = path.stem, _parse(path)
    elif recipe in recipe_names():
        name, table = recipe, _packaged(recipe)
    else:
        raise UserError(f"unknown recipe {recipe!r}: {did_you_mean(recipe, recipe_names())}")
    base = table.pop("extends", None)
    if base is None:
        return {"recipe": name} | table
    if not isinstance(base, str):
        raise UserError(f"recipe {recipe!r}: extends must be the name of one recipe, not {base!r}")
    if base.endswith(".toml"):
        base = str(path.parent / base)
    if base in extending:
        raise UserError(f"recipe {recipe!r} extends itself: {' -> '.join([*extending, recipe, base])}")
    return _merged(_read(base, (*extending, recipe)), {"recipe": name} | table)


def _merged(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``table``, section by section."""
    merged = dict(base)
    for key, value in table.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def _packaged(name: str) -> dict[str, Any]:
    text = resources.files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _set(table: dict[str, Any], dotted: str, value: Any) -> None:
    """Set ``section.key`` from its text on the command line, or a value of Python."""
    *sections, key = dotted.split(".")
    field = find_field(dotted)
    inner = table
    for section in sections:
        inner = inner.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"--{dotted}: {section!r} is {inner!r} in the recipe, not a table")
    inner[key] = value_of(value, field) if isinstance(value, str) else value


def _refuse_unknown(table: Mapping[str, Any], model: type[BaseModel], prefix: str, where: str) -> None:
    for key, value in table.items():
        if key not in model.model_fields:
            raise unknown_field(f"{where}: unknown key {prefix + key!r}", prefix + key)
        section = section_of(model.model_fields[key])
        if section is not None:
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key!r} is a section and must be a table, not {value!r}")
            _refuse_unknown(value, section, prefix=f"{prefix}{key}.", where=where)


def _sentence(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":  # in a table of a list: of others _refuse_unknown speaks
        kind, *_ = get_args(find_field(".".join(map(str, error["loc"][:2]))).annotation)
        return f"unknown key {name!r}: {did_you_mean(str(error['loc'][-1]), kind.model_fields)}"
    kind = _KINDS.get(error["type"].partition("_")[0])
    message = f"must be {kind}" if kind else error["msg"].removeprefix("Value error, ")
    if not name or error["type"] == "value_error":
        return f"{name + ': ' if name else ''}{message}"
    return f"{name} = {error['input']!r}: {message[0].lower()}{message[1:]}"
