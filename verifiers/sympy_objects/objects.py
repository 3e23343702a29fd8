"""Answers as exact sympy objects, for answer types that want more than the built-in comparisons.

    >>> from verifiers import read
    >>> read("\\\\frac{x^2-1}{2}")
    x**2/2 - 1/2

The text is read by this package's own bounded grammar, never by sympy; the objects are made of its tree by
sympy's constructors, and sizes are checked before anything is evaluated (`symbolic_scalars` says how).

| answer | sympy object |
|---|---|
| numbers; decimals, percentages, mixed numbers, bases | Integer, Rational: exact, 0.25 is 1/4, 9% is 9/100 |
| formulas; degrees as multiples of pi; a : b as a / b | Expr with Symbols without assumptions |
| equations, inequalities, chains, memberships | Eq, Ne, Lt, Le, Gt, Ge, Contains, And of them; unevaluated |
| statements joined by "or"; by "and" or commas | Or; And |
| (a, b], [a, b], and (a, oo); a set of values | Interval; FiniteSet |
| unions, intersections, differences; R, Q, Z, N; no solution | Union, Intersection, Complement; S.Reals ... |
| {x \\in S : condition}; {2k : k \\in Z} | ConditionSet; ImageSet |
| (a, b), <a, b>, bare lists, both signs of ± | Tuple, in the order written |
| values joined by "or" | FiniteSet |
| matrices, their determinants, powers, transposes | ImmutableMatrix, Determinant, MatPow, Transpose |
| piecewise definitions | Piecewise |
| sums, products, integrals, limits, derivatives | Sum, Product, Integral, Limit, Derivative; unevaluated |

(a, b) with finite ends is a Tuple, except as a part of a union or behind \\in. Odd roots of negative
constants are real, of variables they are sympy's principal ones. f(x) is the product of two Symbols. What
has no counterpart raises `ParseError`: words, units other than % and degrees, times of day (20:34 may be a
ratio), congruences, and answers whose parts contradict each other.

What comes back is safe to hold and to compare with ==; `doit`, `simplify` or `evalf` of what a model wrote
may take any time, and belongs into a `VerifierPool`. Importing this module imports sympy.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import sympy

from verifiers.answers.structured import read_answer
from verifiers.base import ParseError
from verifiers.equality.exact import free_symbols
from verifiers.equality.intervals import order_of
from verifiers.equality.numeric import has_unevaluated
from verifiers.equality.values import infinity_sign
from verifiers.grammar.nodes import (
    Big,
    Builder,
    Cases,
    Group,
    Matrix,
    Node,
    Num,
    Op,
    Rel,
    SetOp,
    Sym,
    substitute,
)
from verifiers.sympy_objects.scalars import BOUND, no_counterpart, scalar

_RELATIONS = {
    "=": sympy.Eq, "!=": sympy.Ne, "<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge,
}  # fmt: skip
_SETS = {
    "emptyset": sympy.S.EmptySet, "set R": sympy.S.Reals, "set Q": sympy.S.Rationals,
    "set Z": sympy.S.Integers, "set N": sympy.S.Naturals, "set C": sympy.S.Complexes,
}  # fmt: skip
_SET_OPERATIONS = {
    "union": sympy.Union, "intersection": sympy.Intersection, "difference": sympy.Complement,
}  # fmt: skip
_OPEN = {"()": (True, True), "[)": (False, True), "(]": (True, False), "[]": (False, False)}
_OTHERWISE = frozenset({'"otherwise"', '"else"'})


def read(text: str) -> Any:
    """The exact sympy object of an answer, as a model or a data set writes it.

    Raises `ParseError` for text that the grammar refuses and for answers without a counterpart in sympy.
    """
    answer = read_answer(text)
    if answer.contradicts:
        raise ParseError("the sides of the answer contradict each other")
    if answer.node is None:
        raise no_counterpart("an answer in words")
    return to_sympy(answer.node)


def to_sympy(node: Node) -> Any:
    """The exact sympy object of a tree. Raises `ParseError`; bounded in time and memory."""
    try:
        result = _object(node)
        if result.has(sympy.nan, sympy.zoo):
            raise ParseError("a value that is not defined")
        return result
    except ParseError:
        raise
    except RecursionError:
        raise ParseError("an answer nested too deeply") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError, NotImplementedError) as error:
        raise ParseError(f"no sympy object can be made of it: {error}") from error


def _scalar(node: Node) -> Any:
    return scalar(node, _big).value


def _object(node: Node) -> Any:
    if isinstance(node, Sym) and node.name in _SETS:
        return _SETS[node.name]
    if isinstance(node, SetOp | Builder):
        return _set(node)
    if isinstance(node, Rel):
        return _statement(node)
    if isinstance(node, Group):
        return _group(node)
    if isinstance(node, Matrix):
        return sympy.ImmutableMatrix([[_scalar(cell) for cell in row] for row in node.rows])
    if isinstance(node, Cases):
        return _piecewise(node)
    if isinstance(node, Op) and isinstance(node.args[0], Matrix):
        return _of_matrix(node, _object(node.args[0]))
    return _scalar(node)


def _group(node: Group) -> Any:
    if node.brackets == "\\{\\}":
        return _finite_set(node.items)
    if len(node.items) == 2 and node.brackets in _OPEN:
        infinite = any(infinity_sign(item) for item in node.items)
        if node.brackets in ("[)", "(]") or infinite or (node.brackets == "[]" and _in_order(node)):
            return _interval(node)
    if node.brackets in ("", "and", "or") and all(isinstance(item, Rel) for item in node.items):
        return _join(sympy.Or if node.brackets == "or" else sympy.And, node.items)
    if node.brackets == "or":
        return _finite_set(node.items)
    return sympy.Tuple(*(_object(item) for item in node.items))


def _finite_set(items: Sequence[Node]) -> Any:
    if any(has_unevaluated(item) for item in items):
        raise no_counterpart("a set with a sum, integral or limit in it")
    values = [_object(item) for item in items]
    if any(isinstance(value, sympy.Set) for value in values):
        raise no_counterpart("a set of sets")
    return sympy.FiniteSet(*values)


def _in_order(node: Group) -> bool:
    """Whether the ends are real constants, the lower one first."""
    low, high = node.items
    try:
        return order_of(low, high) <= 0
    except ParseError:
        return False


def _interval(node: Group) -> Any:
    """Sympy's own constructor only where both ends are numbers it orders at once."""
    low, high = node.items
    left_open, right_open = _OPEN[node.brackets]
    ends = [_scalar(low), _scalar(high)]
    if free_symbols(node):
        if not all(end.is_Symbol or end.is_Number for end in ends):
            raise no_counterpart("an interval whose ends are formulas")
        return sympy.Interval(*ends, left_open, right_open)
    order = order_of(low, high)
    if order > 0:
        raise ParseError("an interval whose lower end stands above its upper end")
    if order == 0:
        return sympy.S.EmptySet if left_open or right_open else sympy.FiniteSet(ends[0])
    left_open = left_open or bool(infinity_sign(low))
    right_open = right_open or bool(infinity_sign(high))
    return sympy.Basic.__new__(sympy.Interval, *ends, sympy.sympify(left_open), sympy.sympify(right_open))


