"""A model on benchmarks: prompts, length limits, one engine for all, and the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mathrl.commands.earlier_results import EarlierResults
from mathrl.commands.evaluation_options import EvaluationOptions
from mathrl.commands.evaluation_subject import Subject, load_subject
from mathrl.commands.model_source import EndpointSource, ModelSource
from mathrl.commands.rank_samples import Ranker
from mathrl.config import Config
from mathrl.data.few_shot import STOP
from mathrl.data.prompts import PromptTemplate
from mathrl.distributed.agreement import on_rank_0, together
from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import BenchmarkProblems
from mathrl.evaluation.completions import FILE, refuse_other
from mathrl.evaluation.contamination import find_contamination
from mathrl.evaluation.evaluate import Evaluation, evaluate_problems
from mathrl.evaluation.paired import check_comparable, compare_evaluations
from mathrl.evaluation.protocol import EvaluationSettings, make_protocol, resume_key
from mathrl.report.evaluation_page import Result
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.run.lock import opened
from mathrl.run.progress import Progress
from mathrl.types import Problem

_LEAST_TOKENS = 16  # a completion shorter than this cannot hold an answer


@dataclass(frozen=True)
class EvaluationRequest:
    """What ``mathrl eval`` was asked for, read and checked as far as that goes without the model."""

    source: ModelSource | EndpointSource
    found: Sequence[BenchmarkProblems]
    examples: Mapping[str, Sequence[Problem]]  # benchmark -> worked examples of its prompt
    before: Mapping[str, Evaluation]  # benchmark -> earlier results
    trained_on: Sequence[str]  # training questions
    earlier: EarlierResults  # what ``out`` holds
    out: Path
    options: EvaluationOptions


@dataclass(frozen=True)
class Task:
    """A benchmark that is ready to run."""

    found: BenchmarkProblems
    template: PromptTemplate
    settings: EvaluationSettings
    longest_prompt: int
    info: Mapping[str, Any]
    before: Evaluation | None
    file: Path

    @property
    def name(self) -> str:
        return self.found.benchmark.name


def evaluate_benchmarks(request: EvaluationRequest, console: Console) -> list[Result]:
    """All benchmarks with one engine; completions stream to ``out``/<benchmark>/completions.jsonl.

    Raises:
        UserError: model or adapter cannot be loaded, a prompt does not fit the model's context, earlier
            results were made by another protocol, or ``out`` holds an evaluation of something else. All of
            this comes before anything is generated.
    """
    with together("loading the model and starting the engine"):
        ranker = Ranker(request.options.rank_by) if request.options.rank_by else None
        subject = load_subject(request.source)
        tasks = [_task(found, subject, request) for found in request.found]
        limits = {
            "max_prompt_tokens": max(8, *(task.longest_prompt for task in tasks)),
            "max_completion_tokens": max(task.settings.max_completion_tokens for task in tasks),
        }
        config = request.source.config
        config = config.model_copy(update={"rollout": config.rollout.model_copy(update=limits)})
        asked = max(len(task.found.problems) * max(1, task.settings.num_samples) for task in tasks)
        engine, reason = subject.engine(config, {task.name: task.template for task in tasks}, asked)
    console.print(f"{request.source.name}: {reason}")
    for task in tasks:
        wanted = request.options.max_completion_tokens or task.found.benchmark.max_completion_tokens
        limit = task.settings.max_completion_tokens
        if limit < wanted:
            console.print(
                f"{task.name}: completions end at {limit} tokens, for the model's context holds "
                f"no more beside a prompt of {task.longest_prompt}"
            )
    folder = opened(request.out, f"the evaluation in {request.out}")  # rank 0 holds it for all
    with closing(engine), ExitStack() as stack:
        on_rank_0("opening the folder", lambda: stack.enter_context(folder))
        return [
            _result(
                task, _evaluate(task, engine, config, request.options, console), request.trained_on, ranker
            )
            for task in tasks
        ]


def _evaluate(
    task: Task, engine: Engine, config: Config, options: EvaluationOptions, console: Console
) -> Evaluation:
    scorer = RewardScorer(config.reward, task.found.benchmark.extract)
    scorer.prompt_text = task.template.text
    total = len(task.found.problems) * (1 + options.samples)
    with closing(scorer), Progress(console) as progress, progress.stage(task.name, total) as stage:
        return evaluate_problems(
            engine,
            task.found.problems,
            scorer,
            task.settings,
            seed=options.seed,
            name=task.name,
            info=task.info,
            out=task.file,
            replace_other=options.overwrite,
            progress=stage,
        )


def _task(found: BenchmarkProblems, subject: Subject, request: EvaluationRequest) -> Task:
    """Prompt and length limit of a benchmark; all that could still refuse it is asked here."""
    benchmark, options = found.benchmark, request.options
    template = subject.template(benchmark.extract, request.examples[benchmark.name])
    longest, problem = subject.longest(template, found.problems)
    limit = options.max_completion_tokens or benchmark.max_completion_tokens
    if subject.context is not None and not longest and limit >= subject.context:  # prompts are not measured
        whose = "--max-completion-tokens" if options.max_completion_tokens else f"usual for {benchmark.name}"
        raise UserError(
            f"completions of {limit} tokens ({whose}) leave no room for a prompt in the context of "
            f"{subject.context} tokens that the server gives the model: set --max-completion-tokens lower "
            "by more than a prompt is long, or give the model's tokenizer with --tokenizer, so that prompts "
            "are measured here"
        )
    if subject.context is not None and longest:
        room = subject.context - longest
        needed = options.max_completion_tokens or _LEAST_TOKENS
        if room < needed:
            raise UserError(
                f"the prompt of {problem.id} has {longest} tokens and leaves {max(room, 0)} of the model's "
                f"context of {subject.context}: too few for {needed}; lower --max-completion-tokens or "
                "--shots, or leave long problems out of the file given with --data"
            )
        limit = min(limit, room)
    settings = EvaluationSettings(
        limit,
        options.samples,
        options.temperature,
        options.top_p,
        template.describe(),
        STOP if options.shots else "",
    )
    protocol = make_protocol(found.problems, settings, extract=benchmark.extract)
    before = request.before.get(benchmark.name)
    if before is not None:
        check_comparable(before.protocol, protocol, f"{options.against}", "this evaluation")
    file = request.out / benchmark.name / FILE
    if not options.overwrite:
        key = resume_key(protocol, options.seed, 0, subject.info)
        refuse_other(file, key)
        request.earlier.refuse_other(benchmark.name, key, subject.info)
    return Task(found, template, settings, longest, subject.info, before, file)


def _result(task: Task, evaluation: Evaluation, trained_on: Sequence[str], ranker: Ranker | None) -> Result:
    overlap = find_contamination(task.found.problems, trained_on) if trained_on else None
    return Result(
        evaluation,
        before=task.before,
        difference=compare_evaluations(task.before, evaluation) if task.before else None,
        benchmark=task.found.facts(),
        contamination=overlap.facts(evaluation) if overlap else {},
        ranking=ranker(evaluation, task.file.parent) if ranker else None,
    )
