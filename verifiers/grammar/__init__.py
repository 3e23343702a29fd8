"""A bounded grammar for answers in LaTeX, plain text and Unicode: text -> tokens -> tree.

Nothing of the text is ever evaluated by Python or sympy: the tree is made of our own nodes, their number,
depth and digits are limited while they are made, and what evaluates them checks every result's size first.
`verifiers.sympy_objects.objects` makes sympy objects of these trees by their constructors; a text never gets
there.
"""

from verifiers.grammar.parser import parse

__all__ = ["parse"]
