"""Lists of lists: pairs of named values, and items parted by semicolons."""

from __future__ import annotations

from verifiers.grammar.nodes import Node, Rel, Sym


def rows_of(items: list[Node], separators: list[str]) -> list[list[Node]]:
    """Items in rows: parted by semicolons among other signs, or by "and" and "or" between the same names.

    x = 1, y = 2 and x = 2, y = 1 are two pairs; 1, 2 and 3 is one list.
    """
    kinds = set(separators)
    words = kinds & {"and", "or"}
    breaks = {";"} if ";" in kinds else words if "," in kinds else set()
    rows: list[list[Node]] = [[items[0]]]
    for separator, item in zip(separators, items[1:], strict=True):
        if separator in breaks:
            rows.append([])
        rows[-1].append(item)
    if len(kinds) < 2 or (breaks == words and not say_the_same_names(rows)):
        return [items]
    return rows


def say_the_same_names(rows: list[list[Node]]) -> bool:
    names = [
        sorted(
            item.sides[0].name
            for item in row
            if isinstance(item, Rel) and item.ops == ("=",) and isinstance(item.sides[0], Sym)
        )
        for row in rows
    ]
    first = names[0]
    return len(set(first)) == len(first) > 1 and all(
        own == first and len(row) == len(first) for own, row in zip(names, rows, strict=True)
    )
