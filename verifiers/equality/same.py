"""Equality of whole answers: which kind meets which, and how."""

from __future__ import annotations

from collections.abc import Sequence

from verifiers import policy
from verifiers.equality.exact import free_symbols
from verifiers.equality.intervals import sets_equal
from verifiers.equality.numeric import has_unevaluated
from verifiers.equality.ratios import same_ratios
from verifiers.equality.realsets import is_set_like, real_set, unknowns
from verifiers.equality.relations import labelled, labels_agree, relations_equal
from verifiers.equality.scalars import scalars_equal
from verifiers.equality.values import values_equal
from verifiers.grammar.nodes import (
    Builder,
    Cases,
    Group,
    Matrix,
    Node,
    Op,
    Ratio,
    Rel,
    SetOp,
    Sym,
    substitute,
)

_SET = "\\{\\}"
_ROOTS = frozenset({"x_", "z_", "r_", "t_"})
EMPTY = Sym("emptyset")
MAX_MATCHES = 10_000
"""Comparisons for one unordered list; more are refused."""


def _is_finite_set(node: Node) -> bool:
    return isinstance(node, Group) and node.brackets == _SET


def same(reference: Node, given: Node) -> bool:
    """Whether a given answer is the reference; both must have gone through `simplify`."""
    if reference == given:
        return True
    if EMPTY in (reference, given) and _is_finite_set(given if reference == EMPTY else reference):
        return False
    if isinstance(given, Group) and not isinstance(reference, Group | SetOp):
        given = _said_once(given)
    if is_set_like(reference) or is_set_like(given):
        return _same_sets(reference, given)
    if isinstance(reference, Rel) or isinstance(given, Rel):
        return _same_relations(reference, given)
    if isinstance(reference, Group) or isinstance(given, Group):
        return _same_groups(reference, given)
    if isinstance(reference, Matrix) or isinstance(given, Matrix):
        return (
            isinstance(reference, Matrix) and isinstance(given, Matrix) and _same_matrices(reference, given)
        )
    if isinstance(reference, Ratio) or isinstance(given, Ratio):
        return same_ratios(reference, given)
    if isinstance(reference, Cases) or isinstance(given, Cases):
        return isinstance(reference, Cases) and isinstance(given, Cases) and _same_cases(reference, given)
    return scalars_equal(reference, given)


def _said_once(given: Group) -> Node:
    """9/2 or 4.5: one value in several forms, where the reference is one value."""
    first = given.items[0] if given.items else given
    if given.brackets not in policy.BARE or isinstance(first, Rel | Group):
        return given
    num_different = 1 + sum(not scalars_equal(first, item) for item in given.items[1:])
    return first if policy.one_value(num_different) else given


def _same_sets(reference: Node, given: Node) -> bool:
    """Sets of reals where both sides can be worked out; otherwise the same relation or the same operands."""
    both = isinstance(reference, Rel) and isinstance(given, Rel)
    if both and reference.ops != ("in",) != given.ops and relations_equal(reference, given):  # type: ignore[union-attr, arg-type]
        return True
    our_unknowns, their_unknowns = unknowns(reference), unknowns(given)
    if our_unknowns and their_unknowns and not our_unknowns & their_unknowns:
        return False  # 0 < x < 1 says nothing of y
    ours, theirs = real_set(_without_membership(reference)), real_set(_without_membership(given))
    if ours is not None and theirs is not None:
        return sets_equal(ours, theirs)
    if isinstance(reference, SetOp) and isinstance(given, SetOp) and reference.name == given.name:
        if reference.name == "difference":
            return len(reference.args) == len(given.args) and all(map(same, reference.args, given.args))
        return _same_unordered(reference.args, given.args)
    if isinstance(reference, Group) and isinstance(given, Group):
        if reference.brackets in policy.BARE and given.brackets in policy.BARE:
            return _same_unordered(reference.items, given.items)
        alike = reference.brackets == given.brackets and len(reference.items) == len(given.items)
        return alike and all(map(same, reference.items, given.items))
    if isinstance(reference, Builder) and isinstance(given, Builder):
        return values_equal(reference.element, given.element) and _same_unordered(
            reference.conditions, given.conditions
        )
    return False


