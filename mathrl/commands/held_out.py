"""A run's held-out problems: all of them before and after, some of them during training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mathrl.commands.prepare import HELD_OUT
from mathrl.commands.workspace import Workspace
from mathrl.data.prompts import PromptTemplate
from mathrl.distributed.agreement import on_rank_0
from mathrl.evaluation.completions import OtherEvaluationError
from mathrl.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate_problems
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.types import derive_seed


class HeldOut:
    """Evaluates whatever the engine samples from."""

    def __init__(
        self,
        space: Workspace,
        engine: Engine,
        scorer: RewardScorer,
        template: PromptTemplate,
    ) -> None:
        self.run, self.progress, self.tally = space.run, space.progress, space.tally
        self.engine, self.scorer, self.template = engine, scorer, template

    def measure(self, when: str) -> dict[str, Evaluation]:
        """Every problem set, greedy and sampled, kept in the folder; ``when`` is "before" or "after"."""
        cfg, found = self.run.config.evaluate, {}
        for name in self.run.held_out:
            file = f"{when}.jsonl" if name == HELD_OUT else f"{name}_{when}.jsonl"
            out = self.run.folder.evaluations / file
            sizes = (cfg.num_problems, cfg.num_samples)
            try:
                found[name] = self._evaluate(f"{name} {when}", name, *sizes, out)
            except OtherEvaluationError:  # of another last step, or of data that have changed since
                kept = on_rank_0("moving it", partial(self.run.folder.set_evaluation_aside, out))
                self.progress.console.print(
                    f"{out} holds another evaluation, which is kept as {kept}", soft_wrap=True
                )
                found[name] = self._evaluate(f"{name} {when}", name, *sizes, out)
        return found

    def look(self, step: int) -> Evaluation:
        """The first problems of the main set, greedy alone; nothing is kept."""
        return self._evaluate(f"step {step}", HELD_OUT, self.run.config.evaluate.every_num_problems, 0)

    def _evaluate(
        self, title: str, name: str, n: int, num_samples: int, out: Path | None = None
    ) -> Evaluation:
        cfg = self.run.config
        problems = self.run.held_out[name].problems[:n]
        total = len(problems) * (1 + num_samples)
        with self.tally.timed("evaluate"), self.progress.stage(title, total) as stage:
            return evaluate_problems(
                self.engine,
                problems,
                self.scorer,
                EvaluationSettings(
                    cfg.evaluate.max_completion_tokens or cfg.rollout.max_completion_tokens,
                    num_samples,
                    cfg.evaluate.temperature,
                    prompt=self.template.describe(),
                ),
                seed=derive_seed(cfg.run.seed, "evaluate"),
                name=name,
                out=out,
                progress=stage,
            )
