"""``mathrl eval``: a model on benchmarks, from their names to eval.json and eval.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from mathrl.commands.earlier_results import EarlierResults
from mathrl.commands.evaluation_options import EvaluationOptions, check_fields
from mathrl.commands.launch import ALONE, LaunchOptions, launch
from mathrl.commands.model_source import EndpointSource, ModelSource, find_endpoint, find_model
from mathrl.commands.recipe_fields import Overrides, takes_fields
from mathrl.data.fields import UnusableRow, questions_in
from mathrl.data.problems import load_demonstrations, load_problems
from mathrl.data.source import read_file
from mathrl.distributed.agreement import on_rank_0
from mathrl.distributed.environment import place
from mathrl.errors import Stopped, UserError
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
from mathrl.report.evaluation_page import Result, print_results, write_results
from mathrl.report.summary import versions
from mathrl.rewards.reward_model_folder import training_questions
from mathrl.rollout.vllm_fork import begin_early
from mathrl.run.progress import make_console
from mathrl.run.stop import StopSignals
from mathrl.types import Problem

_EPILOGUE = """\
A model is asked as a recipe asks: its fields of model, and of the engine and the verifiers' limits, may stand
among the options.

Examples:
  mathrl eval RUN --reference --data test.jsonl
  mathrl eval MODEL --adapter DIR --benchmark gsm8k,svamp,math500 --samples 8
  mathrl eval --endpoint http://localhost:8000 --model NAME --benchmark gsm8k
"""
_DEFAULTS = EvaluationOptions()
_QUESTION_FIELDS = (
    ("Body", "Question"),
    ("question",),
    ("problem",),
    ("prompt",),
    ("messages",),
    ("input",),
)


@takes_fields("model.prompt", "model.dtype", "rollout.engine")
def _evaluate(
    model: Annotated[
        str, Parameter(name="MODEL", help="run folder, model folder or hub name", show_default=False)
    ] = "",
    /,
    *,
    options: EvaluationOptions = _DEFAULTS,
    on: LaunchOptions = ALONE,
    overrides: Overrides,
) -> int:
    """Evaluate; everything that can be wrong is told before anything is generated."""
    if options.list:
        console = make_console()
        for row in table_of(known_benchmarks()):
            line = "  ".join([f"{row[0]:<15}", f"{row[1]:<36}", f"{row[2]:<8}", row[3]])
            console.print(line, soft_wrap=True)
        return 0
    if options.endpoint and (on.wanted or place().world > 1):
        raise UserError("--endpoint asks a server: how many GPUs it has is its own affair; leave --gpus out")
    if on.wanted:
        fields = [f"--{field}={text}" for field, text in overrides]
        return launch(["eval", *([model] if model else []), *options.words(), *fields], on)
    if place().world == 1:
        return _evaluate_and_tell(model, options, overrides, make_console())

    from mathrl.distributed.session import ranks  # torch

    console = make_console()
    with ranks() as session:
        status = _evaluate_and_tell(model, options, overrides, console)
        if status:
            session.end_with(status)
    return status


def _evaluate_and_tell(model: str, options: EvaluationOptions, overrides: Overrides, console: Console) -> int:
    try:
        evaluated = evaluate_model(model, options, overrides, console)
    except Stopped as stopped:
        return stopped.exit_status
    page = on_rank_0("writing the results", evaluated.write)
    print_results(console, evaluated.results)
    console.print(f"completions, numbers and page: {page}")
    return 0


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation came to."""

    title: str
    out: Path
    results: list[Result]
    kept: list[Result]  # of other benchmarks, which were in ``out`` before
    against: Path | None

    def write(self) -> Path:
        """Write eval.json and eval.html; returns the page's path."""
        return write_results(self.out, self.title, [*self.kept, *self.results], versions(), self.against)


