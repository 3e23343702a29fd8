"""``mathrl eval``: a model on benchmarks, from their names to eval.json and eval.html."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from mathrl.benchmark_sets import (
    Benchmark,
    BenchmarkProblems,
    find_benchmarks,
    known_benchmarks,
    load_benchmark,
    shown_examples,
    table_of,
)
from mathrl.comparison import Difference, check_comparable, compare_evaluations
from mathrl.contamination import find_contamination
from mathrl.data import load_problems
from mathrl.data_source import read_file
from mathrl.errors import UserError
from mathrl.evaluate import Evaluation, evaluate, make_protocol, read_evaluation
from mathrl.evaluation_page import Result, print_results, write_results
from mathrl.few_shot import STOP, FewShotTemplate
from mathrl.model_source import ModelSource, find_model
from mathrl.policy import Policy
from mathrl.progress import Progress
from mathrl.prompts import PromptTemplate
from mathrl.recipes import load_config
from mathrl.rewards import RewardScorer
from mathrl.rollout import make_engine
from mathrl.summary import versions
from mathrl.types import Problem

_LEAST_TOKENS = 16  # a completion shorter than this cannot hold an answer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``mathrl eval``; fields of a recipe (``--model.dtype`` …) may stand among them."""
    parser.set_defaults(takes_overrides=True)
    parser.add_argument("model", nargs="?", help="run folder, model folder or hub name")
    parser.add_argument("--benchmark", default="", metavar="A,B,FILE.toml", help="names, see --list")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and end")
    parser.add_argument("--adapter", default="", metavar="DIR", help="peft adapter on the model")
    parser.add_argument(
        "--data", action="append", default=[], metavar="[NAME=]FILE", help="local file instead of the hub"
    )
    parser.add_argument("--samples", type=int, default=0, metavar="K", help="samples a problem beside greedy")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples")
    parser.add_argument("--top-p", type=float, default=1.0, help="of the samples")
    parser.add_argument(
        "--max-completion-tokens", type=int, default=0, metavar="N", help="0: the benchmark's"
    )
    parser.add_argument("--max-problems", type=int, default=0, metavar="N", help="a fixed sample; 0: all")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="worked examples in the prompt")
    parser.add_argument("--shots-data", default="", metavar="FILE", help="where the examples come from")
    parser.add_argument("--seed", type=int, default=0, help="of the samples and the examples")
    parser.add_argument(
        "--trained-on", action="append", default=[], metavar="FILE", help="training questions, for overlap"
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="earlier results to compare with")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: evaluations/MODEL, or RUN/benchmarks"
    )


@dataclass(frozen=True)
class Task:
    """A benchmark that is ready to run."""

    found: BenchmarkProblems
    template: PromptTemplate
    max_completion_tokens: int
    before: Evaluation | None

    @property
    def name(self) -> str:
        return self.found.benchmark.name


