"""Completions that are on disk, ours or another tool's, as problems with their completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mathrl.data.fields import UnusableRow
from mathrl.errors import UserError
from mathrl.evaluation.benchmark_sets import Benchmark, to_problem
from mathrl.evaluation.completions import SAMPLE, find_completions, problem_of
from mathrl.rewards.scorer import prompt_end
from mathrl.run.json_lines import read_rows
from mathrl.types import Completion, Problem


@dataclass
class Saved:
    """A problem, its completions (the first is taken for the greedy one) and the verdicts there were."""

    problem: Problem
    completions: list[Completion] = field(default_factory=list)
    outcomes: list[str | None] = field(default_factory=list)

    def add(self, completion: Completion, outcome: str | None = None, *, first: bool = False) -> None:
        at = 0 if first else len(self.completions)
        self.completions.insert(at, completion)
        self.outcomes.insert(at, outcome)


@dataclass(frozen=True)
class SavedFile:
    """All of a file. ``header`` is empty where another tool wrote it."""

    name: str
    problems: tuple[Saved, ...]
    header: Mapping[str, Any]
    origin: str

    @property
    def protocol(self) -> Mapping[str, Any]:
        return dict(self.header.get("protocol", {}))


def read_saved(path: Path, benchmark: Benchmark | None = None) -> SavedFile:
    """Read completions.jsonl (or the folder it lies in), ``samples_*.jsonl`` of lm-evaluation-harness, or
    plain lines.

    A plain line has ``question``, ``answer``, ``completion`` (or a list ``completions``) and may have ``id``
    and ``prompt``: where that opened a thought, a completion that does not close it has no answer.

    Args:
        benchmark: says which fields hold question and reference in files that are not ours, and how they are
            read; None: ``question`` and ``answer``, type and form by what they hold.

    Raises:
        UserError: not a file of these forms, a field is missing (which, in which line), or a
            problem has no completion.
    """
    path = find_completions(path)
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path} is empty")
    first = rows[0][1]
    if first.get("kind") == "header":
        return SavedFile(first.get("name", path.stem), tuple(_own(path, rows[1:], first)), first, "mathrl")
    row = benchmark or Benchmark(name=path.stem)
    harness = "resps" in first and "doc" in first
    found = tuple((_harness if harness else _plain)(path, rows, row))
    bare = next((saved.problem for saved in found if not saved.completions), None)
    if bare is not None:
        raise UserError(
            f"{path}: problem {bare.id} ({bare.question[:40]!r}) has no completion: leave it out, or give an "
            "empty text, which counts as no answer"
        )
    origin = "lm-evaluation-harness" if harness else "question, answer, completion"
    return SavedFile(row.name, found, {}, origin)


def _own(
    path: Path, rows: Sequence[tuple[int, dict[str, Any]]], header: Mapping[str, Any]
) -> Iterator[Saved]:
    found: dict[str, Saved] = {}
    prompt = header.get("protocol", {}).get("prompt", {}).get("prompt")
    for number, row in rows:
        _need(path, number, row, "problem_id", "question", "answer", "completion", "kind", "num_tokens")
        saved = found.setdefault(row["problem_id"], Saved(_after(prompt, problem_of(row))))
        ids = (0,) * max(row["num_tokens"], 1)
        completion = Completion(ids, row["completion"], row.get("finish_reason", "stop"))
        saved.add(completion, row.get("outcome"), first=row["kind"] != SAMPLE)
    if not found:
        raise UserError(f"{path} holds no completion yet")
    yield from found.values()


def _need(path: Path, number: int, row: Mapping[str, Any], *names: str) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"{path}, line {number}: no field {missing[0]!r} (fields: {', '.join(row)})")


def _harness(path: Path, rows: Sequence[tuple[int, dict[str, Any]]], benchmark: Benchmark) -> Iterator[Saved]:
    """One line a document and filter; the responses before any filter are the same in all of them."""
    seen = set()
    for number, row in rows:
        _need(path, number, row, "doc_id", "doc", "target", "resps")
        if row["doc_id"] in seen:
            continue
        seen.add(row["doc_id"])
        document = row["doc"]
        if benchmark.answer not in document:  # tasks rename fields; the harness keeps the reference as target
            document = document | {benchmark.answer: row["target"]}
        problem = _problem(path, number, document, benchmark, row["doc_id"])
        saved = Saved(_after(_harness_prompt(row.get("arguments")), problem))
        for response in row["resps"]:
            for text in response if isinstance(response, list) else [response]:
                if not isinstance(text, str):
                    raise UserError(
                        f"{path}, line {number}: its responses are no texts; only samples of generate_until "
                        "tasks can be judged"
                    )
                saved.add(_completion(text))
        yield saved


def _plain(path: Path, rows: Sequence[tuple[int, dict[str, Any]]], benchmark: Benchmark) -> Iterator[Saved]:
    """Lines with the same id (else the same question) are samples of one problem."""
    found: dict[str, Saved] = {}
    for number, row in rows:
        texts = row.get("completions", [row.get("completion")])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            there = ", ".join(row)
            raise UserError(f"{path}, line {number}: no text in the field 'completion' (fields: {there})")
        if benchmark.question[0] not in row:
            row = row | {benchmark.question[0]: f"(line {number})"}
        key = str(row.get("id", row.get("problem_id", row[benchmark.question[0]])))
        if key not in found:
            problem = _problem(path, number, row, benchmark, row.get("id", number))
            found[key] = Saved(_after(row.get("prompt"), problem))
        for text in texts:
            found[key].add(_completion(text))
    yield from found.values()


def _harness_prompt(arguments: Any) -> Any:
    """The prompt in {"gen_args_0": {"arg_0": prompt, …}} of today's files and [[prompt, …]] of older ones."""
    if isinstance(arguments, Mapping):
        first = next(iter(arguments.values()), None)
        return first.get("arg_0") if isinstance(first, Mapping) else None
    first = arguments[0] if isinstance(arguments, list) and arguments else None
    return first[0] if isinstance(first, list) and first else None


def _after(prompt: Any, problem: Problem) -> Problem:
    """The problem with the end of the prompt that its completions followed, where judging needs it."""
    end = prompt_end(prompt) if isinstance(prompt, str) else ""
    return replace(problem, meta={**problem.meta, "prompt": end}) if end else problem


def _problem(path: Path, number: int, row: Mapping[str, Any], benchmark: Benchmark, name: Any) -> Problem:
    try:
        problem = to_problem(benchmark, row, f"{path}, line {number},", number)
    except UnusableRow as error:
        raise UserError(f"{path}, line {number}: {error}") from None
    return replace(problem, id=f"{benchmark.name}/{name}", solution=None)


def _completion(text: str) -> Completion:
    # another tool's tokens are unknown: words stand for them in tables of length
    return Completion((0,) * max(len(text.split()), 1), text, "stop")
