"""The few-shot prompt for base models: worked examples first, then the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mathrl.data.prompts import PromptTemplate
from mathrl.types import Problem

STOP = "\nQuestion:"
"""Where a completion is cut: a base model goes on with a question of its own."""


class FewShotTemplate(PromptTemplate):
    """The plain template after ``examples`` in the same form, solutions and final answers included."""

    def __init__(self, tokenizer: Any, examples: Sequence[Problem], *, extract: str) -> None:
        super().__init__(tokenizer, "plain", extract=extract)
        self.examples = tuple(examples)

    def text(self, problem: Problem) -> str:
        """The prompt as text."""
        plain = super().text
        shown = [
            plain(replace(example, system_prompt="")) + self.completion_text(example)
            for example in self.examples
        ]
        before = [problem.system_prompt] if problem.system_prompt else []
        return "\n\n".join([*before, *shown, plain(replace(problem, system_prompt=""))])
