"""Letters that an answer may call otherwise: constants of its own, and the integers of a general solution."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from verifiers import policy
from verifiers.equality.exact import children, free_symbols
from verifiers.equality.families import is_angular
from verifiers.equality.names import is_name
from verifiers.grammar.nodes import Group, Node, Rel, Sym, with_parts
from verifiers.grammar.quantifiers import CONSTANT, INTEGER, NATURAL, Declared

MAX_RENAMED = 4
_DOMAINS = {"set Z": INTEGER, "set N": NATURAL, "set R": CONSTANT, "set C": CONSTANT}

Kinds = Mapping[str, str]


def without_domains(node: Node, declared: Declared) -> tuple[Node, Kinds]:
    r"""`k\pi, k \in \mathbb{Z}` as `k\pi`, and what is said of k, there and in words; alone it stays."""
    kinds = dict(declared)
    if not isinstance(node, Group) or node.brackets not in ("", "and"):
        return node, kinds
    kept = tuple(item for item in node.items if _domain(item) is None)
    used = frozenset().union(*(free_symbols(item) for item in kept))
    domains = [found for item in node.items if (found := _domain(item)) is not None]
    if not kept or not domains or not {name for name, _ in domains} <= used:
        return node, kinds
    return (kept[0] if len(kept) == 1 else Group(node.brackets, kept)), kinds | dict(domains)


def _domain(node: Node) -> tuple[str, str] | None:
    """("k", "integer") of `k \\in \\mathbb{Z}`."""
    if not isinstance(node, Rel) or node.ops != ("in",):
        return None
    letter, domain = node.sides
    if not isinstance(letter, Sym) or not isinstance(domain, Sym) or domain.name not in _DOMAINS:
        return None
    return letter.name, _DOMAINS[domain.name]


def kinds_agree(ours: Kinds, theirs: Kinds) -> bool:
    """Whether both say the same of every letter that both speak of."""
    return all(theirs.get(name, kind) == kind for name, kind in ours.items())


def renamed(reference: Node, given: Node, ours: Kinds, theirs: Kinds) -> Iterator[Node]:
    """The given answer with its constants and integers named as the reference's are, in every way that may
    be.
    """
    our_names, their_names = free_symbols(reference), free_symbols(given)
    new, old = sorted(our_names - their_names), sorted(their_names - our_names)
    if len(new) != len(old):
        return
    variables = _of_values(reference)
    angular = is_angular(reference) and is_angular(given)
    if new:
        # The integers of x = k pi, y = n pi may have changed their places too.
        shared = sorted(n for n in our_names & their_names if _may_be_integer(n, ours, theirs, angular))
        new, old = new + shared, old + shared
    else:
        # y = C_1 e^x + C_2 e^-x with the constants the other way round.
        new = old = sorted(name for name in our_names if "_" in name and policy.is_free_constant(name))
    if not 0 < len(new) <= MAX_RENAMED:
        return
    for order in itertools.permutations(new):
        pairs = list(zip(old, order, strict=True))
        # Something else must show that a letter is a constant: x in c x, but not Q in Q = 2 c.
        shown = bool(variables - set(order))
        if all(
            _may_be_integers(name, other, ours, theirs, angular)
            or ((shown or other in ours) and _may_be_constants(name, other, ours, theirs))
            for name, other in pairs
        ):
            yield _with_names(given, dict(pairs))


def _of_values(node: Node) -> frozenset[str]:
    """The letters of the values that an answer names."""
    if isinstance(node, Rel) and node.ops == ("=",) and is_name(node.sides[0]):
        return free_symbols(node.sides[1])
    if isinstance(node, Group):
        return frozenset().union(*map(_of_values, node.items))
    return free_symbols(node)


def _may_be_integer(name: str, ours: Kinds, theirs: Kinds, angular: bool) -> bool:
    return policy.is_integer_parameter(name) and (angular or INTEGER in (ours.get(name), theirs.get(name)))


def _may_be_constants(old: str, new: str, ours: Kinds, theirs: Kinds) -> bool:
    """Whether both letters are constants, in words or by `policy`."""
    return all(
        kind == CONSTANT or (kind is None and policy.is_free_constant(name))
        for name, kind in ((old, theirs.get(old)), (new, ours.get(new)))
    )


def _may_be_integers(old: str, new: str, ours: Kinds, theirs: Kinds, angular: bool) -> bool:
    """Whether both letters run over the same integers: one says so, or pi or degrees show it."""
    kinds = [theirs.get(old), ours.get(new)]
    said = [kind for kind in kinds if kind is not None]
    if len(set(said)) > 1 or CONSTANT in said or not (said or angular):
        return False
    return all(
        kind is not None or (policy.is_integer_parameter(name) and INTEGER in (*said, INTEGER * angular))
        for name, kind in zip((old, new), kinds, strict=True)
    )


def _with_names(node: Node, names: Mapping[str, str]) -> Node:
    """The tree with letters renamed all at once."""
    if isinstance(node, Sym):
        return Sym(names.get(node.name, node.name))
    return with_parts(node, lambda part: _with_names(part, names)) if children(node) else node
