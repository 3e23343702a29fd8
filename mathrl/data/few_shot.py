"""The few-shot prompt for base models: worked examples first, then the question; and which examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mathrl.config import Config, DataConfig
from mathrl.data.problem_set import ProblemSet, kept_of, question_key, without
from mathrl.data.problems import extract_rule, load_problems
from mathrl.data.prompts import PromptTemplate, make_template
from mathrl.errors import UserError
from mathrl.types import Problem, derive_seed

STOP = "\nQuestion:"
"""Where a completion is cut: a base model goes on with a question of its own."""


class FewShotTemplate(PromptTemplate):
    """The plain template after ``examples`` in the same form, solutions and final answers included."""

    def __init__(
        self, tokenizer: Any, examples: Sequence[Problem], *, extract: str, instruction: str = ""
    ) -> None:
        super().__init__(tokenizer, "plain", extract=extract, instruction=instruction)
        self.examples = tuple(examples)
        begins = self.instruction.partition("{question}")[0].strip()
        self.stop = f"\n{begins}" if begins else "\n\n"

    def text(self, problem: Problem) -> str:
        """The prompt as text."""
        plain = super().text
        shown = [
            plain(replace(example, system_prompt="")) + self.completion_text(example)
            for example in self.examples
        ]
        before = [problem.system_prompt] if problem.system_prompt else []
        return "\n\n".join([*before, *shown, plain(replace(problem, system_prompt=""))])


def draw_examples(data: DataConfig, train: ProblemSet, seed: int) -> tuple[tuple[Problem, ...], ProblemSet]:
    """``data.shots`` problems with worked solutions, and the training problems without them.

    Raises:
        UserError: there are not so many.
    """
    if not data.shots:
        return (), train
    source = train
    if data.shots_path:
        source = load_problems(
            data.model_copy(update={"path": data.shots_path, "mix": (), "eval_path": "", "where": ""}),
            "train",
            seed,
        )
    solved = [problem for problem in source.problems if problem.solution]
    if len(solved) < data.shots:
        worked = kept_of(source, solved, "without a worked solution")
        raise UserError(
            f"data.shots asks for {data.shots} worked examples and {source.name} has {len(solved)}, "
            f"{worked.account()}: lower it, or give others with --data.shots_path"
        )
    chosen = random.Random(derive_seed(seed, "shots")).sample(solved, data.shots)
    return tuple(chosen), without(train, {question_key(p) for p in chosen}, "shown as an example")


def template_with_examples(config: Config, tokenizer: Any, examples: Sequence[Problem]) -> PromptTemplate:
    """The template of a recipe, with worked examples where there are any.

    Raises:
        UserError: as ``make_template``; or examples are asked for in a chat.
    """
    if not examples:
        return make_template(config, tokenizer)
    if config.model.prompt == "chat":
        raise UserError(
            "data.shots is for plain prompts of base models, and model.prompt is 'chat': leave one out"
        )
    return FewShotTemplate(
        tokenizer, examples, extract=extract_rule(config.data), instruction=config.model.instruction
    )
