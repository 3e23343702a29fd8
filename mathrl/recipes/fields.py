"""The fields of a Config by their dotted names: which there are, their values, what may stand in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mathrl.config import Config
from mathrl.errors import UserError, did_you_mean


def all_fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every value of a recipe; sections themselves are left out."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            yield prefix + name, field
        else:
            yield from all_fields(section, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that the field is, or None where it is a value."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def is_table(field: FieldInfo) -> bool:
    """Whether the field is a table of names of the user's own, such as model.chat_template_kwargs."""
    return get_origin(field.annotation) is dict


def find_field(dotted: str) -> FieldInfo:
    """The field that ``section.key`` names; UserError with near names where there is none."""
    model: type[BaseModel] = Config
    *sections, key = dotted.split(".")
    for part in sections:
        field = model.model_fields.get(part)
        inner = section_of(field) if field else None
        if field is not None and is_table(field) and key:
            return field
        if inner is None:
            raise unknown_field(f"unknown option --{dotted}", dotted)
        model = inner
    if key not in model.model_fields:
        raise unknown_field(f"unknown option --{dotted}", dotted)
    field = model.model_fields[key]
    section = section_of(field)
    if section is not None:
        first = next(iter(section.model_fields))
        raise UserError(f"--{dotted} is a section; set one of its keys, such as --{dotted}.{first}")
    return field


def unknown_field(what: str, dotted: str) -> UserError:
    """``what``, and the fields whose names are near."""
    return UserError(f"{what}: {did_you_mean(dotted, [name for name, _ in all_fields()])}")


def values_by_name(config: Config) -> dict[str, Any]:
    """Dotted name -> value."""
    return dict(_values(config, ""))


def _values(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from _values(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(config: Config, base: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> (value in ``base``, value in ``config``) where they differ."""
    mine, theirs = values_by_name(config), values_by_name(base)
    return {key: (theirs[key], mine[key]) for key in mine if mine[key] != theirs[key]}


def value_of(text: str, field: FieldInfo) -> Any:
    """Text of the command line as the field's kind of value; pydantic has the last word on it."""
    if is_table(field):
        return _plain_value(text)
    if bool in kinds_of(field) and text.lower() in ("true", "false", "yes", "no", "on", "off"):
        return text.lower() in ("true", "yes", "on")
    return text


def _plain_value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def kinds_of(field: FieldInfo) -> set[Any]:
    """The field's type, and those that an optional one is made of."""
    return {field.annotation, *get_args(field.annotation)}


def is_flag(field: FieldInfo) -> bool:
    """Whether the field is true or false and nothing else, so that its option may stand alone."""
    return (set(get_args(field.annotation)) or {field.annotation}) <= {bool, type(None)}


def range_of(field: FieldInfo) -> str:
    """What a value may be, in brackets after a space: `` [>= 1, <= 256]``; empty where anything may be."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [f"{signs[k]} {getattr(m, k)}" for m in field.metadata for k in signs if hasattr(m, k)]
    choices = [str(c) for c in get_args(field.annotation) if isinstance(c, str)]
    return f" [{', '.join(limits) or '|'.join(choices)}]" if limits or choices else ""
