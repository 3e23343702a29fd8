"""A Config as TOML, with each field's reason beside it."""

from __future__ import annotations

from typing import Any

import tomlkit
from pydantic import BaseModel
from tomlkit.items import Item, Table

from mathrl.config import Config
from mathrl.recipes.fields import range_of


def dump(config: Config, comments: bool = False) -> str:
    """TOML of every field, which loads to the same Config; with ``comments``, each one's reason and range."""
    document = tomlkit.document()
    for name, value in config:
        document.add(name, _section(value, comments) if isinstance(value, BaseModel) else _item(value))
    return tomlkit.dumps(document).rstrip("\n") + "\n"


def _section(section: BaseModel, comments: bool) -> Table:
    table, inner = tomlkit.table(), []
    for key, field in type(section).model_fields.items():
        if isinstance(getattr(section, key), BaseModel):
            inner.append(key)  # tables end a table: they come after its values
            continue
        value, told = getattr(section, key), f"{field.description}{range_of(field)}"
        if value is not None:
            written = _item(value)
            if comments:
                written.comment(told)
            table.add(key, written)
        elif comments:  # TOML has no word for none
            table.add(tomlkit.comment(f"{key} =  # {told}"))
    table.add(tomlkit.nl())
    for key in inner:
        table.add(key, _section(getattr(section, key), comments))
    return table


def _item(value: Any) -> Item:
    """A value on one line: tables in a list stay within their section."""
    if isinstance(value, BaseModel):
        table = tomlkit.inline_table()
        table.update(value.model_dump(exclude_none=True))
        return table
    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return table
    if isinstance(value, tuple):
        array = tomlkit.array()
        array.extend(_item(item) for item in value)
        return array
    return tomlkit.item(value)
