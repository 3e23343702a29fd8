"""Sums, products and multiples of matrices as one matrix."""

from __future__ import annotations

from fractions import Fraction

from verifiers.base import ParseError
from verifiers.equality.exact import children
from verifiers.equality.realsets import substitute
from verifiers.grammar.nodes import Group, Matrix, Node, Num, Op, Sym

MAX_PRODUCT_CELLS = 4000


def matrix_value(node: Node) -> Matrix | None:
    """The matrix that an expression of matrices gives, None for others. Raises `ParseError` if too large."""
    if isinstance(node, Matrix):
        return node
    if not isinstance(node, Op) or node.name not in ("add", "mul", "neg", "div"):
        return None
    parts: list[Node] = [matrix_value(arg) or arg for arg in node.args]
    if not any(isinstance(part, Matrix) for part in parts):
        return None
    if node.name == "neg":
        return _each(parts[0], lambda cell: Op("neg", (cell,)))
    if node.name == "div":
        return _each(parts[0], lambda cell: Op("div", (cell, parts[1])))
    result = parts[0]
    for part in parts[1:]:
        combined = _sum(result, part) if node.name == "add" else _product(result, part)
        if combined is None:
            return None
        result = combined
    return result if isinstance(result, Matrix) else None


def unit_vector_sum(node: Node) -> Group | None:
    """3i + 4j (and k) as the vector <3, 4>: known by a bold or hatted i, or by i beside j; else None."""
    if not isinstance(node, Op) or node.name not in ("add", "neg", "mul"):
        return None
    names = _names(node)
    if "vector i" not in names and not {"i", "j"} <= names:
        return None
    units = ("i", "j", "k") if "k" in names else ("i", "j")
    components: list[Node] = []
    for unit in units:
        value: Node = node
        for other in units:
            number = Num(Fraction(int(other == unit)))
            value = substitute(value, other, number)
            if other == "i":
                value = substitute(value, "vector i", number)
        components.append(value)
    return Group("langlerangle", tuple(components))


def _names(node: object) -> frozenset[str]:
    """All symbols of a tree, i among them."""
    if isinstance(node, Sym):
        return frozenset({node.name})
    return frozenset().union(*(_names(part) for part in children(node)))


def _each(node: Node, function: object) -> Matrix | None:
    if not isinstance(node, Matrix):
        return None
    return Matrix(tuple(tuple(function(cell) for cell in row) for row in node.rows))  # type: ignore[operator]


def _sum(left: Node, right: Node) -> Matrix | None:
    if not isinstance(left, Matrix) or not isinstance(right, Matrix):
        return None
    if (len(left.rows), len(left.rows[0])) != (len(right.rows), len(right.rows[0])):
        return None
    return Matrix(
        tuple(
            tuple(Op("add", pair) for pair in zip(a, b, strict=True))
            for a, b in zip(left.rows, right.rows, strict=True)
        )
    )


def _product(left: Node, right: Node) -> Node | None:
    if not isinstance(left, Matrix):
        if not isinstance(right, Matrix):
            return Op("mul", (left, right))
        return _each(right, lambda cell: Op("mul", (left, cell)))
    if not isinstance(right, Matrix):
        return _each(left, lambda cell: Op("mul", (cell, right)))
    if len(left.rows[0]) != len(right.rows):
        return None
    if len(left.rows) * len(right.rows[0]) * len(right.rows) > MAX_PRODUCT_CELLS:
        raise ParseError("a product of matrices too large to work out")
    columns = list(zip(*right.rows, strict=True))
    return Matrix(
        tuple(
            tuple(
                Op("add", tuple(Op("mul", pair) for pair in zip(row, column, strict=True)))
                for column in columns
            )
            for row in left.rows
        )
    )
