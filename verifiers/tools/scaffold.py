"""`python -m verifiers new NAME`: the file of a new answer type and its table of examples."""

from __future__ import annotations

import json
import keyword
from pathlib import Path

from verifiers import registry

_MODULE = '''"""The answer type {name!r}: what counts as the same answer, in one sentence."""

from typing import ClassVar

from verifiers import AnswerType, ParseError


class {class_name}(AnswerType):
    """Two answers are equal when their words are the same, whatever the spacing."""

    name: ClassVar[str] = {name!r}

    def parse(self, text: str) -> tuple[str, ...]:
        """Read one answer; the text comes from a model, so bound its size and never evaluate it."""
        if len(text) > 200:
            raise ParseError(f"an answer of {{len(text)}} characters; at most 200 are read")
        words = tuple(text.split())
        if not words or not text.isprintable():
            raise ParseError("there is nothing to read")
        return words

    def equal(self, reference: tuple[str, ...], given: tuple[str, ...]) -> bool:
        """Compare what `parse` returned; must be reflexive and symmetric."""
        return reference == given
'''

_EXAMPLES = (
    {"answer": "first answer", "given": "first  answer", "expected": "correct"},
    {"answer": "first answer", "given": "second answer", "expected": "wrong"},
    {"answer": "first answer", "given": "\u0000", "expected": "unparsed"},
)


def write_answer_type(name: str, folder: Path) -> tuple[Path, Path]:
    """Write `NAME.py` and `NAME_examples.jsonl`; returns their paths.

    Raises `ValueError` for a name that is no Python identifier or is taken, and rather than overwrite a file.
    """
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(f"{name!r} cannot name an answer type; use lower-case letters, digits, underscores")
    if name in registry.names():
        raise ValueError(f"answer type {name!r} is already registered; choose another name")
    module, examples = folder / f"{name}.py", folder / f"{name}_examples.jsonl"
    for path in (module, examples):
        if path.exists():
            raise ValueError(f"{path} exists already; remove it or choose another name")
    class_name = "".join(word.capitalize() for word in name.split("_"))
    folder.mkdir(parents=True, exist_ok=True)
    module.write_text(_MODULE.format(name=name, class_name=class_name), encoding="utf-8")
    examples.write_text("".join(json.dumps(example) + "\n" for example in _EXAMPLES), encoding="utf-8")
    return module, examples
