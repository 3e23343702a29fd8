"""One name for what a package's source does, wherever its files lie."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import re
from pathlib import Path
from typing import Any


@functools.cache  # what this process has imported does not change when the files do
def verifiers_hash() -> str:
    """16 hex digits of the verifiers' source: verdicts of other verifiers are not compared."""
    spec = importlib.util.find_spec("verifiers")
    folders = (spec and spec.submodule_search_locations) or ()
    return source_hash(*(path for folder in folders for path in Path(folder).rglob("*.py")))


def source_hash(*files: Path) -> str:
    """16 hex digits of the statements at the top of the files, in no order.

    A file or a function that moves changes nothing: imports, docstrings, comments and the dotted names of
    modules are left out.
    """
    statements = [
        hashlib.blake2b(_written(statement).encode()).digest()
        for path in files
        for statement in _says_something(ast.parse(path.read_bytes()).body)
    ]
    return hashlib.blake2b(b"".join(sorted(statements)), digest_size=8).hexdigest()


_MODULE_NAME = re.compile(r"\bverifiers(?:\.\w+)+")


def _written(part: Any) -> str:
    """A syntax tree as text. Empty fields are left out: other versions of Python have others of them."""
    if isinstance(part, ast.AST):
        fields = [(name, getattr(part, name, None)) for name in part._fields]
        inner = (f"{name}={_written(value)}" for name, value in fields if value not in (None, []))
        return f"{type(part).__name__}({', '.join(inner)})"
    if isinstance(part, list):
        return f"[{', '.join(map(_written, _says_something(part)))}]"
    return repr(_MODULE_NAME.sub("verifiers", part) if isinstance(part, str) else part)


def _says_something(statements: list[Any]) -> list[Any]:
    """Without imports, which say where things lie, and docstrings, which explain them."""
    return [s for s in statements if not isinstance(s, ast.Import | ast.ImportFrom) and not _is_docstring(s)]


def _is_docstring(statement: Any) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
