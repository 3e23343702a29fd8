"""``mathrl eval``: a model on benchmarks, from their names to eval.json and eval.html."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mathrl.commands.model_source import ModelSource, find_model
from mathrl.data.fields import UnusableRow, questions_in
from mathrl.data.problems import load_demonstrations, load_problems
from mathrl.data.source import read_file
from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import (
    Benchmark,
    BenchmarkProblems,
    find_benchmarks,
    known_benchmarks,
    load_benchmark,
    shown_examples,
    table_of,
)
from mathrl.evaluation.completions import read_evaluation
from mathrl.recipes import load_config
from mathrl.report.evaluation_page import print_results, write_results
from mathrl.report.summary import versions
from mathrl.run.progress import make_console
from mathrl.types import Problem

EXIT_INTERRUPTED = 130
_QUESTION_FIELDS = (
    ("Body", "Question"),
    ("question",),
    ("problem",),
    ("prompt",),
    ("messages",),
    ("input",),
)


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
    parser.add_argument(
        "--shots-data", action="append", default=[], metavar="[NAME=]FILE", help="where examples come from"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the samples and the examples")
    parser.add_argument(
        "--trained-on", action="append", default=[], metavar="FILE", help="training questions, for overlap"
    )
    parser.add_argument("--against", type=Path, metavar="DIR", help="earlier results to compare with")
    parser.add_argument(
        "--reference", action="store_true", help="of a run: its reference, as it was before reinforcement"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default: evaluations/MODEL, or RUN/benchmarks"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what --out holds of another model or other settings"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate; everything that can be wrong is told before anything is generated."""
    console = make_console()
    if args.list:
        for row in table_of(known_benchmarks()):
            line = "  ".join([f"{row[0]:<15}", f"{row[1]:<36}", f"{row[2]:<8}", row[3]])
            console.print(line, soft_wrap=True)
        return 0
    check_numbers(args)
    benchmarks = _benchmarks(args)
    files = _files("--data", args.data, benchmarks)
    shots_files = _files("--shots-data", args.shots_data, benchmarks)
    if shots_files and not args.shots:
        raise UserError("--shots-data gives examples and --shots says how many; --shots is missing")
    source = find_model(args.model, args.adapter, args.overrides, reference=args.reference)
    before = {b.name: read_evaluation(args.against / b.name) for b in benchmarks} if args.against else {}
    found = [load_benchmark(b, files.get(b.name, ""), max_problems=args.max_problems) for b in benchmarks]
    examples = {f.benchmark.name: _examples(f, shots_files, args) for f in found}
    trained_on = _training_questions(args, source, console)
    out = args.out or _default_out(source)

    from mathrl.commands.evaluation_run import (  # torch takes seconds: input is checked first
        EvaluationRequest,
        evaluate_benchmarks,
    )

    try:
        results = evaluate_benchmarks(
            EvaluationRequest(source, found, examples, before, trained_on, out, args), console
        )
    except KeyboardInterrupt:
        console.print(f"Interrupted; what was finished is in {out}. The same command goes on from there.")
        return EXIT_INTERRUPTED
    page = write_results(out, source.name, results, versions())
    print_results(console, results)
    console.print(f"completions, numbers and page: {page}")
    return 0


def _default_out(source: ModelSource) -> Path:
    if source.run is None:
        return Path("evaluations") / source.name
    return source.run / ("benchmarks" if source.adapter else "benchmarks-reference")


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


def _files(option: str, given: Sequence[str], benchmarks: Sequence[Benchmark]) -> dict[str, str]:
    """Benchmark -> local file, from values such as ``FILE`` (of the only benchmark) or ``NAME=FILE``."""
    files: dict[str, str] = {}
    names = [b.name for b in benchmarks]
    for item in given:
        name, sign, path = item.partition("=")
        if not sign or Path(item).is_file():  # a file may have "=" in its name
            name, path = names[0], item
            if len(names) > 1:
                raise UserError(f"{option} {item}: say which benchmark it is, as {option} {names[0]}={item}")
        if name not in names:
            raise UserError(
                f"{option} {item}: {name!r} is none of the benchmarks asked for ({', '.join(names)})"
            )
        if name in files:
            raise UserError(f"{option} gives {name!r} two files: {files[name]} and {path}")
        files[name] = path
    return files


def _examples(found: BenchmarkProblems, files: dict[str, str], args: argparse.Namespace) -> Sequence[Problem]:
    if not args.shots:
        return ()
    benchmark = found.benchmark
    return shown_examples(
        benchmark, files.get(benchmark.name, ""), args.shots, args.seed, apart_from=found.problems
    )


def _training_questions(args: argparse.Namespace, source: ModelSource, console: Console) -> list[str]:
    """Questions trained on: of the files, and of both stages of the run that is evaluated."""
    questions = [question for path in args.trained_on for question in questions_of(path)]
    if source.run is not None:
        config = load_config(source.run / "config.toml")
        try:
            found = [load_problems(config.data, "train", config.run.seed)]
            if not config.sft.skip:
                found.append(load_demonstrations(config)[0])
            questions += [p.question for problems in found for p in problems.problems]
        except UserError as error:  # its data may have been elsewhere: no reason not to evaluate
            console.print(
                f"overlap with the run's training questions is not checked: {error}", soft_wrap=True
            )
    return questions


def questions_of(path: str) -> list[str]:
    """The questions of a file of training problems; of a conversation, all that the user asked.

    Raises:
        UserError: it cannot be read, a row has none of the usual fields, or a question is of no known form.
    """
    questions: list[str] = []
    for number, row in enumerate(read_file(path), 1):
        names = next((n for n in _QUESTION_FIELDS if all(row.get(name) for name in n)), None)
        if names is None and any(all(name in row for name in n) for n in _QUESTION_FIELDS):
            continue  # the field is empty here: nothing was asked
        if names is None:
            raise UserError(
                f"{path}, row {number}: no question, which is the field question, problem, prompt, "
                f"messages or input, or Body and Question (fields: {', '.join(row)})"
            )
        try:
            parts = [questions_in(row[name]) for name in names]
        except UnusableRow as error:
            raise UserError(f"{path}, row {number}: {error}") from None
        questions += parts[0] if len(parts) == 1 else [" ".join(text for part in parts for text in part)]
    return questions
