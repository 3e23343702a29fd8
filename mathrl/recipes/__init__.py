"""Recipes: TOML files in this folder or anywhere, with ``--section.key value`` on top.

A recipe may begin with ``extends = "other"`` (a name, or a file beside it) and says only what it changes.
``load_recipe`` resolves one to a Config; ``dump`` writes a Config as TOML that loads to the same Config.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mathrl.config import Config, Section
from mathrl.errors import UserError, did_you_mean


def recipe_names() -> list[str]:
    """Recipes that come with the package."""
    folder = resources.files(__name__)
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_recipe(recipe: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The Config of a packaged recipe (by name) or a TOML file (by path), overrides applied last.

    Raises:
        UserError: unknown recipe or key (with near names), wrong type, value out of range.
    """
    return resolve(_read(recipe), where=f"recipe {recipe!r}", overrides=overrides)


def load_config(path: Path) -> Config:
    """The Config that a run saved."""
    return resolve(_parse(path), where=str(path))


def resolve(table: dict[str, Any], where: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """A nested table, then overrides, as a Config; errors name the field, its value and what it may be."""
    for dotted, text in overrides:
        _set(table, dotted, text)
    _refuse_unknown(table, Config, prefix="", where=where)
    try:
        return Config.model_validate(table)
    except ValidationError as error:
        raise UserError(f"{where}: {'; '.join(_sentence(e) for e in error.errors())}") from None


def dump(config: Config, comments: bool = False) -> str:
    """TOML of every field; with ``comments``, each field's reason and range beside it."""
    lines: list[str] = []
    for name, value in config:
        if not isinstance(value, BaseModel):
            lines.append(f"{name} = {_toml(value)}")
    for name, section in config:
        if isinstance(section, BaseModel):
            lines += ["", f"[{name}]", *_dump_section(section, comments)]
    return "\n".join(lines) + "\n"


def differences(config: Config, base: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (value in ``base``, value in ``config``) where they differ."""
    mine, theirs = flatten(config), flatten(base)
    return {key: (theirs[key], mine[key]) for key in mine if mine[key] != theirs[key]}


def flatten(config: Config) -> dict[str, Any]:
    """Dotted field -> value."""
    flat: dict[str, Any] = {}
    for name, value in config:
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{key}": item for key, item in value}
        else:
            flat[name] = value
    return flat


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
        name, table = recipe, tomllib.loads(resources.files(__name__).joinpath(f"{recipe}.toml").read_text())
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


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _set(table: dict[str, Any], dotted: str, text: str) -> None:
    """Set ``section.key`` from its text on the command line."""
    *sections, key = dotted.split(".")
    field = find_field(dotted)
    inner = table
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[key] = _value(text, field)


def find_field(dotted: str) -> FieldInfo:
    """The field that ``section.key`` names; UserError with near names where there is none."""
    model: type[BaseModel] = Config
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        if part not in model.model_fields:
            raise UserError(f"unknown option --{dotted}: {did_you_mean(dotted, _all_keys())}")
        field = model.model_fields[part]
        if depth + 1 < len(parts):
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
                raise UserError(f"unknown option --{dotted}: {part!r} has no parts")
            model = field.annotation
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        first = next(iter(field.annotation.model_fields))
        raise UserError(f"--{dotted} is a section; set one of its keys, such as --{dotted}.{first}")
    return field


def _all_keys() -> list[str]:
    return list(flatten(Config()))


def _value(text: str, field: FieldInfo) -> Any:
    """Text of the command line as the field's kind of value; pydantic has the last word on it."""
    kinds = {field.annotation, *get_args(field.annotation)}
    if bool in kinds and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return text.lower() in ("true", "yes", "on")
    return text


def _refuse_unknown(table: Mapping[str, Any], model: type[Section], prefix: str, where: str) -> None:
    for key, value in table.items():
        if key not in model.model_fields:
            name = prefix + key
            raise UserError(f"{where}: unknown key {name!r}: {did_you_mean(name, _all_keys())}")
        annotation = model.model_fields[key].annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {key!r} is a section and must be a table, not {value!r}")
            _refuse_unknown(value, annotation, prefix=f"{prefix}{key}.", where=where)


def _sentence(error: Any) -> str:
    name = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if not name or error["type"] == "value_error":
        return f"{name + ': ' if name else ''}{message}"
    return f"{name} = {error['input']!r}: {message[0].lower()}{message[1:]}"


def _dump_section(section: BaseModel, comments: bool) -> Iterable[str]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        line = f"# {key} =" if value is None else f"{key} = {_toml(value)}"
        note = f"  # {field.description}{_range(field)}" if comments and field.description else ""
        if value is not None or comments:
            yield line + note


def _range(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{signs[k]} {getattr(m, k)}" for m in field.metadata for k in signs if hasattr(m, k)]
    choices = [str(c) for c in get_args(field.annotation) if isinstance(c, str)]
    return f" [{', '.join(limits) or '|'.join(choices)}]" if limits or choices else ""


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, BaseModel):  # a table of a list, in one line
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value) + "}"
    return repr(value)