def _without_membership(node: Node) -> Node:
    """x = {1, 2} and x in [1, 2] name the same set as their right sides do."""
    pair = labelled(node)
    return node if pair is None else pair[1]


def _same_relations(reference: Node, given: Node) -> bool:
    ours, theirs = labelled(reference), labelled(given)
    if isinstance(given, Rel) and not isinstance(reference, Rel) and set(given.ops) == {"="}:
        unevaluated = has_unevaluated(given.sides[0]) or "ldots" in free_symbols(given.sides[0])
        sides = given.sides[1:] if unevaluated else given.sides
        if (theirs is None or sides is not given.sides) and all(same(reference, side) for side in sides):
            return True
    if isinstance(reference, Rel) and isinstance(given, Rel):
        if ours and theirs:
            theirs = _same_argument(ours[0], theirs)
            if labels_agree(ours[0], theirs[0]):
                return same(ours[1], theirs[1])
            if isinstance(ours[0], Group) or isinstance(theirs[0], Group):
                return False
        return relations_equal(reference, given)
    if ours is not None and not isinstance(given, Rel):
        if isinstance(given, Group) and given.brackets in policy.BARE and isinstance(ours[0], Group):
            return _same_labelled(_pairs(ours), [labelled(item) for item in given.items])
        return same(ours[1], given)
    if theirs is not None and not isinstance(reference, Rel):
        if (
            isinstance(reference, Group)
            and reference.brackets in policy.BARE
            and isinstance(theirs[0], Group)
        ):
            return _same_labelled([labelled(item) for item in reference.items], _pairs(theirs))
        return same(reference, theirs[1])
    return False


def _same_argument(reference: Node, given: tuple[Node, Node]) -> tuple[Node, Node]:
    """f(t) = t^2 as f(x) = x^2 where the reference names f(x)."""
    name, value = given
    if not isinstance(reference, Op) or not isinstance(name, Op) or reference.name != name.name:
        return given
    old, new = name.args[-1], reference.args[-1]
    if (
        name.name in ("mul", "call")
        and name.args[:-1] == reference.args[:-1]
        and isinstance(old, Sym)
        and isinstance(new, Sym)
        and (old.name + new.name).islower()
        and old != new
    ):
        return Op(name.name, (*name.args[:-1], new)), substitute(value, old.name, new)
    return given


def _pairs(labelled_tuple: tuple[Node, Node]) -> list[tuple[Node, Node] | None]:
    """(x, y) = (1, 2) as x = 1, y = 2."""
    names, values = labelled_tuple
    if isinstance(names, Group) and isinstance(values, Group) and len(names.items) == len(values.items):
        return list(zip(names.items, values.items, strict=True))
    return [None]


def _same_labelled(
    reference: Sequence[tuple[Node, Node] | None], given: Sequence[tuple[Node, Node] | None]
) -> bool:
    if len(reference) != len(given) or None in reference or None in given:
        return False
    rest = list(given)
    for pair in reference:
        for index, other in enumerate(rest):
            if pair and other and labels_agree(pair[0], other[0]) and same(pair[1], other[1]):
                del rest[index]
                break
        else:
            return False
    return True


def _strip_labels(items: Sequence[Node]) -> tuple[list[Node], bool]:
    """The values of a list, and whether its labels give the values their order (x = 1, y = 2)."""
    pairs = [labelled(item) for item in items]
    names = [pair[0] for pair in pairs if pair is not None]
    if not names:
        return list(items), False
    values = [item if pair is None else pair[1] for item, pair in zip(items, pairs, strict=True)]
    if all(labels_agree(names[0], name) for name in names) or len(set(map(_letter, names))) == 1:
        return values, False
    return values, len(names) == len(items)


