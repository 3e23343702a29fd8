"""Whether training questions are among a benchmark's: exactly, but for spelling, or but for the numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from mathrl.evaluation.benchmark_sets import normalised
from mathrl.evaluation.result import Evaluation
from mathrl.evaluation.statistics import wilson_interval
from mathrl.types import Problem

EXACT, NORMALISED, TEMPLATE = "exact", "normalised", "template"
_MIN_TEMPLATE_WORDS = 8  # shorter questions ("What is # + #?") share their words by chance
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Contamination:
    """Benchmark problems that were trained on, by the closest kind of overlap."""

    num_problems: int
    num_training_questions: int
    found: dict[str, str]  # problem id -> kind

    def count(self, kind: str) -> int:
        """Problems whose closest overlap is of this kind."""
        return sum(k == kind for k in self.found.values())

    @property
    def warning(self) -> str:
        """One sentence; empty where no question itself was trained on."""
        same = self.count(EXACT) + self.count(NORMALISED)
        if not same:
            return ""
        return (
            f"{same} of {self.num_problems} questions were trained on "
            f"({self.count(EXACT)} word for word): read the accuracy on the rest"
        )

    def facts(self, evaluation: Evaluation) -> dict[str, Any]:
        """For the result: counts, the first ids, and greedy accuracy where nothing overlaps."""
        clean = [r.greedy.correct for r in evaluation.records if r.problem.id not in self.found]
        return {
            "training_questions": self.num_training_questions,
            EXACT: self.count(EXACT),
            NORMALISED: self.count(NORMALISED),
            TEMPLATE: self.count(TEMPLATE),
            "problems": dict(list(self.found.items())[:_LISTED]),
            "warning": self.warning,
            "accuracy_without": {
                "n": len(clean),
                "accuracy": sum(clean) / len(clean) if clean else None,
                "ci95": list(wilson_interval(sum(clean), len(clean))),
            },
        }


def find_contamination(problems: Sequence[Problem], training_questions: Iterable[str]) -> Contamination:
    """Compare each problem's question with all training questions.

    ``exact``: the same text. ``normalised``: the same words and numbers, whatever case, spacing and
    punctuation. ``template``: the same words with other numbers, for questions of 8 words or more.
    """
    exact, words, templates = set(), set(), set()
    for question in training_questions:
        exact.add(question.strip())
        words.add(normalised(question))
        templates.add(_template(question))

    def kind(question: str) -> str:
        if question.strip() in exact:
            return EXACT
        if normalised(question) in words:
            return NORMALISED
        template = _template(question)
        return TEMPLATE if template in templates and len(template.split()) >= _MIN_TEMPLATE_WORDS else ""

    found = {}
    for problem in problems:
        # ranked pairs have a question as it was asked, with its options
        kinds = (kind(question) for question in (problem.question_with_options, problem.question))
        if first := next(filter(None, kinds), None):
            found[problem.id] = first
    return Contamination(len(problems), len(exact), found)


def _template(question: str) -> str:
    numberless = re.sub(r"\d[\d,]*(?:\.\d+)?", " 0 ", question)
    return normalised(numberless)
