"""``mathrl pairs``: right against wrong answers to the same problem, to train a reward model on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console

from mathrl.commands.judge import judge, read_request
from mathrl.commands.recipe_fields import Overrides, takes_fields
from mathrl.errors import UserError
from mathrl.evaluation.completions import find_completions
from mathrl.evaluation.result import Evaluation
from mathrl.evaluation.verdict_pairs import Balance, make_pairs
from mathrl.run.files import refuse_taken, write_json, write_text, writing
from mathrl.run.progress import make_console

_EPILOGUE = """\
Examples:
  mathrl pairs runs/quickstart --problems 4000 --samples 16 --out pairs.jsonl
  mathrl pairs evaluations/model/gsm8k/completions.jsonl --out pairs.jsonl
"""


def _hidden(text: str) -> Parameter:
    """Help of an option whose default goes without saying."""
    return Parameter(help=text, show_default=False)


@takes_fields("rollout.engine")
def _pairs(
    source: Annotated[
        Path,
        Parameter(
            name="COMPLETIONS|RUN",
            help="judged or unjudged completions (a file, an evaluation's folder), or a run to sample from",
        ),
    ],
    /,
    *,
    out: Annotated[Path, Parameter(help="FILE.jsonl to write")],
    per_problem: Annotated[int, Parameter(help="pairs of a problem at most")] = 8,
    length_ratio: Annotated[
        float,
        Parameter(
            help="of two lengths, pairs with the longer side right are at most so many times those with it "
            "wrong, and the other way round; 1: as many; inf: as it happens"
        ),
    ] = 2.0,
    problems: Annotated[int, Parameter(help="of a run: training problems that are sampled; 0: all")] = 2000,
    samples: Annotated[int, Parameter(help="of a run: samples a problem beside greedy")] = 8,
    trained: Annotated[bool, _hidden("of a run: sample with its adapter, not its reference")] = False,
    seed: Annotated[int, Parameter(help="of the choice, and of the samples")] = 0,
    benchmark: Annotated[str, _hidden("whose fields and answer type another tool's file has")] = "",
    answer_type: Annotated[str, _hidden("verifier; default: the file's")] = "",
    extract: Annotated[str, _hidden("extraction rule; default: the file's")] = "",
    jobs: Annotated[int, Parameter(help="verifier processes")] = 2,
    timeout_s: Annotated[float, Parameter(help="wall clock of one verdict")] = 5.0,
    overwrite: Annotated[bool, _hidden("replace FILE.jsonl")] = False,
    overrides: Overrides,
) -> int:
    """Judge, pair, write; everything that can be wrong is told before anything is sampled."""
    console = make_console()
    _check(out, per_problem, length_ratio, problems, samples, overwrite)
    if (source / "config.toml").is_file():
        from mathrl.commands.pair_samples import sample_run  # torch takes seconds: input is checked first

        file = out.with_name(f"{out.stem}-completions.jsonl")
        evaluation = sample_run(
            source,
            file,
            overrides,
            trained=trained,
            num_problems=problems,
            samples=samples,
            seed=seed,
            overwrite=overwrite,
        )
    else:
        file = find_completions(source)
        saved, rule = read_request(
            file, benchmark, answer_type=answer_type, extract=extract, jobs=jobs, timeout_s=timeout_s
        )
        evaluation = judge(saved, rule, answer_type, jobs=jobs, timeout_s=timeout_s)
    balance = make_pairs(evaluation.records, per_problem=per_problem, length_ratio=length_ratio, seed=seed)
    if not balance.pairs:
        raise UserError(
            f"{file}: none of {balance.num_problems} problems has both a right and a wrong answer to pair"
            + (" within --length-ratio" if balance.num_candidates else ": sample more of each problem")
        )
    rows = (json.dumps(pair.to_row(), ensure_ascii=False) + "\n" for pair in balance.pairs)
    with writing(out):
        write_text(out, "".join(rows))
        write_json(
            out.with_suffix(".json"), facts(balance, evaluation, file, per_problem, length_ratio, seed)
        )
    _tell(console, balance, out)
    return 0


command = App(name="pairs", help_epilogue=_EPILOGUE, default_command=_pairs)


def _check(
    out: Path, per_problem: int, length_ratio: float, problems: int, samples: int, overwrite: bool
) -> None:
    """Refuse what no set of pairs can have."""
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out} must end in .jsonl: a pair a line is written")
    for file in (out, out.with_suffix(".json")):
        refuse_taken(file, "--out", overwrite=overwrite)
    if per_problem < 1:
        raise UserError(f"--per-problem must be >= 1, got {per_problem}")
    if not length_ratio >= 1:
        raise UserError(f"--length-ratio must be >= 1 (1: as many pairs either way), got {length_ratio}")
    if problems < 0:
        raise UserError(f"--problems must be >= 0 (0: all), got {problems}")
    if samples < 1:
        raise UserError(f"--samples must be >= 1, got {samples}: a pair needs two answers")


def facts(
    balance: Balance, evaluation: Evaluation, file: Path, per_problem: int, length_ratio: float, seed: int
) -> dict[str, Any]:
    """What is written beside the pairs: where they come from, how many they are, which problems they name."""
    longer, shorter, equal = balance.longer
    return {
        "completions": str(file),
        "protocol": dict(evaluation.protocol),
        "info": dict(evaluation.info),
        "per_problem": per_problem,
        "length_ratio": length_ratio if math.isfinite(length_ratio) else "inf",
        "seed": seed,
        "pairs": len(balance.pairs),
        "candidates": balance.num_candidates,
        "problems": {
            "answered": balance.num_problems,
            "answered_both_ways": balance.num_mixed,
            "with_a_pair": balance.num_used,
        },
        "right_side": {"longer": longer, "shorter": shorter, "as_long": equal},
        "ranked_by_length": balance.ranked_by_length,
        "problem_ids": sorted({pair.problem.id for pair in balance.pairs}),
    }


def _tell(console: Console, balance: Balance, out: Path) -> None:
    longer, shorter, equal = (count / len(balance.pairs) for count in balance.longer)
    console.print(
        f"{len(balance.pairs):,} pairs of {balance.num_used:,} problems ({balance.num_mixed:,} of "
        f"{balance.num_problems:,} were answered both right and wrong) → {out}\n"
        f"  the right side is longer in {longer:.0%}, shorter in {shorter:.0%}, as long in {equal:.0%}; "
        f"the lengths alone would rank {balance.ranked_by_length:.0%}",
        soft_wrap=True,
    )
    console.print(
        "  These problems are training problems from now on: mathrl eval knows them by --trained-on "
        f"{out}, and by the reward model that is trained on them.",
        soft_wrap=True,
    )
