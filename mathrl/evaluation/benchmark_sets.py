"""Benchmarks as rows: where each lies, which fields it has, how its reference and its answers are read.

``mathrl/evaluation/benchmarks.toml`` holds the known ones; a file of the same form adds others.
"""

from __future__ import annotations

import hashlib
import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mathrl.data.fields import UnusableRow, read_answer
from mathrl.data.problems import DatasetRow, SkippedRow, make_problem
from mathrl.data.source import Row, get_field, read_file, read_hub
from mathrl.errors import UserError, did_you_mean
from mathrl.rewards.scorer import (
    check_answer_type,
    check_extract_rule,
    check_reference,
    read_only_as_words,
)
from mathrl.types import Problem, derive_seed


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalFields(_Row):
    """Field names of the authors' own file, where they differ from the hub's."""

    question: tuple[str, ...]
    answer: str


class Benchmark(_Row):
    """A row of the table."""

    name: str
    hub: str = Field("", description="name on the hub; empty: only from a local file (--data)")
    config: str = Field("", description="configuration on the hub")
    revision: str = Field("", description="commit or branch on the hub; empty: the newest")
    split: str = Field("test", description="split on the hub")
    shots_split: str = Field("", description="split that few-shot examples come from; empty: none")
    question: tuple[str, ...] = Field(("question",), description="fields, joined by a space")
    answer: str = Field("answer", description="field of the reference, or of a list of references")
    lists: Literal["any_of", "all_of"] = Field("any_of", description="what a list means: any one, or all")
    all_needed: str = Field("", description="field that says, where true, that all of a list are needed")
    local: LocalFields | None = None
    solution: str = Field("solution", description="field of the worked solution, where there is one")
    options: str = Field("", description="field of the option texts, where there is one")
    rule: str = Field("", description="extraction rule that takes the reference out of a worked solution")
    answer_pattern: str = Field("", description="regular expression; its first group is the reference")
    answer_type: str = Field("auto", description="verifier")
    extract: str = Field("gsm8k", description="extraction rule for completions")
    max_completion_tokens: int = Field(512, ge=1, description="where --max-completion-tokens is not given")
    meta: dict[str, str] = Field({}, description="kind of problem -> field that tells it (level, subject …)")
    licence: str = ""
    note: str = ""

    @property
    def dataset_row(self) -> DatasetRow:
        """How ``mathrl.data.problems`` reads one row of it."""
        return DatasetRow(
            self.name,
            question=self.question,
            answer=self.answer,
            solution=self.solution,
            options=self.options,
            rule=self.rule,
            answer_type=self.answer_type,
            lists=self.lists,
            all_needed=self.all_needed,
            extract=self.extract,
            meta=tuple(self.meta),
        )


@dataclass(frozen=True, slots=True)
class BenchmarkProblems:
    """The problems of a benchmark and what a reader should know of them."""

    benchmark: Benchmark
    problems: tuple[Problem, ...]
    skipped: tuple[SkippedRow, ...]  # rows whose reference no verifier reads
    num_duplicates: int  # questions asked before, same reference or not; they stay in, as in published scores
    source: str  # file or hub name, with revision and split
    num_words: int = 0  # problems whose reference is read only as words

    def facts(self) -> dict[str, Any]:
        """For the result: what was evaluated on."""
        return {
            "source": self.source,
            "num_problems": len(self.problems),
            "num_duplicates": self.num_duplicates,
            "num_references_of_words": self.num_words,
            "num_unreadable_references": len(self.skipped),
            "unreadable_references": dict(Counter(s.text[:60] for s in self.skipped).most_common(5)),
            "licence": self.benchmark.licence,
            "note": self.benchmark.note,
        }


def known_benchmarks() -> dict[str, Benchmark]:
    """The packaged rows by name."""
    text = (resources.files(__package__) / "benchmarks.toml").read_text(encoding="utf-8")
    return _parse(text, "mathrl/evaluation/benchmarks.toml")


