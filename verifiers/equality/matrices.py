"""Sums, products and multiples of matrices as one matrix."""

from __future__ import annotations

from fractions import Fraction

from verifiers.base import ParseError
from verifiers.equality.exact import TooLarge, Undefined, children, rational
from verifiers.grammar.nodes import Group, Matrix, Node, Num, Op, Sym, substitute, with_parts

MAX_PRODUCT_CELLS, MAX_PRODUCT_SIZE = 4000, 20_000
MAX_NUMBERS_SIZE, MAX_FORMULAS_SIZE = 8, 4
"""Rows of a matrix of numbers, or of formulas, whose determinant or inverse is worked out."""
MAX_POWER = 20
_TRANSPOSED = (Sym("T"), Sym("top"), Sym("intercal"), Sym('"T"'))


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


def worked_out(node: Node) -> Node:
    """The tree with the determinants, inverses, transposes and powers of matrices that are written out."""
    if not _has_matrix(node):
        return node
    node = with_parts(node, worked_out)
    value: Node | None = None
    if isinstance(node, Op) and isinstance(node.args[0], Matrix):
        if node.name in ("det", "abs") and len(node.args) == 1:
            value = determinant(node.args[0])
        elif node.name == "pow":
            value = _power(node.args[0], node.args[1])
    return value or matrix_value(node) or node


def _has_matrix(node: object) -> bool:
    return isinstance(node, Matrix) or any(_has_matrix(part) for part in children(node))


def determinant(matrix: Matrix) -> Node | None:
    """The determinant of a square matrix, None where it is not square or too large to be worked out."""
    size = len(matrix.rows)
    if size != len(matrix.rows[0]):
        return None
    numbers = _numbers(matrix)
    if numbers is not None and size <= MAX_NUMBERS_SIZE:
        return Num(_eliminated(numbers)[0])
    return _expanded(matrix.rows) if size <= MAX_FORMULAS_SIZE else None


def _numbers(matrix: Matrix) -> list[list[Fraction]] | None:
    try:
        rows = [[rational(cell) for cell in row] for row in matrix.rows]
    except (TooLarge, Undefined):
        return None
    known = [[value for value in row if value is not None] for row in rows]
    return known if all(len(a) == len(b) for a, b in zip(known, rows, strict=True)) else None


def _eliminated(rows: list[list[Fraction]]) -> tuple[Fraction, list[list[Fraction]]]:
    """Gauss and Jordan on [M | ...]: the determinant of the square part, and what stands right of it."""
    rows, size, product = [list(row) for row in rows], len(rows), Fraction(1)
    for column in range(size):
        pivot = next((r for r in range(column, size) if rows[r][column]), None)
        if pivot is None:
            return Fraction(0), []
        if pivot != column:
            rows[pivot], rows[column], product = rows[column], rows[pivot], -product
        head = rows[column][column]
        product *= head
        rows[column] = [value / head for value in rows[column]]
        for r in range(size):
            if r != column and (factor := rows[r][column]):
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[column], strict=True)]
    return product, [row[size:] for row in rows]


def _expanded(rows: tuple[tuple[Node, ...], ...]) -> Node:
    """The determinant along the first row (Laplace)."""
    if len(rows) == 1:
        return rows[0][0]
    terms: list[Node] = []
    for column, cell in enumerate(rows[0]):
        term: Node = Op("mul", (cell, _expanded(_without(rows, 0, column))))
        terms.append(Op("neg", (term,)) if column % 2 else term)
    return Op("add", tuple(terms))


def _without(rows: tuple[tuple[Node, ...], ...], row: int, column: int) -> tuple[tuple[Node, ...], ...]:
    return tuple(line[:column] + line[column + 1 :] for number, line in enumerate(rows) if number != row)


def inverse(matrix: Matrix) -> Matrix | None:
    """The inverse; None where there is none, or where it is too large to be worked out."""
    size = len(matrix.rows)
    if size != len(matrix.rows[0]):
        return None
    numbers = _numbers(matrix)
    if numbers is not None and size <= MAX_NUMBERS_SIZE:
        extended = [row + [Fraction(int(i == j)) for j in range(size)] for i, row in enumerate(numbers)]
        value, right = _eliminated(extended)
        return Matrix(tuple(tuple(map(Num, row)) for row in right)) if value else None
    whole = _expanded(matrix.rows) if 1 < size <= MAX_FORMULAS_SIZE - 1 else None
    if whole is None:
        return None

    def cell(i: int, j: int) -> Node:
        cofactor = _expanded(_without(matrix.rows, j, i))
        return Op("div", (Op("neg", (cofactor,)) if (i + j) % 2 else cofactor, whole))

    return Matrix(tuple(tuple(cell(i, j) for j in range(size)) for i in range(size)))


def _power(base: Matrix, exponent: Node) -> Matrix | None:
    """The transpose, the inverse, or a power."""
    if exponent in _TRANSPOSED:
        return Matrix(tuple(zip(*base.rows, strict=True)))
    number = exponent.value if isinstance(exponent, Num) else None
    if number is None or number.denominator != 1 or len(base.rows) != len(base.rows[0]):
        return None
    times = int(number)
    factor = base if times > 0 else inverse(base)
    limit = MAX_POWER if _numbers(base) else 3
    if factor is None or not 1 <= abs(times) <= limit:
        return None
    result: Node | None = factor
    for _ in range(abs(times) - 1):
        result = _product(result, factor) if result else None
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
    product = Matrix(
        tuple(
            tuple(
                Op("add", tuple(Op("mul", pair) for pair in zip(row, column, strict=True)))
                for column in columns
            )
            for row in left.rows
        )
    )
    if _size(product, {}) > MAX_PRODUCT_SIZE:  # it grows by the rows' number with every factor
        raise ParseError("a product of matrices too large to work out")
    numbers = _numbers(product)
    return Matrix(tuple(tuple(map(Num, row)) for row in numbers)) if numbers else product


def _size(node: object, known: dict[int, int]) -> int:
    """The number of leaves of a tree, each of its parts walked over once however often it stands there."""
    if id(node) not in known:
        known[id(node)] = sum(_size(part, known) for part in children(node)) or 1
    return known[id(node)]
