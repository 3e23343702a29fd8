"""A fault as a change of a function's syntax tree, and the source of its file with the fault in it."""

from __future__ import annotations

import ast
import copy
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import ROOT


@dataclass(frozen=True)
class Fault:
    """One planted fault."""

    room: str  # of mathrl, or verifiers/… of the verifiers
    function: str  # qualified name; a constant's name where it is none
    old: str
    new: str
    what: str  # in words
    tests: tuple[str, ...]
    why: str = ""  # why no test can notice it

    @property
    def package(self) -> str:
        return "verifiers" if self.room.startswith("verifiers") else "mathrl"

    @property
    def name(self) -> str:
        return f"{self.room}: {self.function}: {self.what}"


def load_faults() -> list[Fault]:
    """The rows of mutation.toml."""
    table = tomllib.loads((Path(__file__).parent / "mutation.toml").read_text(encoding="utf-8"))
    return [
        Fault(
            row["room"],
            row["function"],
            row["old"],
            row["new"],
            row["what"],
            tuple(row.get("tests", table["tests"][row["room"]])),
            row.get("why", ""),
        )
        for row in table["fault"]
    ]


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """(qualified name, node) of every function, class and constant."""

    def walk(nodes: Sequence[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.stmt]]:
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{prefix}{node.name}", node
                yield from walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                yield f"{prefix}{node.targets[0].id}", node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield f"{prefix}{node.target.id}", node

    yield from walk(tree.body, "")


class _Plant(ast.NodeTransformer):
    """Puts ``new`` where ``old`` stands for the first time."""

    def __init__(self, old: ast.AST, new: list[ast.AST]) -> None:
        self.old, self.new, self.planted = ast.dump(old), new, False

    def visit(self, node: ast.AST) -> Any:
        if not self.planted and ast.dump(node) == self.old:
            self.planted = True
            return [copy.deepcopy(n) for n in self.new] if isinstance(node, ast.stmt) else self.new[0]
        return self.generic_visit(node)


def _readings(old: str, new: str) -> Iterator[tuple[ast.AST, list[ast.AST]]]:
    """The two texts as expressions, as keyword arguments, and as statements."""
    with suppress(SyntaxError):
        yield ast.parse(old, mode="eval").body, [ast.parse(new, mode="eval").body]
    with suppress(SyntaxError, IndexError, AttributeError):
        pair = [ast.parse(f"f({text})", mode="eval").body.keywords[0] for text in (old, new)]  # type: ignore[attr-defined]
        yield pair[0], [pair[1]]
    with suppress(SyntaxError):
        (statement,) = ast.parse(old).body
        yield statement, list(ast.parse(new or "pass").body)


def plant(fault: Fault) -> tuple[Path, str]:
    """(file, its source with the fault), the file relative to the root.

    Raises:
        SystemExit: the function, or the expression in it, is not there any more.
    """
    found = []
    for path in sorted((ROOT / fault.package).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if fault.function.rsplit(".", 1)[-1] in text:
            tree = ast.parse(text)
            found += [(path, tree, node) for name, node in definitions(tree) if name == fault.function]
    if len(found) > 1:  # the same name in several rooms
        found = [one for one in found if fault.room.rsplit("/", 1)[-1] in one[0].parts] or found
    if len(found) != 1:
        places = ", ".join(str(path.relative_to(ROOT)) for path, *_ in found) or "nowhere"
        raise SystemExit(f"{fault.name}: {fault.function} is to be in one place and is in {places}")
    path, tree, node = found[0]
    for old, new in _readings(fault.old, fault.new):
        plant = _Plant(old, new)
        plant.visit(node)
        if plant.planted:
            return path.relative_to(ROOT), ast.unparse(ast.fix_missing_locations(tree))
    raise SystemExit(f"{fault.name}: there is no {fault.old!r} in it")
