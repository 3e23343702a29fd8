"""``mathrl judge``: saved completions judged again, without a model."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mathrl.config import RewardConfig
from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import find_benchmarks
from mathrl.evaluation.completions import FILE, find_completions, read_evaluation, write_evaluation
from mathrl.evaluation.evaluate import judge_groups
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.protocol import EvaluationSettings, make_protocol
from mathrl.evaluation.result import Evaluation, protocol_hash
from mathrl.evaluation.saved_completions import SavedFile, read_saved
from mathrl.report.evaluation_page import PAGE_FILES, Result, print_results, write_results
from mathrl.report.summary import versions
from mathrl.rewards.scorer import RewardScorer, check_answer_type, check_extract_rule, names_module
from mathrl.run.files import refuse_taken
from mathrl.run.progress import make_console
from mathrl.types import Group


def command(
    file: Annotated[
        Path,
        Parameter(
            name="COMPLETIONS",
            help="completions.jsonl, samples_*.jsonl of lm-evaluation-harness, plain lines, or an "
            "evaluation's folder",
        ),
    ],
    /,
    *,
    benchmark: Annotated[
        str, Parameter(help="whose fields and answer type another tool's file has", show_default=False)
    ] = "",
    answer_type: Annotated[str, Parameter(help="verifier; default: the file's", show_default=False)] = "",
    extract: Annotated[str, Parameter(help="extraction rule; default: the file's", show_default=False)] = "",
    jobs: Annotated[int, Parameter(help="verifier processes")] = 2,
    timeout_s: Annotated[float, Parameter(help="wall clock of one verdict")] = 5.0,
    rank_by: Annotated[
        str,
        Parameter(
            help="reward model that ranks the samples: best-of-k, weighted majority", show_default=False
        ),
    ] = "",
    against: Annotated[Path | None, Parameter(help="judged completions to compare with")] = None,
    out: Annotated[
        Path | None,
        Parameter(help="folder; default: the file's name with -judged, and what it holds is replaced"),
    ] = None,
    overwrite: Annotated[bool, Parameter(help="replace what --out holds", show_default=False)] = False,
) -> int:
    """Judge a file, write the results beside it, print them."""
    console = make_console()
    file = find_completions(file)
    _check_out(file, out, overwrite=overwrite)
    saved, extract = read_request(
        file, benchmark, answer_type=answer_type, extract=extract, jobs=jobs, timeout_s=timeout_s
    )
    before = read_evaluation(against) if against else None
    start = time.perf_counter()
    evaluation = judge(saved, extract, answer_type, jobs=jobs, timeout_s=timeout_s)
    seconds = time.perf_counter() - start
    out = out or file.with_name(f"{file.stem}-judged")
    difference = compare_evaluations(before, evaluation) if before else None
    header = {"resume_key": protocol_hash(evaluation.protocol)}
    write_evaluation(evaluation, out / FILE, header)
    result = Result(evaluation, before, difference)
    if rank_by:
        from mathrl.commands.rank_samples import Ranker  # judging alone needs no torch

        result = replace(result, ranking=Ranker(rank_by)(evaluation, out))
    page = write_results(out, evaluation.name, [result], versions(), against)
    print_results(console, [result])
    number = evaluation.n * (1 + evaluation.k)
    console.print(f"{number:,} completions judged in {seconds:.2f} s; page: {page}")
    for change, count in changes(saved, evaluation).most_common():
        console.print(f"  {change}: {count}")
    return 0


def _check_out(file: Path, out: Path | None, *, overwrite: bool) -> None:
    """Refuse a folder whose results the user has not given up, or that cannot be made."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file and no folder: choose another --out")
    if (out / FILE).resolve() == file.resolve():
        raise UserError(f"--out {out} is where the completions lie that are judged: choose another folder")
    for name in (FILE, Path(FILE).with_suffix(".json"), *PAGE_FILES):
        refuse_taken(out / name, "--out", overwrite=overwrite)


def read_request(
    file: Path, benchmark: str, *, answer_type: str, extract: str, jobs: int, timeout_s: float
) -> tuple[SavedFile, str]:
    """The completions of a file and the rule that reads them.

    Raises:
        UserError: what is wrong with the file or with an option, before anything is judged.
    """
    known = find_benchmarks([benchmark])[0] if benchmark else None
    if answer_type:
        check_answer_type(answer_type)
    if extract:
        check_extract_rule(extract)
    if not 1 <= jobs <= 64:
        raise UserError(f"--jobs must lie between 1 and 64, got {jobs}")
    if not timeout_s > 0:
        raise UserError(f"--timeout-s must be > 0, got {timeout_s}")
    saved = read_saved(file, known)
    _refuse_modules(saved, answer_type, extract)
    return saved, extract or saved.protocol.get("extract") or (known.extract if known else "auto")


def _refuse_modules(saved: SavedFile, answer_type: str, extract: str) -> None:
    """A file of completions may not have a module imported: its name would be code from a file of data."""
    named = {} if answer_type else {s.problem.answer_type: "--answer-type" for s in saved.problems}
    if not extract:
        named[str(saved.protocol.get("extract", ""))] = "--extract"
    for name, flag in named.items():
        if names_module(name):
            raise UserError(
                f"the file names the module {name!r}, and data may have no code imported: if you know that "
                f"module, give {flag} {name}"
            )


def judge(
    saved: SavedFile, extract: str, answer_type: str = "", *, jobs: int = 2, timeout_s: float = 5.0
) -> Evaluation:
    """Verdicts of all completions.

    Args:
        extract: extraction rule.
        answer_type: verifier; empty: each problem's own.

    Raises:
        UserError: no verifier reads any of the references.
    """
    problems = [
        replace(s.problem, answer_type=answer_type) if answer_type else s.problem for s in saved.problems
    ]
    groups = [Group(p, (), tuple(s.completions)) for p, s in zip(problems, saved.problems, strict=True)]
    scorer = RewardScorer(RewardConfig(num_workers=jobs, timeout_s=timeout_s), extract)
    start = time.perf_counter()
    try:
        records, skipped = judge_groups(scorer, groups, saved.name)
    finally:
        scorer.close()
    fewest = min(len(r.samples) for r in records)
    settings = EvaluationSettings(0, fewest, prompt={"saved by": saved.origin})
    protocol = make_protocol(problems, settings, extract=extract)
    protocol |= {k: v for k, v in saved.protocol.items() if k not in ("extract", "verifiers", "problems")}
    return Evaluation(
        saved.name,
        records,
        protocol,
        version=saved.header.get("version", 0),
        seed=saved.header.get("seed", 0),
        skipped=skipped + saved.header.get("skipped", 0),
        seconds={"verify": time.perf_counter() - start},
        info=saved.header.get("info", {}),
    )


def changes(saved: SavedFile, evaluation: Evaluation) -> Counter[str]:
    """How many verdicts differ from those in the file, as "wrong -> correct"."""
    counts: Counter[str] = Counter()
    judged = {r.problem.id: (r.greedy, *r.samples) for r in evaluation.records}
    for s in saved.problems:
        for old, new in zip(s.outcomes, judged.get(s.problem.id, ()), strict=False):
            if old is not None and old != new.outcome:
                counts[f"{old} -> {new.outcome}"] += 1
    return counts