def _set(node: Node) -> Any:
    """What stands behind \\in and between \\cup: here (a, b) is an interval."""
    if isinstance(node, SetOp):
        operands = [operand for arg in node.args for operand in _operands(arg, node.name == "union")]
        return _SET_OPERATIONS[node.name](*operands, evaluate=False)
    if isinstance(node, Builder):
        return _builder(node)
    if isinstance(node, Group) and node.brackets in _OPEN and len(node.items) == 2:
        return _interval(node)
    if isinstance(node, Sym) and node.name not in _SETS:
        raise no_counterpart(f"a set called {node.name}")
    result = _object(node)
    if not isinstance(result, sympy.Set):
        raise no_counterpart("a set operation on what is no set")
    return result


def _operands(node: Node, may_split: bool) -> list[Any]:
    """The operand; sympy sorts operands by their infima, so what is no easy number stands in a set alone."""
    if not isinstance(node, Group) or node.brackets != "\\{\\}":
        return [_set(node)]
    for item in node.items:
        if not free_symbols(item):
            order_of(item, item)  # raises unless it is a real number of reasonable size
    whole = _set(node)
    if len(whole) == 1 or all(value.is_Rational for value in whole):
        return [whole]
    if not may_split:
        raise no_counterpart("an intersection or difference with a set of irrational numbers")
    return [sympy.FiniteSet(value) for value in whole]


def _builder(node: Builder) -> Any:
    element: Node = node.element
    base: Any = sympy.S.UniversalSet
    if isinstance(node.element, Rel) and node.element.ops == ("in",):
        element, base = node.element.sides[0], _set(node.element.sides[1])
    # Basic.__new__, for the constructors of both would look into the base set.
    if isinstance(element, Sym):
        condition = _join(sympy.And, node.conditions)
        return sympy.Basic.__new__(sympy.ConditionSet, _index(element), condition, base)
    if len(node.conditions) == 1:
        (membership,) = node.conditions
        if isinstance(membership, Rel) and membership.ops == ("in",):
            variable, domain = membership.sides
            image = sympy.Lambda(_index(variable), _scalar(element))
            return sympy.Basic.__new__(sympy.ImageSet, image, _set(domain))
    raise no_counterpart("this set-builder notation")


