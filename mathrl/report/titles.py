"""What problem sets and kinds of problems are called on pages and on the console."""

from __future__ import annotations

_SETS = {"held_out": "held-out problems", "held_out_templates": "unseen templates"}
KINDS = {
    "num_steps": "By steps of reasoning",
    "template": "By template",
    "level": "By level",
    "subject": "By subject",
    "type": "By type",
    "Type": "By type",
}
"""Meta fields of problems that a report of a run parts them by."""


def set_words(name: str) -> str:
    """A problem set within a sentence or a table."""
    return _SETS.get(name, name)


def set_title(name: str) -> str:
    """A problem set as a heading."""
    return _SETS[name].capitalize() if name in _SETS else name


def kind_title(key: str) -> str:
    """A meta field as a heading."""
    return KINDS.get(key, f"By {key.replace('_', ' ')}")
