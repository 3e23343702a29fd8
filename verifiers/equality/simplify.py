"""An answer in the form in which it is compared: chains reduced, signs written out, matrices worked out."""

from __future__ import annotations

from verifiers.base import ParseError
from verifiers.equality.bound_names import with_bound_names
from verifiers.equality.exact import free_symbols
from verifiers.equality.matrices import matrix_value, unit_vector_sum, worked_out
from verifiers.equality.names import is_name
from verifiers.equality.numeric import has_unevaluated
from verifiers.equality.relations import is_matrix_name, is_sum_of_names
from verifiers.equality.same import same
from verifiers.equality.scalars import scalars_equal
from verifiers.grammar.nodes import Big, Group, Matrix, Node, Num, Op, Quantity, Rel, SetOp, Sym
from verifiers.grammar.units import add_quantities

_SET = "\\{\\}"
_LISTS = frozenset({"", "and", _SET})


class Inconsistent(ParseError):
    """The sides of a chain a = b = c contradict each other: it states no answer."""


def comparable(node: Node) -> Node:
    """A simplified tree with what is worked out for a comparison only: matrices, and the names of indices."""
    return with_bound_names(worked_out(node))


def simplify(node: Node) -> Node:
    """The tree of an answer as it is kept. Raises `Inconsistent`."""
    if isinstance(node, Rel):
        node = reduce_chain(node)
        if isinstance(node, Rel):
            return _relation(node)
    if isinstance(node, Quantity) and isinstance(node.value, Group | Matrix | SetOp):
        return simplify(_with_unit(node.value, node.unit))
    if isinstance(node, Group):
        return _group(node)
    if isinstance(node, SetOp):
        return SetOp(node.name, tuple(simplify(arg) for arg in node.args))
    if isinstance(node, Op) and _has_choice(node):
        return Group("", both_signs(node))
    vector = unit_vector_sum(node)
    if vector is not None:
        return vector
    if isinstance(node, Op) and node.name == "mul" and _is_point_label(node.args[0]):
        point = node.args[-1]
        if len(node.args) == 2 and isinstance(point, Group) and point.brackets == "()":
            return simplify(point)
    matrix = matrix_value(node)
    return node if matrix is None else matrix


def _relation(rel: Rel) -> Node:
    if rel.ops == ("in",) and _is_finite_set(rel.sides[1]) and is_name(rel.sides[0]):
        return simplify(rel.sides[1])
    if rel.ops == ("=",) and _has_choice(rel.sides[1]):
        return Group("", tuple(Rel((rel.sides[0], side), ("=",)) for side in both_signs(rel.sides[1])))
    if rel.ops == ("=",):
        return Rel((rel.sides[0], _value(rel.sides[1])), ("=",))
    return Rel(tuple(map(_value, rel.sides)), rel.ops)


def _value(node: Node) -> Node:
    """A side of a relation, where it is more than a number or formula."""
    is_structured = isinstance(node, Group | SetOp | Matrix) or (
        isinstance(node, Quantity) and isinstance(node.value, Group | Matrix | SetOp)
    )
    return simplify(node) if is_structured or matrix_value(node) is not None else node


def _group(node: Group) -> Node:
    total = add_quantities(node.items) if node.brackets == "and" else None
    if total is not None:
        return total
    items: list[Node] = []
    for item in node.items:
        simple = simplify(item)
        if isinstance(simple, Group) and simple.brackets == "" and _has_choice_anywhere(item):
            items.extend(simple.items)
        else:
            items.append(simple)
    rows = [item.items for item in items if isinstance(item, Group) and item.brackets == "[]"]
    if node.brackets == "[]" and len(rows) == len(items) > 0 and len({len(row) for row in rows}) == 1:
        return Matrix(tuple(rows))
    return Group(node.brackets, _with_last_unit(items) if node.brackets in _LISTS else tuple(items))


def _with_unit(node: Node, unit: str) -> Node:
    """(2, 3) cm as (2 cm, 3 cm): the unit behind a bracket is every value's."""
    if isinstance(node, Group):
        return Group(node.brackets, tuple(_with_unit(item, unit) for item in node.items))
    if isinstance(node, SetOp):
        return SetOp(node.name, tuple(_with_unit(arg, unit) for arg in node.args))
    if isinstance(node, Matrix):
        return Matrix(tuple(tuple(_with_unit(cell, unit) for cell in row) for row in node.rows))
    if isinstance(node, Rel) and node.ops == ("=",):
        return Rel((node.sides[0], _with_unit(node.sides[1], unit)), node.ops)
    return node if isinstance(node, Quantity) else Quantity(node, unit)


def _with_last_unit(items: list[Node]) -> tuple[Node, ...]:
    """3, 4 and 5 cm are three lengths: a unit that only the last value has is every value's."""
    unit = _unit_of(items[-1]) if len(items) > 1 else ""
    if not unit or unit == "%" or any(_unit_of(item) != "" for item in items[:-1]):
        return tuple(items)
    return tuple(_with_unit(item, unit) for item in items)


def _unit_of(node: Node) -> str | None:
    """The unit of a value, "" for a constant without one, None for anything else."""
    if isinstance(node, Rel) and node.ops == ("=",) and is_name(node.sides[0]):
        return _unit_of(node.sides[1])
    if isinstance(node, Quantity):
        return node.unit
    return "" if isinstance(node, Num | Op) and not free_symbols(node) else None


