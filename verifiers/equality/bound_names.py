"""Bound variables of sums, products, limits and integrals by one name: what they are called says nothing."""

from __future__ import annotations

from fractions import Fraction

from verifiers.equality.exact import children, rational
from verifiers.equality.numeric import has_unevaluated
from verifiers.grammar.nodes import Big, Node, Num, Op, Rel, Sym, substitute, with_parts

BOUND = "bound "
"""Names of bound variables start with this; no answer can write it."""


def with_bound_names(node: Node) -> Node:
    """The tree with bound variables named by how deep they lie, and the indices of sums counted from 0."""
    return _renamed(node, 0) if has_unevaluated(node) else node


def _renamed(node: Node, depth: int) -> Node:
    if not isinstance(node, Big):
        return with_parts(node, lambda part: _renamed(part, depth))
    name = Sym(f"{BOUND}{depth}")
    bounds, body = list(node.parts[:-1]), _renamed(node.parts[-1], depth + 1)
    lower = next((part for part in bounds if isinstance(part, Op) and part.name == "_"), None)
    start = lower.args[0] if lower else None
    if node.name in ("sum", "prod", "lim") and isinstance(start, Rel) and isinstance(start.sides[0], Sym):
        bounds, body = _indexed(node.name, bounds, body, start, name)
    elif node.name == "int" and len(bounds) == 2 and (variable := _differential(body)):
        body = substitute(body, variable, name)
    return Big(node.name, (*bounds, body))


def _indexed(kind: str, bounds: list[Node], body: Node, start: Rel, name: Sym) -> tuple[list[Node], Node]:
    """A sum over n from a number on as one from 0 on; other indices only renamed."""
    variable = start.sides[0]
    assert isinstance(variable, Sym)
    first = rational(start.sides[1]) if len(start.sides) == 2 and start.ops == ("=",) else None
    if kind == "lim" or first is None or first.denominator != 1:
        rename = lambda part: substitute(part, variable.name, name)  # noqa: E731
        return [rename(part) for part in bounds], rename(body)
    shifted = Op("add", (name, Num(first))) if first else name
    moved: list[Node] = []
    for part in bounds:
        assert isinstance(part, Op)
        if part.name == "_":
            moved.append(Op("_", (Rel((name, Num(Fraction(0))), ("=",)),)))
        else:
            last = part.args[0]
            is_number = first and last != Sym("oo")
            moved.append(Op("^", (Op("add", (last, Num(-first))) if is_number else last,)))
    return moved, substitute(body, variable.name, shifted)


def _differential(body: Node) -> str:
    """The x of a body that ends in dx; "" where there is none."""
    factors = children(body) if isinstance(body, Op) and body.name == "mul" else ()
    if len(factors) > 1 and factors[-2] == Sym("d") and isinstance(factors[-1], Sym):
        return factors[-1].name
    return ""
