"""What a left side only names: x, f(x), AB, (x, y); and the label that an equation so gives its value."""

from __future__ import annotations

from fractions import Fraction

from verifiers.equality.exact import free_symbols
from verifiers.grammar.nodes import Group, Matrix, Node, Num, Op, Ratio, Sym

_FUNCTION_NAMES = frozenset("fghpqFGHPQWEVTSAN")


def is_name(node: Node) -> bool:
    """Whether a left side only names what is asked for: x, x_1, f(x), AB, |AB|, AB/CD, a : b, (x, y)."""
    if isinstance(node, Sym):
        return node.name not in ("pi", "e", "i", "oo") and (
            not node.name.startswith("set ") or node.name == "set P"
        )
    if isinstance(node, Op):
        head = node.args[0]
        if isinstance(head, Op) and head.name == "pow" and head.args[1] == Num(Fraction(-1)):
            head = head.args[0]  # f^{-1}(x)
        if node.name == "call":
            return True
        if node.name == "mul" and isinstance(head, Sym):
            applied = head.name.rstrip("'") in _FUNCTION_NAMES
            return is_name(head) and all(
                is_name(arg)
                or (
                    applied
                    and (isinstance(arg, Num | Group) or (isinstance(arg, Op) and not free_symbols(arg)))
                )
                for arg in node.args[1:]
            )
        if node.name in ("div", "abs"):
            return all(is_name(arg) for arg in node.args)
        return (
            node.name not in ("add", "neg", "pow", "root", "pm", "mp", "mul", "fact", "ln", "log")
            and len(node.args) > 0
            and not isinstance(node.args[0], Matrix)  # a determinant is a value
        )
    parts: tuple[Node, ...] = ()
    if isinstance(node, Ratio):
        parts = node.parts
    elif isinstance(node, Group):
        parts = node.items
    return bool(parts) and all(is_name(part) for part in parts)
