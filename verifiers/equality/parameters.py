"""Integer parameters of general solutions: k*pi is n*pi, and that k is in Z may be left out."""

from __future__ import annotations

from verifiers.equality.exact import children, free_symbols
from verifiers.grammar.nodes import Group, Node, Op, Quantity, Rel, Sym

_PARAMETERS = frozenset({"k", "n", "m"})


def without_domain(node: Node) -> Node:
    r"""`k\pi, k \in \mathbb{Z}` as `k\pi`; a membership that stands alone stays."""
    if not isinstance(node, Group) or node.brackets not in ("", "and"):
        return node
    kept = tuple(item for item in node.items if not _is_domain(item))
    if len(kept) == len(node.items) or not kept:
        return node
    return kept[0] if len(kept) == 1 else Group(node.brackets, kept)


def _is_domain(node: Node) -> bool:
    return (
        isinstance(node, Rel)
        and node.ops == ("in",)
        and isinstance(node.sides[0], Sym)
        and node.sides[0].name in _PARAMETERS
        and isinstance(node.sides[1], Sym)
        and node.sides[1].name == "set Z"
    )


def with_parameter_of(reference: Node, given: Node) -> Node:
    """The given solution with its parameter named as the reference's, where both hold pi; else unchanged."""
    ours, theirs = free_symbols(reference), free_symbols(given)
    old, new = theirs - ours, ours - theirs
    if len(old) != 1 or len(new) != 1 or not (old | new) <= _PARAMETERS:
        return given
    if not _has_pi(reference) or not _has_pi(given):
        return given
    return _renamed(given, next(iter(old)), next(iter(new)))


def _has_pi(node: object) -> bool:
    return node == Sym("pi") or any(_has_pi(part) for part in children(node))


def _renamed(node: Node, old: str, new: str) -> Node:
    if isinstance(node, Sym):
        return Sym(new) if node.name == old else node
    if isinstance(node, Op):
        return Op(node.name, tuple(_renamed(arg, old, new) for arg in node.args))
    if isinstance(node, Rel):
        return Rel(tuple(_renamed(side, old, new) for side in node.sides), node.ops)
    if isinstance(node, Group):
        return Group(node.brackets, tuple(_renamed(item, old, new) for item in node.items))
    if isinstance(node, Quantity):
        return Quantity(_renamed(node.value, old, new), node.unit)
    return node
