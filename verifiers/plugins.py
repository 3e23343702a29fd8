"""Code of the user's own, by the name `package.module:object` of a flag or a setting, never of data."""

from __future__ import annotations

import importlib
import os
import sys


def is_module_path(name: str) -> bool:
    """Whether a name says what to import, and is no registered one."""
    return ":" in name


def load(path: str) -> object:
    """The object that `package.module:object` names. The current folder is searched too.

    Raises `ValueError` that says what importing it raised.
    """
    # A console script does not look in the current folder by itself; workers get this process's path.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        raise ValueError(told(error)) from error


def told(error: Exception) -> str:
    """What such code has raised, for a sentence."""
    return f"{type(error).__name__}: {error}"
