"""``mathrl data``: what a data set is before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from mathrl.commands.recipe_fields import Overrides, takes_fields
from mathrl.config import Config, DataConfig
from mathrl.data.datasets import DATASETS
from mathrl.data.problem_set import ProblemSet, SkippedRow, of_part
from mathrl.data.problems import dataset_row, extract_rule, load_problems, parts_of
from mathrl.data.prompts import PromptTemplate, asked_text, make_template, usual_instruction
from mathrl.errors import UserError, did_you_mean
from mathrl.evaluation.benchmark_sets import find_benchmarks, load_benchmark
from mathrl.evaluation.contamination import EXACT, NORMALISED, TEMPLATE, find_contamination
from mathrl.recipes import config_of, load_recipe
from mathrl.rewards.scorer import kind_of_reference
from mathrl.run.progress import make_console
from mathrl.types import Problem

_EPILOGUE = """\
Without NAME: the data sets that are known, or a mix. Fields of a recipe say where its columns are.

Examples:
  mathrl data train.jsonl --data.answer_field label --benchmark gsm8k=test.jsonl
  mathrl data gsm8k --model.path DIR
  mathrl data --data.mix gsm8k=2,mine.jsonl=1
  mathrl data recipe.toml
"""
_REASONS_SHOWN = 6


@takes_fields(
    "data.question_field", "data.answer_field", "data.answer_type", "data.where", "data.mix", "model.path"
)
def _data(
    name: Annotated[
        str,
        Parameter(
            name="NAME", help="a known data set, a hub name, a file or a recipe.toml", show_default=False
        ),
    ] = "",
    /,
    *,
    benchmark: Annotated[
        tuple[str, ...],
        Parameter(help="look for its questions among these: NAME, or NAME=FILE", show_default=False),
    ] = (),
    show: Annotated[
        int, Parameter(help="problems shown as they will be asked, of all parts of a mix alike")
    ] = 10,
    overrides: Overrides,
) -> int:
    """Print what is there, what is skipped, how references are read, and some problems as they are asked."""
    console = make_console()
    if show < 0:
        raise UserError(f"--show must be 0 or more, not {show}")
    if not (name or overrides or benchmark):
        for line in known_sets():
            console.print(line, soft_wrap=True, markup=False)
        return 0
    config = _config(name, overrides)
    train, held_out = (load_problems(config.data, role, config.run.seed) for role in ("train", "held_out"))
    assert train is not None
    assert held_out is not None
    template = _template(config)
    parts = _parts(config, train, held_out)
    lines = chain(
        _of_mix(train, held_out),
        *(describe(part.data, part.train, part.held_out, template, part.share) for part in parts),
        overlaps(benchmark, (*train.problems, *held_out.problems)),
        [""],
    )
    for line in list(lines):  # an unknown benchmark is told before half of it is printed
        console.print(line, soft_wrap=True, markup=False)
    if template is None:
        instruction = config.model.instruction or usual_instruction("chat", extract_rule(config.data))
        console.print("as asked; with --model.path in its chat template, with all of its tokens:")
    each = ceil(show / max(1, len(train.shares)))
    for number, problem in enumerate((p for part in parts for p in part.train.problems[:each]), 1):
        asked = template.text(problem) if template else asked_text(problem, instruction)
        for line in (f"--- {number}. {problem.id}", asked, f"→ {problem.answer}"):
            console.print(line, soft_wrap=True, markup=False)
    return 0


@dataclass(frozen=True)
class _Part:
    """One set of what is looked at: of a mix a part, else all of it."""

    data: DataConfig
    train: ProblemSet
    held_out: ProblemSet
    share: str = ""  # of a mix: weight and share of a step


def _parts(config: Config, train: ProblemSet, held_out: ProblemSet) -> list[_Part]:
    if not config.data.mix:
        return [_Part(config.data, train, held_out)]
    total = sum(train.shares.values())
    parts = [
        _Part(
            data,
            of_part(train, name),
            of_part(held_out, name),
            f", weight {weight:g} ({weight / total:.0%} of a step)",
        )
        for name, data, weight in parts_of(config.data)
    ]
    if config.data.eval_path:  # held out of all parts alike
        trained, asked = (replace(of_part(f, ""), name=config.data.eval_path) for f in (train, held_out))
        alone = config.data.model_copy(update={"path": config.data.eval_path, "mix": ()})
        parts.append(_Part(alone, trained, asked))
    return parts


def _of_mix(train: ProblemSet, held_out: ProblemSet) -> Iterator[str]:
    if train.shares:
        yield f"a mix of {len(train.shares)}: {len(train)} problems to train on, {len(held_out)} held out"


def _config(name: str, overrides: Overrides) -> Config:
    """The recipe of what is looked at: a set, a recipe's own, or what the fields name."""
    given = {field for field, _ in overrides}
    if name and "data.mix" in given and not name.endswith(".toml"):
        raise UserError(f"{name} and --data.mix name two things to look at: leave one out")
    if name.endswith(".toml"):
        return load_recipe(name, overrides)
    if name:
        return config_of({"recipe": "data", "data": origin(name)}, f"data set {name!r}", overrides)
    if not given & {"data.mix", "data.path", "data.source"}:
        raise UserError("name the set to look at: mathrl data FILE, or a mix with --data.mix FILE=2,FILE=1")
    return config_of({"recipe": "data"}, "what is looked at", overrides)


