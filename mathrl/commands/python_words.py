"""What a sentence says of options, said of the arguments of a Python call.

Errors and advice name an option as it is typed, ``--resume`` or ``--run.name``; from Python the same is a
keyword or a field of a section. Options have one spelling, so that whatever names them can be told anew here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from mathrl.errors import UserError
from mathrl.recipes import find_field, kinds_of

_OPTION = re.compile(
    r"\bmathrl [a-z][a-z-]*(?: [^\s,;:()]+)*"  # a command line, which stays as it is typed
    r"|(?<![\w/.-])--(?P<name>[a-z][a-z0-9]*(?:[-_.][a-z0-9]+)*)"
    r"(?:(?P<sign>[ =])(?P<word>[^\s,;:()-][^\s,;:()]*[^\s,;:().]|[^\s,;:().-]))?"
)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
_PLACEHOLDER = re.compile(r"(?:\S+=)?[A-Z]+")  # FILE, or NAME=FILE


def in_python(
    sentence: str, arguments: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
) -> str:
    """``--out`` as ``out``, ``--resume`` as ``resume=True``, ``--run.name`` as ``run={"name": …}``.

    An option that the call has no argument for stays as it is.

    Args:
        arguments: keywords of the call, and their defaults.
        options: the same of what goes into its dictionary ``options``.
    """

    def told(match: re.Match[str]) -> str:
        name, sign, word = match["name"], match["sign"] or "", match["word"] or ""
        if not name:
            return match[0]
        key = name.replace("-", "_")
        if "." in name:
            said, takes = _field(name, word)
        elif key in (arguments or {}):
            said, takes = _named(key, (arguments or {})[key], word)
        elif key in (options or {}):
            said, takes = _entry(f"options.{key}", isinstance((options or {})[key], bool), word)
        else:
            return match[0]
        return said if takes else f"{said}{sign}{word}"

    return _OPTION.sub(told, sentence)


def _named(key: str, default: Any, word: str) -> tuple[str, bool]:
    """An argument, and whether the word after it is its value."""
    flag, value = isinstance(default, bool), _value(word)
    return (f"{key}={value or True}" if value or flag else key), bool(value)


def _field(dotted: str, word: str) -> tuple[str, bool]:
    """A field of a recipe; one that there is not by its name alone."""
    try:
        field = find_field(dotted)
    except UserError:
        return dotted, False
    return _entry(dotted, bool in kinds_of(field), word, tuple(map(str, get_args(field.annotation))))


def _entry(dotted: str, flag: bool, word: str, choices: tuple[str, ...] = ()) -> tuple[str, bool]:
    """An entry of a dictionary that is an argument, and whether the word is its value."""
    value = _value(word, choices)
    argument, *names = dotted.split(".")
    said = value or ("True" if flag else "…")
    for name in reversed(names):
        said = f'{{"{name}": {said}}}'
    return f"{argument}={said}", bool(value)


def _value(word: str, choices: tuple[str, ...] = ()) -> str:
    """The word as a value of Python; empty where it is the sentence's next word."""
    if word in ("true", "false"):
        return word.capitalize()
    if _NUMBER.fullmatch(word):
        return word
    return f'"{word}"' if word in choices or _PLACEHOLDER.fullmatch(word) else ""