def find_benchmarks(names: Sequence[str]) -> list[Benchmark]:
    """Rows by name, and all rows of a name that ends in ``.toml``.

    Raises:
        UserError: an unknown name (with near names), or a file that is not of the form.
    """
    known = known_benchmarks()
    found: list[Benchmark] = []
    for name in names:
        if name.endswith(".toml"):
            try:
                found += _parse(Path(name).read_text(encoding="utf-8"), name).values()
            except OSError as error:
                raise UserError(f"cannot read the benchmark file {name}: {error.strerror}") from None
        elif name in known:
            found.append(known[name])
        else:
            raise UserError(f"unknown benchmark {name!r}: {did_you_mean(name, known)}")
    twice = [name for name, times in Counter(b.name for b in found).items() if times > 1]
    if twice:
        raise UserError(f"benchmark {twice[0]!r} is named twice")
    return found


def _parse(text: str, where: str) -> dict[str, Benchmark]:
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where} is not TOML: {error}") from None
    if not tables:
        raise UserError(f"{where} names no benchmark: give it a table, such as [mine], for each")
    rows = {}
    for name, fields in tables.items():
        if not isinstance(fields, dict):
            raise UserError(f"{where}: {name!r} must be a table, such as [{name}], one a benchmark")
        for key in fields:
            if key not in Benchmark.model_fields:
                raise UserError(
                    f"{where}, [{name}]: unknown key {key!r}: {did_you_mean(key, Benchmark.model_fields)}"
                )
        try:
            rows[name] = Benchmark.model_validate({"name": name, **fields})
            re.compile(rows[name].answer_pattern)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"{where}, [{name}]: {field} = {first['input']!r}: {first['msg']}") from None
        except re.error as error:
            raise UserError(f"{where}, [{name}]: answer_pattern is no regular expression: {error}") from None
        check_answer_type(rows[name].answer_type)
        check_extract_rule(rows[name].extract)
    return rows


def load_benchmark(
    benchmark: Benchmark, path: str = "", *, max_problems: int = 0, split: str = ""
) -> BenchmarkProblems:
    """The problems of a benchmark, in their own order; references are read before anything is generated.

    Args:
        path: local file instead of the hub.
        max_problems: a fixed random sample of so many, the same at every call; 0: all.
        split: another split on the hub than the row's.

    Raises:
        UserError: hub out of reach, a field that is missing (which, in which row), or most references
            unreadable.
    """
    rows, source = _rows(benchmark, path, split or benchmark.split)
    if path and benchmark.local and not _has(rows, benchmark.question, benchmark.answer):
        benchmark = benchmark.model_copy(update=benchmark.local.model_dump())
    problems: list[Problem] = []
    skipped: list[SkippedRow] = []
    for number, row in enumerate(rows, 1):
        try:
            problem = to_problem(benchmark, row, f"{path or source}, row {number},", number)
        except UnusableRow as error:
            skipped.append(SkippedRow(number, str(error), str(row.get(benchmark.answer))))
            continue
        reason = check_reference(problem)
        if reason is None:
            problems.append(problem)
        else:
            skipped.append(SkippedRow(number, reason, problem.answer))
    if len(skipped) > len(problems):
        first = skipped[0]
        raise UserError(
            f"{path or source}: {len(skipped)} of {len(rows)} rows make no problem (row {first.row}: "
            f"{first.reason}, {first.text[:40]!r}; references are the field {benchmark.answer!r}, read as "
            f"{benchmark.answer_type!r}): set its answer or its answer_type"
        )
    duplicates = len(problems) - len({normalised(p.question + "\n".join(p.options)) for p in problems})
    if max_problems and len(problems) > max_problems:
        chosen = random.Random(derive_seed("benchmark", benchmark.name)).sample(
            range(len(problems)), max_problems
        )
        problems = [problems[i] for i in sorted(chosen)]
    words = sum(map(read_only_as_words, problems))
    return BenchmarkProblems(benchmark, tuple(problems), tuple(skipped), duplicates, source, words)


_LAYOUT = re.compile(
    r"\[asy\].*?\[/asy\]|\\(?:left|right|displaystyle|textstyle|quad|qquad|big|text|mathrm|mbox)(?![a-zA-Z])",
    re.DOTALL,
)
_FRACTION = re.compile(r"\\[dt]frac(?![a-zA-Z])")