command = App(name="data", help_epilogue=_EPILOGUE, default_command=_data)


def origin(name: str) -> dict[str, Any]:
    """The ``[data]`` of a known set, a hub name or a file.

    Raises:
        UserError: it is none of them; proposes near names.
    """
    path = Path(name)
    if name in DATASETS:
        return {"source": name}
    if path.suffix.lower() in (".jsonl", ".json", ".parquet", ".csv") or path.is_file():
        return {"path": name}
    if name.count("/") == 1 and not path.exists():
        return {"source": name}
    raise UserError(f"{name!r} is neither a file nor a known data set: {did_you_mean(name, DATASETS)}")


def known_sets() -> Iterator[str]:
    """A line for each known data set: name, where it is, how answers are read, whose it is."""
    for row in DATASETS.values():
        where = row.hub + (f" ({row.config})" if row.config else "")
        yield f"{row.name:<15} {where or 'local files':<44} {row.answer_type:<7} {row.licence}"


def describe(
    data: DataConfig, train: ProblemSet, held_out: ProblemSet, template: PromptTemplate | None, share: str
) -> Iterator[str]:
    """The set in lines: counts, skipped rows with reasons, references, lengths."""
    row = dataset_row(data)
    problems = (*train.problems, *held_out.problems)
    yield f"{train.name}: {len(train)} problems to train on, {len(held_out)} held out{share}"
    yield f"  licence       {row.licence or 'unknown'}"
    yield f"  fields        question {' + '.join(row.question)}, answer {row.answer}" + (
        f" after {row.rule!r}" if row.rule else ""
    ) + f", worked solution {row.solution or 'none'}"  # fmt: skip
    skipped = tuple(dict.fromkeys((*train.skipped, *held_out.skipped)))
    yield f"  skipped       {len(skipped)} of {len(problems) + len(skipped)} rows"
    yield from _reasons(skipped)
    if not problems:  # of a part: of a whole set that is refused
        return
    yield from _references(problems, skipped)
    solved = sum(p.solution is not None for p in problems)
    yield f"  solutions     {solved} of {len(problems)} problems have one"
    yield f"  question      {spread([len(p.question.split()) for p in problems])} words"
    if solved:
        words = [len(p.solution.split()) for p in problems if p.solution is not None]
        yield f"  solution      {spread(words)} words"
    if template is not None:
        yield f"  prompt        {spread([len(ids) for ids in template.encode_all(problems)])} tokens"


def overlaps(benchmarks: Sequence[str], problems: Sequence[Problem]) -> Iterator[str]:
    """How many questions of each benchmark are among the training problems.

    Raises:
        UserError: an unknown benchmark, or one that cannot be loaded.
    """
    if not benchmarks:
        yield "  overlap       not looked for: name benchmarks, --benchmark gsm8k=test.jsonl"
    for given in benchmarks:
        name, _, path = given.partition("=")
        found = load_benchmark(find_benchmarks([name])[0], path)
        same = find_contamination(found.problems, (p.question for p in problems))
        yield (
            f"  overlap       {name}: of {len(found.problems)} questions {same.count(EXACT)} word for word, "
            f"{same.count(NORMALISED)} but for spelling, {same.count(TEMPLATE)} but for their numbers"
        )


def _template(config: Config) -> PromptTemplate | None:
    if not config.model.path:
        return None
    from mathrl.data.hub import check_model
    from mathrl.policy.loading import load_tokenizer  # transformers takes seconds

    check_model(config.model.path)
    return make_template(config, load_tokenizer(config.model.path, trusted=config.model.trust_remote_code))


def _reasons(skipped: Sequence[SkippedRow]) -> Iterator[str]:
    counts = Counter(s.reason for s in skipped).most_common()
    for reason, count in counts[:_REASONS_SHOWN]:
        first = next(s for s in skipped if s.reason == reason)
        text = f" ({first.text[:60]!r})" if first.text else ""
        yield f"    {count:>6}      {reason}, such as row {first.row}{text}"
    rest = sum(count for _, count in counts[_REASONS_SHOWN:])
    if rest:
        yield f"    {rest:>6}      for {len(counts) - _REASONS_SHOWN} other reasons"


def _references(problems: Sequence[Problem], skipped: Sequence[SkippedRow]) -> Iterator[str]:
    """How the verifiers read the references: the share that is read, and as what."""
    unread = sum(s.unread for s in skipped)
    total = len(problems) + unread
    yield f"  references    {len(problems) / total:.1%} are read by the verifiers"
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        kinds.setdefault(kind_of_reference(problem), []).append(problem.answer)
    for kind, answers in sorted(kinds.items(), key=lambda item: -len(item[1])):
        yield f"    {len(answers) / total:>6.1%}      {kind}, such as {answers[0][:60]!r}"


def spread(values: Sequence[int]) -> str:
    """The middle, the end of all but a twentieth, and the most."""
    ordered = sorted(values)
    usual, long = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
    return f"{usual} in the middle, 19 of 20 have at most {long}, the longest {ordered[-1]}"