def run(args: argparse.Namespace) -> int:
    """Evaluate; everything that can be wrong is told before anything is generated."""
    console = Console(highlight=False)
    if args.list:
        for row in table_of(known_benchmarks()):
            console.print(
                "  ".join([f"{row[0]:<15}", f"{row[1]:<36}", f"{row[2]:<8}", row[3]]), soft_wrap=True
            )
        return 0
    check_numbers(args)
    benchmarks = _benchmarks(args)
    files = _files(args.data, benchmarks)
    source = find_model(args.model, args.adapter, args.overrides)
    found = [load_benchmark(b, files.get(b.name, ""), max_problems=args.max_problems) for b in benchmarks]
    examples = {
        b.name: shown_examples(b, args.shots_data, args.shots, args.seed) if args.shots else []
        for b in benchmarks
    }
    trained_on = _training_questions(args.trained_on, source)
    before = {b.name: read_evaluation(args.against / b.name) for b in benchmarks} if args.against else {}
    policy = source.load()
    tasks = [
        _task(f, policy, source, examples[f.benchmark.name], before.get(f.benchmark.name), args)
        for f in found
    ]
    out = args.out or (source.run / "benchmarks" if source.run else Path("evaluations") / source.name)
    results = _evaluate(tasks, policy, source, args, out, trained_on, console)
    page = write_results(out, source.name, results, versions())
    print_results(console, results)
    console.print(f"completions, numbers and page: {page}")
    return 0


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse numbers that no evaluation can have."""
    if not args.model:
        raise UserError(
            "name what to evaluate: mathrl eval MODEL --benchmark gsm8k (a run, a folder or a hub name)"
        )
    for option in ("samples", "max_completion_tokens", "max_problems", "shots"):
        if getattr(args, option) < 0:
            raise UserError(f"--{option.replace('_', '-')} must be >= 0, got {getattr(args, option)}")
    if not args.temperature > 0:
        raise UserError(
            f"--temperature must be > 0, got {args.temperature}: the greedy completion needs none"
        )
    if not 0 < args.top_p <= 1:
        raise UserError(f"--top-p must lie in (0, 1], got {args.top_p}")


def _benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    names = [name.strip() for name in args.benchmark.split(",") if name.strip()]
    if not names and len(args.data) == 1 and "=" not in args.data[0]:
        return [Benchmark(name=Path(args.data[0]).stem)]  # fields question and answer, type by the reference
    if not names:
        raise UserError("name a benchmark: --benchmark gsm8k (see mathrl eval --list), or a file with --data")
    return find_benchmarks(names)


def _files(given: Sequence[str], benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """Benchmark -> local file."""
    files = {}
    names = [b.name for b in benchmarks]
    for item in given:
        name, sign, path = item.partition("=")
        if not sign:
            name, path = names[0], item
            if len(names) > 1:
                raise UserError(f"--data {item}: say which benchmark it is, as --data {names[0]}={item}")
        if name not in names:
            raise UserError(
                f"--data {item}: {name!r} is none of the benchmarks asked for ({', '.join(names)})"
            )
        files[name] = path
    return files


def _training_questions(files: Sequence[str], source: ModelSource) -> list[str]:
    """Questions trained on: of the files, and of the run that is evaluated."""
    questions = []
    for path in files:
        for number, row in enumerate(read_file(path), 1):
            texts = [str(row[k]) for k in ("question", "problem", "input", "Body", "Question") if row.get(k)]
            if not texts:
                raise UserError(f"{path}, row {number}: no question (fields: {', '.join(row)})")
            questions.append(" ".join(texts))
    if source.run is not None:
        config = load_config(source.run / "config.toml")
        questions += [p.question for p in load_problems(config.data, "train", config.run.seed).problems]
    return questions


def _task(
    found: BenchmarkProblems,
    policy: Policy,
    source: ModelSource,
    examples: list[Problem],
    before: Evaluation | None,
    args: argparse.Namespace,
) -> Task:
    """Prompt and length limit of a benchmark; prompts are held against the model's context here."""
    benchmark, config, tokenizer = found.benchmark, source.config, policy.tokenizer
    if examples:
        template: PromptTemplate = FewShotTemplate(tokenizer, examples, extract=benchmark.extract)
    else:
        kind = config.model.prompt
        if kind == "auto":
            kind = "chat" if getattr(tokenizer, "chat_template", None) else "plain"
        template = PromptTemplate(
            tokenizer, kind, extract=benchmark.extract, system_prompt=config.model.system_prompt
        )
    longest, problem = max(((len(template.encode(p)), p) for p in found.problems), key=lambda pair: pair[0])
    room = policy.model.get_base_model().config.max_position_embeddings - longest
    limit = args.max_completion_tokens or min(benchmark.max_completion_tokens, room)
    if limit > room or limit < _LEAST_TOKENS <= (args.max_completion_tokens or _LEAST_TOKENS):
        raise UserError(
            f"the prompt of {problem.id} has {longest} tokens and leaves {max(room, 0)} of the model's "
            f"context of {longest + room}: too few for {max(limit, _LEAST_TOKENS)}; lower "
            "--max-completion-tokens or --shots"
        )
    if before is not None:
        protocol = _protocol(found, template, limit, args)
        check_comparable(before.protocol, protocol, f"{args.against}", "this evaluation")
    return Task(found, template, limit, before)


def _protocol(
    found: BenchmarkProblems, template: PromptTemplate, limit: int, args: argparse.Namespace
) -> dict[str, Any]:
    return make_protocol(
        found.problems,
        extract=found.benchmark.extract,
        max_completion_tokens=limit,
        num_samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        prompt=template.describe(),
        stop=STOP if args.shots else "",
    )


def _evaluate(
    tasks: Sequence[Task],
    policy: Policy,
    source: ModelSource,
    args: argparse.Namespace,
    out: Path,
    trained_on: Sequence[str],
    console: Console,
) -> list[Result]:
    """All benchmarks with one engine."""
    templates = {task.name: task.template for task in tasks}
    longest = max(len(task.template.encode(p)) for task in tasks for p in task.found.problems)
    limits = {
        "max_prompt_tokens": max(longest, 8),
        "max_completion_tokens": max(task.max_completion_tokens for task in tasks),
    }
    config = source.config.model_copy(update={"rollout": source.config.rollout.model_copy(update=limits)})
    engine, reason = make_engine(config, policy, lambda p: templates[p.id.partition("/")[0]].encode(p))
    console.print(f"{source.name}: {reason}")
    results = []
    try:
        engine.load(policy.adapter() if source.adapter else None, version=0)
        for task in tasks:
            scorer = RewardScorer(config.reward, task.found.benchmark.extract)
            with Progress(console) as progress:
                total = len(task.found.problems) * (1 + args.samples)
                with progress.stage(task.name, total) as stage:
                    evaluation = evaluate(
                        engine,
                        task.found.problems,
                        scorer,
                        max_completion_tokens=task.max_completion_tokens,
                        num_samples=args.samples,
                        temperature=args.temperature,
                        top_p=args.top_p,
                        seed=args.seed,
                        name=task.name,
                        prompt=task.template.describe(),
                        stop=STOP if args.shots else "",
                        info={
                            "model": source.model,
                            "adapter": str(source.adapter or ""),
                            "dtype": _dtype(policy),
                        },
                        out=out / task.name / "completions.jsonl",
                        progress=stage,
                    )
            scorer.close()
            results.append(_result(task, evaluation, trained_on))
    finally:
        engine.close()
    return results


def _result(task: Task, evaluation: Evaluation, trained_on: Sequence[str]) -> Result:
    overlap = find_contamination(task.found.problems, trained_on) if trained_on else None
    difference: Difference | None = None
    if task.before is not None:
        difference = compare_evaluations(task.before, evaluation)
    return Result(
        evaluation,
        before=task.before,
        difference=difference,
        benchmark=task.found.facts(),
        contamination=overlap.facts(evaluation) if overlap else {},
    )


def _dtype(policy: Policy) -> str:
    return str(policy.head_weight().dtype).removeprefix("torch.")