def evaluate_model(
    model: str, options: EvaluationOptions, overrides: Overrides, console: Console
) -> Evaluated:
    """Sample and judge; completions are in the folder afterwards, the page of the results is not.

    Raises:
        UserError: what is wrong with the request, before anything is generated.
        Stopped: by Ctrl-C or SIGTERM; it has been said how to go on.
    """
    check_fields(name for name, _ in overrides)
    if not model and not options.endpoint:
        raise UserError("name what to evaluate: a run, a model's folder or a hub name")
    benchmarks = _benchmarks(options)
    files = _files("--data", options.data, benchmarks, named=bool(options.benchmark))
    shots_files = _files("--shots-data", options.shots_data, benchmarks)
    if shots_files and not options.shots:
        raise UserError("--shots-data gives examples and --shots says how many; --shots is missing")
    source = _source(model, options, overrides)
    if isinstance(source, ModelSource):
        begin_early(source.config)
    before = (
        {b.name: read_evaluation(options.against / b.name) for b in benchmarks} if options.against else {}
    )
    found = [load_benchmark(b, files.get(b.name, ""), max_problems=options.max_problems) for b in benchmarks]
    examples = {f.benchmark.name: _examples(f, shots_files, options) for f in found}
    trained_on = _training_questions(options, source, console)
    out = options.out or _default_out(source)
    earlier = EarlierResults.read(out, overwrite=options.overwrite)
    names = [b.name for b in benchmarks]
    earlier.refuse_loss(names, options.against, options.rank_by, overlap=bool(trained_on))
    kept = earlier.kept(names)

    from mathrl.commands.evaluation_run import (  # torch takes seconds: input is checked first
        EvaluationRequest,
        evaluate_benchmarks,
    )

    request = EvaluationRequest(source, found, examples, before, trained_on, earlier, out, options)
    try:
        with StopSignals(console):
            results = evaluate_benchmarks(request, console)
            return Evaluated(source.name, out, results, kept, options.against)
    except KeyboardInterrupt as interrupt:
        stopped = Stopped.of(interrupt)
        console.print(
            f"Stopped by {stopped.signum.name}; what was finished is in {out}, and the same evaluation "
            "goes on from there.",
            soft_wrap=True,
        )
        raise stopped from None


command = App(name="eval", help_epilogue=_EPILOGUE, default_command=_evaluate)


def _source(model: str, options: EvaluationOptions, overrides: Overrides) -> ModelSource | EndpointSource:
    if not options.endpoint:
        return find_model(model, options.adapter, overrides, reference=options.reference)
    if model and options.model:
        raise UserError(f"two names of a model: {model} and --model {options.model}")
    named = model or options.model
    return find_endpoint(options.endpoint, named, options.tokenizer, options.concurrency, overrides)


def _default_out(source: ModelSource | EndpointSource) -> Path:
    if source.run is None:
        return Path("evaluations") / source.name
    return source.run / ("benchmarks" if source.adapter else "benchmarks-reference")


def _benchmarks(options: EvaluationOptions) -> list[Benchmark]:
    names = [name.strip() for name in options.benchmark.split(",") if name.strip()]
    if not names and options.data and not any("=" in file for file in options.data):
        own = [Path(file).stem for file in options.data]
        twice = next((name for name in own if own.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"two files of --data are named {twice!r}, as their results would be: rename one")
        return [Benchmark(name=name) for name in own]  # question and answer, type by the reference
    if not names:
        raise UserError("name a benchmark: --benchmark gsm8k (see mathrl eval --list), or a file with --data")
    return find_benchmarks(names)


def _files(
    option: str, given: Sequence[str], benchmarks: Sequence[Benchmark], *, named: bool = True
) -> dict[str, str]:
    """Benchmark -> local file, from values such as ``FILE`` (of the only benchmark) or ``NAME=FILE``.

    Not ``named``, the benchmarks are the files themselves.
    """
    files: dict[str, str] = {}
    names = [b.name for b in benchmarks]
    for item in given:
        name, sign, path = item.partition("=")
        if not sign or Path(item).is_file():  # a file may have "=" in its name
            name, path = names[0] if named or len(names) == 1 else Path(item).stem, item
            if named and len(names) > 1:
                raise UserError(f"{option} {item}: say which benchmark it is, as {option} {names[0]}={item}")
        if name not in names:
            raise UserError(
                f"{option} {item}: {name!r} is none of the benchmarks asked for ({', '.join(names)})"
            )
        if name in files:
            raise UserError(f"{option} gives {name!r} two files: {files[name]} and {path}")
        files[name] = path
    return files


def _examples(
    found: BenchmarkProblems, files: dict[str, str], options: EvaluationOptions
) -> Sequence[Problem]:
    if not options.shots:
        return ()
    benchmark = found.benchmark
    return shown_examples(
        benchmark, files.get(benchmark.name, ""), options.shots, options.seed, apart_from=found.problems
    )


def _training_questions(
    options: EvaluationOptions, source: ModelSource | EndpointSource, console: Console
) -> list[str]:
    """Questions trained on: of the files, and of all stages of the run that is evaluated."""
    questions = [question for path in options.trained_on for question in questions_of(path)]
    questions += training_questions(options.rank_by) if options.rank_by else []
    if source.run is not None:
        config = load_config(source.run / "config.toml")
        if config.reward.learned:
            questions += training_questions(config.reward.learned)
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
