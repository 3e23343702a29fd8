"""Completions of a run's own training problems, sampled to be paired; an interrupted sampling goes on."""

from __future__ import annotations

from pathlib import Path

from mathrl.commands.model_source import find_model
from mathrl.commands.recipe_fields import Overrides
from mathrl.data.problems import extract_rule, load_problems
from mathrl.data.prompts import make_template
from mathrl.evaluation.evaluate import evaluate_problems
from mathrl.evaluation.protocol import EvaluationSettings
from mathrl.evaluation.result import Evaluation
from mathrl.recipes import load_config
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.engine_choice import make_engine
from mathrl.run.progress import Progress, make_console


def sample_run(
    run: Path,
    file: Path,
    overrides: Overrides,
    *,
    trained: bool,
    num_problems: int,
    samples: int,
    seed: int,
    overwrite: bool = False,
) -> Evaluation:
    """Sample and judge answers to training problems of a run's recipe, as the run itself asks.

    Args:
        file: completions go there as they come, and are taken from there where they are already.
        trained: sample with the run's adapter; else with its reference.
        num_problems: the first so many; 0: all.
        overwrite: replace what ``file`` holds of other problems or settings.

    Raises:
        UserError: the run has no reference (or adapter) yet, its problems are gone, or ``file`` holds others.
    """
    own = load_config(run / "config.toml")
    source = find_model(str(run), "", overrides, reference=not trained)
    problems = load_problems(own.data, "train", own.run.seed).problems
    problems = problems[:num_problems] if num_problems else problems
    policy = source.load()
    template = make_template(own, policy.tokenizer)
    engine, reason = make_engine(source.config, policy, template.encode, len(problems) * max(1, samples))
    settings = EvaluationSettings(
        own.rollout.max_completion_tokens, samples, own.rollout.temperature, prompt=template.describe()
    )
    console = make_console()
    console.print(f"{source.name}: {reason}", soft_wrap=True)
    scorer = RewardScorer(own.reward, extract_rule(own.data))
    scorer.prompt_text = template.text
    total = len(problems) * (1 + samples)
    try:
        engine.load(policy.adapter() if trained else None, version=0)
        with Progress(console) as progress, progress.stage("samples", total) as stage:
            return evaluate_problems(
                engine,
                problems,
                scorer,
                settings,
                seed=seed,
                name="pairs",
                info=source.facts(),
                out=file,
                replace_other=overwrite,
                progress=stage,
            )
    finally:
        scorer.close()
        engine.close()
