"""`\\begin{...}` environments: matrices, cases and aligned lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verifiers.base import ParseError
from verifiers.grammar.nodes import MAX_ITEMS, Cases, Group, Matrix, Node, Op

if TYPE_CHECKING:
    from verifiers.grammar.cursor import Cursor

_MATRICES = frozenset(
    {"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix", "smallmatrix", "array"}
)
_LINES = frozenset({"align", "aligned", "split", "gather", "gathered", "alignat", "eqnarray", "cases"})


def environment(parser: Cursor, name: str) -> Node:
    """The node of an environment whose `\\begin` was just read."""
    if name not in _MATRICES and name not in _LINES:
        raise ParseError(f"cannot read the environment {name!r}")
    parser.enter()
    if name == "array" and parser.token.value == "{":
        while parser.token.kind != "end" and parser.advance().value != "}":
            pass
    if name in _LINES and name != "cases":
        _join_columns(parser, name)
    rows = _rows(parser, name)
    parser.depth -= 1
    if name == "cases":
        if all(len(row) == 1 for row in rows):
            return Group("", tuple(row[0] for row in rows))
        return Cases(tuple(tuple(row) for row in rows))
    if name in _LINES:
        return rows[0][0] if len(rows) == 1 else Group("", tuple(row[0] for row in rows))
    if len({len(row) for row in rows}) != 1:
        raise ParseError("the rows of a matrix have different lengths")
    matrix = Matrix(tuple(tuple(row) for row in rows))
    return Op("det", (matrix,)) if name == "vmatrix" else matrix


def _rows(parser: Cursor, name: str) -> list[list[Node]]:
    rows: list[list[Node]] = [[]]
    cells = 0
    while not parser.accept(f"end:{name}"):
        if parser.accept("\\\\"):
            if rows[-1]:
                rows.append([])
            continue
        if parser.accept("&"):
            if name == "cases":
                _skip_condition_words(parser)
            continue
        if parser.token.kind == "end":
            raise ParseError(f"\\begin{{{name}}} is never ended")
        cells += 1
        if cells > MAX_ITEMS:
            raise ParseError(f"more than {MAX_ITEMS} cells in a table")
        rows[-1].append(parser.statement())
        if name == "cases":
            _skip_condition_words(parser)
        while parser.accept(",") or parser.accept(";"):
            pass
        if name != "cases" and parser.token.value not in ("&", "\\\\", f"end:{name}"):
            raise ParseError(f"cannot read {parser.token.value!r} in a table")
    if not rows[-1]:
        rows.pop()
    if not rows:
        raise ParseError("an empty table")
    return rows


def _skip_condition_words(parser: Cursor) -> None:
    while parser.token.kind in ("text", "word") and parser.token.value.strip(" ,").lower() in (
        "if", "for", "when", "where", "otherwise if",
    ):  # fmt: skip
        parser.advance()


def _join_columns(parser: Cursor, name: str) -> None:
    """The & of aligned lines only sets the relation signs below each other."""
    end = parser.position
    while parser.tokens[end].kind != "end" and parser.tokens[end].value != f"end:{name}":
        end += 1
    inside = [
        token for token in parser.tokens[parser.position : end] if token.value != "&" or token.kind != "op"
    ]
    parser.tokens[parser.position : end] = inside