def normalised(text: str) -> str:
    """Words and numbers alone, in lower case: what is left when spacing, punctuation and layout differ.

    Commands of LaTeX that change the looks alone go as well, and drawings; digits are not parted by commas.
    """
    text = _FRACTION.sub(r"\\frac", _LAYOUT.sub(" ", text))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


def _rows(benchmark: Benchmark, path: str, split: str) -> tuple[list[Row], str]:
    if path:
        rows = read_file(path)
        digest = hashlib.blake2b(Path(path).read_bytes(), digest_size=8).hexdigest()
        source = f"{Path(path).name} (blake2b {digest})"
    elif benchmark.hub:
        rows = read_hub(
            benchmark.hub, benchmark.config, split, benchmark.revision, f"--data {benchmark.name}=FILE"
        )
        source = f"{benchmark.hub} {split}" + (f" at {benchmark.revision}" if benchmark.revision else "")
    else:
        raise UserError(
            f"benchmark {benchmark.name!r} has no copy on the hub: give its file with "
            f"--data {benchmark.name}=FILE"
        )
    if not rows:
        raise UserError(f"{path or source} holds no row")
    return rows, source


def _has(rows: Sequence[Row], question: Sequence[str], answer: str) -> bool:
    return all(any(row.get(name) is not None for row in rows) for name in (*question, answer))


def to_problem(benchmark: Benchmark, row: Row, where: str, number: int) -> Problem:
    """A row as a problem.

    Raises:
        UserError: a field is missing.
        UnusableRow: there is no reference in it.
    """
    raw: dict[str, Any] = dict(row)
    for kind, field in benchmark.meta.items():
        raw[kind] = row.get(field)
    for name in (*benchmark.question, benchmark.answer):
        get_field(raw, name, where)  # before anything is read, so that the sentence names the field
    if benchmark.answer_pattern:
        given = get_field(raw, benchmark.answer, where)
        several = [_by_pattern(benchmark, v) for v in (given if isinstance(given, list | tuple) else [given])]
        raw[benchmark.answer] = several if len(several) != 1 else several[0]
    problem = make_problem(benchmark.dataset_row, raw, where, f"{benchmark.name}/{number}")
    meta: dict[str, Any] = dict(problem.meta)
    if benchmark.rule == "gsm8k" and problem.solution and "num_steps" not in meta:
        meta["num_steps"] = _steps(str(row[benchmark.answer]))
    return replace(problem, meta=meta)


def _by_pattern(benchmark: Benchmark, value: Any) -> str:
    found = re.search(benchmark.answer_pattern, read_answer(value))
    if found is None:
        raise UnusableRow("the reference does not have the form of answer_pattern")
    return str(found[1])


def _steps(solution: str) -> int:
    """Calculations of a gsm8k solution: its calculator notes, else its lines."""
    lines = [line for line in solution.split("####")[0].splitlines() if line.strip()]
    return solution.count("<<") or max(len(lines), 1)


def shown_examples(
    benchmark: Benchmark, path: str, num: int, seed: int, *, apart_from: Iterable[Problem] = ()
) -> list[Problem]:
    """``num`` problems with worked solutions for a few-shot prompt, drawn by ``seed``.

    Args:
        path: local file instead of the hub's ``shots_split``.
        apart_from: problems that are evaluated; none of their questions is shown.

    Raises:
        UserError: the benchmark names no such split and no file is given, or there are too few solutions.
    """
    if not path and not benchmark.shots_split:
        raise UserError(
            f"benchmark {benchmark.name!r} has no training split for examples: give a file with --shots-data"
        )
    found = load_benchmark(benchmark, path, split=benchmark.shots_split)
    asked = {normalised(p.question) for p in apart_from}
    solved = [p for p in found.problems if p.solution and normalised(p.question) not in asked]
    if len(solved) < num:
        raise UserError(
            f"{found.source} has {len(solved)} worked solutions of problems that are not evaluated, fewer "
            f"than --shots {num}: give another file with --shots-data, or lower --shots"
        )
    return random.Random(derive_seed(seed, "shots", benchmark.name)).sample(solved, num)


def table_of(rows: Mapping[str, Benchmark]) -> list[tuple[str, str, str, str]]:
    """(name, hub, answer type, note) of each row, for the console."""
    return [(b.name, b.hub or "local file", b.answer_type, b.note) for b in rows.values()]