def _statement(rel: Rel) -> Any:
    if len(rel.ops) > 1:
        pairs = zip(rel.sides, rel.ops, rel.sides[1:], strict=False)
        return _join(sympy.And, [Rel((left, right), (op,)) for left, op, right in pairs])
    (op,), (left, right) = rel.ops, rel.sides
    if any(isinstance(side, Op) and side.name == "pmod" for side in rel.sides):
        raise no_counterpart("a congruence")
    if op in ("in", "notin"):
        member = sympy.Contains(_object(left), _set(right), evaluate=False)
        return member if op == "in" else sympy.Not(member, evaluate=False)
    if op not in _RELATIONS:
        raise no_counterpart(f"the relation {op}")
    return _RELATIONS[op](_object(left), _object(right), evaluate=False)


def _join(junction: Any, statements: Sequence[Node]) -> Any:
    """And or Or, which put each statement into a canonical form: so only of statements that are tame."""
    for statement in statements:
        if not isinstance(statement, Rel):
            raise no_counterpart("a condition that is no statement")
        for side in statement.sides:
            if not isinstance(side, Group | SetOp | Matrix | Builder) and not _is_tame(side):
                raise no_counterpart("a list of statements about numbers that sympy cannot order at once")
    return junction(*map(_object, statements))


def _is_tame(side: Node) -> bool:
    return (
        (isinstance(side, Sym) and side.name in _SETS)
        or bool(infinity_sign(side))
        or (scalar(side, _big).bits is not None)
    )


def _of_matrix(node: Op, matrix: Any) -> Any:
    if node.name == "det":
        return sympy.Determinant(matrix)
    if node.name == "pow":
        if node.args[1] == Sym("T"):
            return sympy.Transpose(matrix)
        exponent = _scalar(node.args[1])
        if exponent.is_Integer or exponent.is_Symbol:
            return sympy.MatPow(matrix, exponent)
    raise no_counterpart("this expression of matrices")


def _piecewise(node: Cases) -> Any:
    rows = []
    for row in node.rows:
        if len(row) not in (1, 2):
            raise no_counterpart("a piecewise definition with more than one condition a row")
        condition = row[1] if len(row) == 2 else None
        if condition is None or (isinstance(condition, Sym) and condition.name in _OTHERWISE):
            rows.append((_scalar(row[0]), sympy.true))
        elif isinstance(condition, Rel):
            rows.append((_scalar(row[0]), _statement(condition)))
        else:
            raise no_counterpart("a piecewise definition without conditions")
    return sympy.Piecewise(*rows, evaluate=False)


def _big(node: Big) -> Any:
    """An unevaluated sum, product, integral, limit or derivative."""
    body = node.parts[-1]
    marks = {part.name: part.args[0] for part in node.parts[:-1] if isinstance(part, Op)}
    lower, upper = marks.get("_"), marks.get("^")
    if node.name in ("sum", "prod") and isinstance(lower, Rel) and lower.ops == ("=",) and upper is not None:
        index = _index(lower.sides[0])
        if lower.sides[0] == Sym("i"):
            body = substitute(body, "i", Sym(f"{BOUND}i"))
        bounds = (index, _scalar(lower.sides[1]), _scalar(upper))
        return (sympy.Sum if node.name == "sum" else sympy.Product)(_scalar(body), bounds)
    if node.name == "lim" and isinstance(lower, Rel) and lower.ops == ("to",) and upper is None:
        return sympy.Limit(_scalar(body), _index(lower.sides[0]), _scalar(lower.sides[1]), dir="+-")
    if node.name == "derivative" and isinstance(node.parts[0], Op):
        return sympy.Derivative(_scalar(body), _index(node.parts[0].args[-1]), evaluate=False)
    if node.name == "int" and (lower is None) == (upper is None):
        integrand, variable = _integrand(body)
        if lower is None or upper is None:
            return sympy.Integral(_scalar(integrand), variable)
        return sympy.Integral(_scalar(integrand), (variable, _scalar(lower), _scalar(upper)))
    raise no_counterpart(f"this {node.name}")


def _index(node: Node) -> Any:
    if not isinstance(node, Sym) or node.name in ("pi", "e", "oo") or node.name in _SETS:
        raise no_counterpart("a sum, integral or limit over what is no variable")
    return sympy.Symbol(node.name)


def _integrand(body: Node) -> tuple[Node, Any]:
    """f and x of f dx, the differential last."""
    if isinstance(body, Op) and body.name == "mul" and len(body.args) >= 2 and body.args[-2] == Sym("d"):
        rest = body.args[:-2]
        variable = _index(body.args[-1])
        if Sym("d") not in rest:
            integrand = rest[0] if len(rest) == 1 else Op("mul", rest) if rest else Num(Fraction(1))
            return integrand, variable
    if isinstance(body, Op) and body.name == "div":
        top, variable = _integrand(body.args[0])
        return Op("div", (top, body.args[1])), variable
    raise no_counterpart("an integral without its differential at the end")
