"""Check a recipe before anything is written: Config -> Plan, or one sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mathrl.algorithms import Algorithm, resolve
from mathrl.config import Config
from mathrl.data import ProblemSet, Role, load_problems
from mathrl.errors import UserError
from mathrl.policy.loading import load_tokenizer
from mathrl.prompts import PromptTemplate, make_template
from mathrl.rewards import check_answer_type
from mathrl.run_folder import RunFolder

HELD_OUT: Role = "held_out"
SECOND_SET: Role = "held_out_templates"  # problems told in templates that were never trained on


@dataclass(frozen=True)
class Plan:
    """A checked recipe: what will run, on which problems, into which folder."""

    config: Config
    algorithm: Algorithm
    train: ProblemSet
    held_out: dict[str, ProblemSet]  # by name; "held_out" first
    folder: RunFolder


def prepare(config: Config, *, resume: bool, overwrite: bool) -> Plan:
    """Check everything that can be wrong; nothing is written.

    Raises:
        UserError: what is wrong, where, and what to do.
    """
    algorithm = resolve(config.algorithm, config.rollout, config.update)
    folder = RunFolder.of(config)
    folder.check(config, resume=resume, overwrite=overwrite)
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is 'cuda' and there is no CUDA device here: use auto or cpu")
    if config.data.answer_type:
        check_answer_type(config.data.answer_type)
    train = load_problems(config.data, "train", config.run.seed)
    held_out: dict[str, ProblemSet] = {}
    for role in (HELD_OUT, SECOND_SET):
        problems = load_problems(config.data, role, config.run.seed)
        if problems is not None:
            held_out[role] = problems
    if config.model.path:
        template = make_template(config, load_tokenizer(config.model.path))
        check_prompts(config, template, [train, *held_out.values()])
    return Plan(config, algorithm, train, held_out, folder)


def check_prompts(config: Config, template: PromptTemplate, sets: Sequence[ProblemSet]) -> None:
    """Refuse prompts longer than ``rollout.max_prompt_tokens``."""
    limit = config.rollout.max_prompt_tokens
    for problems in sets:
        for problem in problems.problems:
            length = len(template.encode(problem))
            if length > limit:
                raise UserError(
                    f"{problems.name}, problem {problem.id}: its prompt has {length} tokens, more than "
                    f"rollout.max_prompt_tokens {limit}: raise the limit, or leave long problems out"
                )
