"""Letters that an answer may call otherwise: constants of its own, and the integers of a general solution."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from verifiers import policy
from verifiers.equality.exact import children, free_symbols
from verifiers.equality.families import is_angular
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
        # Something else must show that a letter is a constant: x in c x, y in y = C.
        shown = our_names - set(order) or any(name in ours for name in order)
        if shown and all(_may_be(name, other, ours, theirs, angular) for name, other in pairs):
            yield _with_names(given, dict(pairs))


def _may_be_integer(name: str, ours: Kinds, theirs: Kinds, angular: bool) -> bool:
    return policy.is_integer_parameter(name) and (angular or INTEGER in (ours.get(name), theirs.get(name)))


def _may_be(old: str, new: str, ours: Kinds, theirs: Kinds, angular: bool) -> bool:
    """Whether a letter of the given answer may stand for one of the reference's."""
    kind, wanted = theirs.get(old), ours.get(new)
    if kind and wanted:
        return kind == wanted
    constants = all(k == CONSTANT or policy.is_free_constant(n) for n, k in ((old, kind), (new, wanted)))
    if constants and CONSTANT in (kind or CONSTANT, wanted or CONSTANT):
        return True
    integers = all(
        k == INTEGER or (k is None and policy.is_integer_parameter(n))
        for n, k in ((old, kind), (new, wanted))
    )
    return integers and (angular or INTEGER in (kind, wanted))


def _with_names(node: Node, names: Mapping[str, str]) -> Node:
    """The tree with letters renamed all at once."""
    if isinstance(node, Sym):
        return Sym(names.get(node.name, node.name))
    return with_parts(node, lambda part: _with_names(part, names)) if children(node) else node