def _letter(name: Node) -> str:
    """The x of x_1, for the roots of an equation come in any order; other names as they are."""
    return name.name[0] if isinstance(name, Sym) and name.name[:2] in _ROOTS else repr(name)


def _same_groups(reference: Node, given: Node) -> bool:
    if not isinstance(reference, Group) or not isinstance(given, Group):
        group, other = (reference, given) if isinstance(reference, Group) else (given, reference)
        if (
            isinstance(group, Group)
            and isinstance(other, Matrix)
            and group.brackets in (*policy.POINTS, "[]")
        ):
            flat = [cell for row in other.rows for cell in row]
            vector = len(other.rows) == 1 or len(other.rows[0]) == 1
            ours, theirs = (group.items, flat) if isinstance(reference, Group) else (flat, group.items)
            return vector and len(flat) == len(group.items) and all(map(same, ours, theirs))
        if isinstance(group, Group) and group.brackets == _SET and len(group.items) == 1:
            return same(group.items[0], given) if group is reference else same(reference, group.items[0])
        return False
    for point, other, first in ((reference, given, True), (given, reference, False)):
        # {(1, 2)}: the one solution.
        if point.brackets == _SET and len(point.items) == 1 and other.brackets == "()":
            return same(point.items[0], other) if first else same(other, point.items[0])
    ours, ordered_ours = _strip_labels(reference.items)
    theirs, ordered_theirs = _strip_labels(given.items)
    if ordered_ours and ordered_theirs:
        return _same_labelled(
            [labelled(item) for item in reference.items], [labelled(item) for item in given.items]
        )
    if reference.brackets == given.brackets == _SET:
        return all(any(_same_member(a, b) for b in theirs) for a in ours) and all(
            any(_same_member(a, b) for a in ours) for b in theirs
        )
    is_labelled = ordered_ours or ordered_theirs
    ordered = policy.order_counts(reference.brackets, given.brackets, is_labelled, len(ours))
    if ordered is None:
        return False
    if not ordered:
        return _same_unordered(ours, theirs)
    if any(_same_name_throughout(group) for group in (reference, given)):
        return False
    return len(ours) == len(theirs) and all(map(same, ours, theirs))


def _same_member(reference: Node, given: Node) -> bool:
    """Members of a set: {2} is not 2 there."""
    return _is_finite_set(reference) == _is_finite_set(given) and same(reference, given)


def _repeated(items: Sequence[Node]) -> list[Node]:
    return [item for number, item in enumerate(items) if item in items[:number]]


def _same_name_throughout(group: Group) -> bool:
    """x = 1, x = 2: values of one unknown, which a point cannot mean."""
    names = [pair[0] for pair in map(labelled, group.items) if pair is not None]
    return len(names) > 1 and all(labels_agree(names[0], name) for name in names)


def _same_unordered(reference: Sequence[Node], given: Sequence[Node]) -> bool:
    """A one-to-one match of two lists, in any order; a given item that is repeated counts once."""
    given = [
        item
        for number, item in enumerate(given)
        if item not in given[:number] or item in _repeated(reference)
    ]
    if len(reference) != len(given) or len(reference) * len(given) > MAX_MATCHES:
        return False
    rest = list(given)
    for item in reference:
        for index, other in enumerate(rest):
            if same(item, other):
                del rest[index]
                break
        else:
            return False
    return True


def _same_matrices(reference: Matrix, given: Matrix) -> bool:
    return len(reference.rows) == len(given.rows) and all(
        len(ours) == len(theirs) and all(map(same, ours, theirs))
        for ours, theirs in zip(reference.rows, given.rows, strict=True)
    )


def _same_cases(reference: Cases, given: Cases) -> bool:
    """The same values under the same conditions, in any order: "otherwise" is all the rest."""
    theirs = list(given.rows)
    for row in reference.rows:
        match = next((r for r in theirs if len(r) == len(row) and all(map(same, row, r))), None)
        if match is None:
            return False
        theirs.remove(match)
    return not theirs