def _is_point_label(node: Node) -> bool:
    """The P of P(1, 2)."""
    return isinstance(node, Sym) and len(node.name) == 1 and node.name.isupper()


def _is_finite_set(node: Node) -> bool:
    return isinstance(node, Group) and node.brackets == _SET


def _has_choice(node: Node) -> bool:
    if isinstance(node, Op):
        return node.name in ("pm", "mp") or any(_has_choice(arg) for arg in node.args)
    return isinstance(node, Quantity) and _has_choice(node.value)


def _has_choice_anywhere(node: Node) -> bool:
    return any(_has_choice(side) for side in node.sides) if isinstance(node, Rel) else _has_choice(node)


def both_signs(node: Node) -> tuple[Node, ...]:
    """The two values of an expression with ±; all its ± go together, ∓ the other way."""
    return tuple(_signed(node, upper) for upper in (True, False))


def _signed(node: Node, upper: bool) -> Node:
    if isinstance(node, Quantity):
        return Quantity(_signed(node.value, upper), node.unit)
    if not isinstance(node, Op):
        return node
    args = tuple(_signed(arg, upper) for arg in node.args)
    if node.name in ("pm", "mp"):
        return args[0] if (node.name == "pm") == upper else Op("neg", args)
    return Op(node.name, args)


def reduce_chain(rel: Rel) -> Node:
    """A chain of equalities as its label (if any) and one value; all its values must agree.

    `43 = 42` and `x = 3 = 4` raise `Inconsistent`. What stands after an approximation sign must be the value
    rounded to the digits that are written, and the exact value counts. e and i before a number that they
    are not are the names of what is asked for (an eccentricity, a current). A sum, integral or limit that
    is not worked out is not held against its value.
    """
    if rel.ops == ("equiv",) and is_name(rel.sides[0]):
        return Rel(rel.sides, ("=",))
    if any(op not in ("=", "approx") for op in rel.ops):
        return rel
    sides = list(rel.sides)
    if _names_constant(sides):
        sides[0] = Sym(f"{sides[0].name} by name")  # type: ignore[union-attr]
    if len(sides) == 2 and rel.ops == ("=",) and any(_is_open(side) for side in sides):
        if all(isinstance(side, Group) and not free_symbols(side) for side in sides):
            return _checked(None, sides, rel.ops)  # {1, 2} = {2, 1}
        turned = _is_label(sides[1]) and not _is_label(sides[0])
        return Rel((sides[1], sides[0]) if turned else (sides[0], sides[1]), ("=",))
    label, values, ops = _split_label(sides, rel.ops)
    if label is None and free_symbols(values[0]) and rel.ops == ("approx",):
        return Rel(rel.sides, ("=",))
    return _checked(label, values, ops)


def _is_label(side: Node) -> bool:
    return is_name(side) or isinstance(side, Big)


def _is_open(side: Node) -> bool:
    """Whether an equation of two sides may be more than a statement about numbers."""
    return bool(free_symbols(side)) or isinstance(side, Group) or has_unevaluated(side)


def _names_constant(sides: list[Node]) -> bool:
    """e = 1/2 and i = 4, whose left sides are no numbers there."""
    if sides[0] not in (Sym("e"), Sym("i")) or len(sides) < 2 or _mentions(sides[-1], sides[0]):
        return False
    return not isinstance(sides[-1], Sym)  # e = x says what x is


def _mentions(node: Node, symbol: Node) -> bool:
    if node == symbol:
        return True
    return isinstance(node, Op | Group) and any(
        _mentions(part, symbol) for part in (node.args if isinstance(node, Op) else node.items)
    )


def _split_label(sides: list[Node], ops: tuple[str, ...]) -> tuple[Node | None, list[Node], tuple[str, ...]]:
    """The name that a chain begins with, its values, and the signs between these."""
    named = is_name(sides[0]) or (len(sides) > 2 and is_sum_of_names(sides[0]))
    named = named or is_matrix_name(sides[0], sides[-1])
    if not named or len(sides) < 2:
        return None, sides, ops
    values, ops = sides[1:], ops[1:]
    # AB = BC = 5 names the value twice.
    while len(values) > 1 and ops[0] == "=" and (is_name(values[0]) or has_unevaluated(values[0])):
        values, ops = values[1:], ops[1:]
    return sides[0], values, ops


def _checked(label: Node | None, values: list[Node], ops: tuple[str, ...]) -> Node:
    """The value of a chain whose values agree. Raises `Inconsistent`."""
    value = values[0]
    for op, side in zip(ops, values[1:], strict=True):
        if op == "=" and not _agree(value, side):
            raise Inconsistent("the sides of the equation contradict each other")
        if op == "approx" and not scalars_equal(side, value):
            raise Inconsistent("the approximation contradicts the exact value")
        if op == "=" and has_unevaluated(value):
            value = side
    return value if label is None else Rel((label, value), ("=",))


def _agree(left: Node, right: Node) -> bool:
    """Whether two sides say the same; what is not worked out here is believed."""
    if has_unevaluated(left) != has_unevaluated(right):
        return True
    try:
        ours, theirs = (comparable(simplify(side)) for side in (left, right))
    except Inconsistent:
        return False
    return same(ours, theirs) or same(theirs, ours)
