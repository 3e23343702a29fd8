"""Letters before brackets that one answer reads as functions and the other as factors."""

from __future__ import annotations

from verifiers import policy
from verifiers.equality.exact import children, free_symbols
from verifiers.grammar.nodes import Node, Op, Sym, with_parts


def settled(reference: Node, given: Node) -> tuple[Node, Node]:
    """Both trees with f(...) as a product where `policy` says that the letter is a factor of the other
    answer's.
    """
    our_calls, their_calls = _calls(reference), _calls(given)
    if not our_calls and not their_calls:
        return reference, given
    ours, theirs = _bare(reference), _bare(given)
    factors = {name for name in their_calls if name in ours}
    factors |= {
        name
        for name, with_variables in our_calls.items()
        if name in theirs and name not in their_calls and policy.may_be_factor(name, with_variables)
    }
    return (
        (_with_factors(reference, factors), _with_factors(given, factors)) if factors else (reference, given)
    )


def _head(node: Op) -> str:
    """The letter of f(x) and of f^2(x)."""
    head = node.args[0]
    base = head.args[0] if isinstance(head, Op) and head.name == "pow" else head
    return base.name if isinstance(base, Sym) else ""


def _calls(node: object) -> dict[str, bool]:
    """The letters that stand before brackets, and whether there are variables in all brackets of a letter."""
    found: dict[str, bool] = {}
    if isinstance(node, Op) and node.name == "call":
        found[_head(node)] = all(free_symbols(arg) for arg in node.args[1:])
    for part in children(node):
        for name, with_variables in _calls(part).items():
            found[name] = found.get(name, True) and with_variables
    return found


def _bare(node: object) -> frozenset[str]:
    """The letters that stand without brackets."""
    if isinstance(node, Sym):
        return frozenset({node.name})
    parts = children(node)
    if isinstance(node, Op) and node.name == "call":
        parts = parts[1:]
    return frozenset().union(*(_bare(part) for part in parts))


def _with_factors(node: Node, names: set[str]) -> Node:
    if isinstance(node, Op) and node.name == "pow" and _is_call_of(node.args[0], names):
        # The exponent behind a bracket is the bracket's: h(a + b)^2 is h times (a + b)^2.
        call, exponent = node.args
        product = _with_factors(call, names)
        assert isinstance(product, Op)
        return Op("mul", (product.args[0], Op("pow", (product.args[1], exponent))))
    changed = with_parts(node, lambda part: _with_factors(part, names))
    if isinstance(changed, Op) and _is_call_of(changed, names):
        return Op("mul", changed.args)
    return changed


def _is_call_of(node: Node, names: set[str]) -> bool:
    return isinstance(node, Op) and node.name == "call" and len(node.args) == 2 and _head(node) in names
