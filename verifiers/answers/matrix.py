"""Matrices and vectors."""

from __future__ import annotations

from typing import ClassVar

from verifiers.answers.structured import Structured
from verifiers.equality.relations import labelled
from verifiers.grammar import nodes


class Matrix(Structured):
    """A matrix or vector, cell by cell; sums and products of matrices are worked out first."""

    name: ClassVar[str] = "matrix"
    wanted = "a matrix or vector"

    def accepts(self, node: nodes.Node) -> bool:
        pair = labelled(node)
        value = node if pair is None else pair[1]
        return isinstance(value, nodes.Matrix) or (isinstance(value, nodes.Group) and len(value.items) > 1)
