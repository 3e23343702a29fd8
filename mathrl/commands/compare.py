"""``mathrl compare``: runs drawn together, results of evaluations held against each other, or algorithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from mathrl.commands.algorithm_comparison import ComparisonOptions, compare_algorithms
from mathrl.commands.recipe_fields import Overrides, takes_fields
from mathrl.errors import UserError
from mathrl.evaluation.completions import completion_files, read_evaluation
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.result import Evaluation
from mathrl.report.evaluation_page import PAGE_FILES, Result, print_results, write_results
from mathrl.report.run_record import read_run
from mathrl.report.runs_page import print_comparison, write_comparison
from mathrl.report.summary import versions
from mathrl.run.files import refuse_taken
from mathrl.run.progress import make_console

_DEFAULTS = ComparisonOptions()


@takes_fields()
def _compare(
    *runs: Annotated[
        Path,
        Parameter(
            name="RUN",
            help="run folders, or folders that mathrl eval or mathrl judge wrote; none: compare algorithms",
        ),
    ],
    out: Annotated[
        Path | None,
        Parameter(help="default: comparison.html, or comparison, beside the first, written anew"),
    ] = None,
    options: ComparisonOptions = _DEFAULTS,
    overrides: Overrides,
) -> int:
    """Compare whatever was named."""
    if not runs:
        return compare_algorithms(options, overrides, out)
    if overrides:
        raise UserError(f"--{overrides[0][0]} changes a recipe; runs that were made are compared as they are")
    kinds = {path: _kind(path) for path in runs}
    if len(kinds) < 2:
        raise UserError(f"name two or more to compare; there is only {runs[0]}")
    if len(set(kinds.values())) > 1:
        run_dir = next(p for p, k in kinds.items() if k == "run")
        other = next(p for p, k in kinds.items() if k == "results")
        raise UserError(
            f"{run_dir} is a run and {other} holds results of an evaluation: compare like with like"
        )
    console = make_console()
    paths = list(kinds)
    if kinds[paths[0]] == "run":
        place = out or paths[0].resolve().parent
        page = place / "comparison.html" if place.is_dir() else place
        if out is not None:
            refuse_taken(page, "--out", overwrite=options.overwrite)
        records = [read_run(path) for path in paths]
        print_comparison(console, records)
        write_comparison(records, page)
    else:
        if out is not None:
            for name in PAGE_FILES:
                refuse_taken(out / name, "--out", overwrite=options.overwrite)
        results = compare_results(paths)
        print_results(console, results)
        title = f"{paths[-1].name} against {paths[0].name}"
        place = out or paths[0].resolve().parent / "comparison"
        page = write_results(place, title, results, versions(), paths[0])
    console.print(f"page: {page}", soft_wrap=True)
    return 0


command = App(
    name="compare",
    help_epilogue="Any field of the recipe that algorithms are compared on can be set.",
    default_command=_compare,
)


def _kind(path: Path) -> str:
    if (path / "config.toml").is_file():
        return "run"
    if completion_files(path):
        return "results"
    if not path.is_dir():
        raise UserError(f"there is no folder {path}")
    raise UserError(
        f"{path} is neither a run (config.toml) nor a result of mathrl eval or judge (completions.jsonl)"
    )


def compare_results(paths: Sequence[Path]) -> list[Result]:
    """Every later folder's evaluations against the first's, benchmark by benchmark.

    Raises:
        UserError: the folders share no benchmark, or their protocols differ.
    """
    found = [evaluations_in(path) for path in paths]
    names = _names(paths)
    results = []
    for name, later in zip(names[1:], found[1:], strict=True):
        for benchmark, after in later.items():
            before = found[0].get(benchmark)
            if before is None:
                continue
            difference = compare_evaluations(
                replace(before, name=f"{benchmark} in {names[0]}"),
                replace(after, name=f"{benchmark} in {name}"),
            )
            told = f"{benchmark} ({name})" if len(paths) > 2 else benchmark
            results.append(Result(replace(after, name=told), before, difference))
    if not results:
        raise UserError(
            f"{paths[0]} and {paths[1]} share no benchmark: "
            f"{', '.join(found[0])} there, {', '.join(found[1])} here"
        )
    return results


def evaluations_in(folder: Path) -> dict[str, Evaluation]:
    """Benchmark -> evaluation, of a folder that mathrl eval or mathrl judge wrote."""
    return {evaluation.name: evaluation for evaluation in map(read_evaluation, completion_files(folder))}


def _names(paths: Sequence[Path]) -> list[str]:
    """As much of each path's end as tells it from the others."""
    parts, depth = [path.resolve().parts for path in paths], 1
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise UserError(f"{path} is named twice, if by other words: name different folders")
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]
