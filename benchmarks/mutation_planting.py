"""A fault as a change of a function's syntax tree, and the source of its file with the fault in it."""

from __future__ import annotations

import ast
import copy
import functools
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import ROOT


class Gone(Exception):
    """What a fault changes is not there any more: the fault is to be put otherwise."""


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
    """Puts ``new`` where ``old`` stands for the first time in what it visits."""

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


@functools.cache
def _trees(package: str) -> list[tuple[Path, ast.Module]]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [(file.relative_to(ROOT), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


@functools.cache
def _named(package: str) -> dict[str, list[tuple[Path, ast.AST]]]:
    """Functions, classes and constants by their qualified names."""
    found: dict[str, list[tuple[Path, ast.AST]]] = {}
    for path, tree in _trees(package):
        for name, node in definitions(tree):
            found.setdefault(name, []).append((path, node))
    return found


def plant(fault: Fault) -> tuple[Path, str]:
    """(file, its source with the fault), the file relative to the root.

    In the function of that name, of the room where several have it; where the function was renamed or parted,
    in the only place of the room that has the expression.

    Raises:
        Gone: what the fault changes is not there any more.
    """
    readings = list(_readings(fault.old, fault.new))
    room = fault.room.rsplit("/", 1)[-1]
    named = _named(fault.package).get(fault.function, [])
    if len(named) > 1:
        named = [one for one in named if _is_in(one[0], room)]
    places = [one for one in named if any(_count(old, one[1]) for old, _ in readings)]
    if len(places) != 1:
        inside = [(path, tree) for path, tree in _trees(fault.package) if _is_in(path, room)]
        counts = [sum(_count(old, tree) for old, _ in readings) for _, tree in inside]
        if sum(counts) != 1:
            raise Gone(f"{fault.name}: {fault.old!r} is {'often' if sum(counts) else 'nowhere'} in the room")
        places = [inside[counts.index(1)]]
    path, whole = places[0]
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))  # one of its own, to be changed
    node = tree if isinstance(whole, ast.Module) else dict(definitions(tree))[fault.function]
    for old, new in readings:
        if _count(old, node):
            _Plant(old, new).visit(node)
            return path, ast.unparse(ast.fix_missing_locations(tree))
    raise AssertionError("a place that has the expression has it")


def _is_in(path: Path, room: str) -> bool:
    return room in path.with_suffix("").parts


def _count(old: ast.AST, tree: ast.AST) -> int:
    wanted = ast.dump(old)
    return sum(type(node) is type(old) and ast.dump(node) == wanted for node in ast.walk(tree))
