"""The file of completions: JSON lines, a header first, one line a completion as soon as it is finished.

It is a log until the evaluation ends and then written anew with verdicts, in the problems' order. Each line
has ``question``, ``answer`` and ``completion``, so that any other tool can read it as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

from mathrl.errors import UserError, cannot_write
from mathrl.evaluation.result import UNJUDGED, Evaluation, Judged, Record
from mathrl.run.files import write_bytes, write_json, writing
from mathrl.run.json_lines import cut_unfinished, read_rows, to_line
from mathrl.types import Completion, Problem

GREEDY, SAMPLE = "greedy", "sample"
FILE = "completions.jsonl"  # in the folder of an evaluation
Key = tuple[str, str, int]  # problem id, kind, index


def to_row(problem: Problem, kind: str, index: int, completion: Completion) -> dict[str, Any]:
    """A completion as JSON values, before it is judged."""
    row: dict[str, Any] = {
        "problem_id": problem.id,
        "kind": kind,
        "index": index,
        "question": problem.question,
        "answer": problem.answer,
        "answer_type": problem.answer_type,
        "completion": completion.text,
        "finish_reason": completion.finish_reason,
        "num_tokens": len(completion.token_ids),
    }
    if problem.options:
        row["options"] = list(problem.options)
    if problem.system_prompt:
        row["system_prompt"] = problem.system_prompt
    if problem.meta:
        row["meta"] = dict(problem.meta)
    if problem.row:
        row["row"] = dict(problem.row)
    return row


class CompletionLog:
    """Completions on disk as they come; what is there already is not sampled again.

    Args:
        header: identifies the evaluation; its ``resume_key`` must be the file's.
        replace_other: start anew where the file belongs to another evaluation.
        rank: of several that evaluate together; all but rank 0 write into hidden files beside it, which
            ``join_parts`` brings into it.

    Raises:
        UserError: the file belongs to another evaluation and ``replace_other`` is false.
    """

    def __init__(
        self, path: Path | None, header: Mapping[str, Any], *, replace_other: bool = False, rank: int = 0
    ):
        self.path = path
        self.found: dict[Key, Completion] = {}
        self._file: BinaryIO | None = None
        if path is None:
            return
        if not replace_other:
            refuse_other(path, header["resume_key"])
        begun = _belongs(path, header["resume_key"])
        if rank:
            self.path = _part(path, rank)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            goes_on = begun and not rank
            self._file = open(self.path or path, "a+b" if goes_on else "w+b")  # noqa: SIM115 - closed by close()
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {cannot_write(error)}") from error
        if goes_on:
            cut_unfinished(self._file)
        else:
            self._write({"kind": "header", **header})
        if begun:
            self._read(path)

    def _read(self, path: Path) -> None:
        for _, row in read_rows(path, growing=True):
            if row["kind"] != "header":
                # the ids are not kept; their number is what rewards and tables use
                self.found[row["problem_id"], row["kind"], row["index"]] = Completion(
                    (0,) * max(row["num_tokens"], 1), row["completion"], row["finish_reason"]
                )

    def add(self, problem: Problem, kind: str, index: int, completion: Completion) -> None:
        """Append a completion; it is with the operating system before this returns."""
        if self._file is not None:
            self._write(to_row(problem, kind, index, completion))

    def _write(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(to_line(row, allow_nan=True))
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {cannot_write(error)}; make room, and the same evaluation "
                "goes on from what is kept"
            ) from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def join_parts(path: Path, header: Mapping[str, Any]) -> None:
    """Bring what several ranks have left of an interrupted evaluation into its file, and remove their parts.

    Where the file belongs to another evaluation, everything is left as it is.
    """
    parts = sorted(path.parent.glob(_part(path, "*").name))
    key = header["resume_key"]
    if not parts or (path.exists() and not _only_begun(path) and not _belongs(path, key)):
        return
    with closing(CompletionLog(path, header)) as log:
        for part in parts:
            for _, row in read_rows(part, growing=True) if _belongs(part, key) else ():
                if row["kind"] != "header":
                    log._write(row)
    remove_parts(path)


def remove_parts(path: Path) -> None:
    """Remove the ranks' files beside an evaluation's."""
    for part in path.parent.glob(_part(path, "*").name):
        part.unlink()


def _part(path: Path, rank: int | str) -> Path:
    return path.with_name(f".{path.stem}.rank{rank}{path.suffix}")


class OtherEvaluationError(UserError):
    """A file of completions belongs to something else."""


def refuse_other(path: Path, resume_key: str) -> None:
    """Refuse a file of completions that were made by something else.

    Raises:
        OtherEvaluationError: ``path`` belongs to another evaluation, or is no file of completions.
    """
    if path.exists() and not _only_begun(path) and not _belongs(path, resume_key):
        raise other_evaluation(path)


def other_evaluation(path: Path, what: str = "another evaluation") -> OtherEvaluationError:
    """The error of a file that may not be replaced."""
    return OtherEvaluationError(
        f"{path} holds {what} (other model, problems or settings): "
        "choose another output folder, or replace it with --overwrite"
    )


def _only_begun(path: Path) -> bool:
    """Whether a process was killed before it had written the header."""
    begin, content = b'{"kind": "header"', path.read_bytes()
    return b"\n" not in content and (content.startswith(begin) or begin.startswith(content))


def _belongs(path: Path, resume_key: str) -> bool:
    if not path.exists():
        return False
    try:
        _, header = next(read_rows(path, growing=True))
    except (StopIteration, UserError):
        return False
    return bool(header.get("resume_key") == resume_key)


def write_evaluation(evaluation: Evaluation, path: Path, header: Mapping[str, Any]) -> None:
    """The judged file at ``path`` and the numbers beside it as ``<stem>.json``; each appears whole or not."""
    rows: list[Mapping[str, Any]] = [
        {
            "kind": "header",
            **header,
            "name": evaluation.name,
            "protocol": dict(evaluation.protocol),
            "version": evaluation.version,
            "seed": evaluation.seed,
            "skipped": evaluation.skipped,
            "seconds": dict(evaluation.seconds),
            "info": dict(evaluation.info),
        }
    ]
    for record in evaluation.records:
        rows.append(_judged_row(record.problem, GREEDY, 0, record.greedy))
        rows.extend(_judged_row(record.problem, SAMPLE, i, s) for i, s in enumerate(record.samples))
    with writing(path):
        write_bytes(path, b"".join(to_line(row, allow_nan=True) for row in rows))
        write_json(path.with_suffix(".json"), evaluation.to_dict())


def _judged_row(problem: Problem, kind: str, index: int, judged: Judged) -> dict[str, Any]:
    completion = Completion((0,) * judged.num_tokens, judged.text, judged.finish_reason)  # type: ignore[arg-type]
    row = to_row(problem, kind, index, completion)
    row |= {"outcome": judged.outcome, "extracted": judged.extracted}
    if judged.vote is not None:
        row["vote"] = judged.vote
    return row | ({"detail": judged.detail} if judged.detail else {})


def completion_files(folder: Path) -> list[Path]:
    """``completions.jsonl`` of an evaluation's folder, or of each of its benchmarks' folders, if any."""
    own = folder / FILE
    return [own] if own.is_file() else sorted(folder.glob(f"*/{FILE}"))


def find_completions(path: Path) -> Path:
    """The file of completions that a file or a folder of an evaluation names.

    Raises:
        UserError: the folder holds none, or those of several benchmarks.
    """
    if not path.is_dir():
        return path
    found = completion_files(path)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path} holds completions of several benchmarks: name one of {_listed(found)}")
    kept = sorted((path / "evaluations").glob("*.jsonl"))
    run = f": of this run name one of {_listed(kept)}" if kept else ""
    raise UserError(f"{path} holds no {FILE}{run}")


def _listed(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation from its judged file of completions, or from a folder as ``find_completions`` takes.

    Raises:
        UserError: no such file, a line without a needed field, or an evaluation that has not ended.
    """
    path = find_completions(path)
    rows = read_rows(path)
    header = next(rows, (0, {}))[1]
    if header.get("kind") != "header" or "protocol" not in header:
        raise UserError(
            f"{path} is not an evaluation that ended; run it again, or judge it with mathrl judge"
        )
    problems: dict[str, Problem] = {}
    greedy: dict[str, Judged] = {}
    samples: dict[str, list[Judged]] = defaultdict(list)
    for number, row in rows:
        try:
            problem_id = row["problem_id"]
            judged = Judged(
                row["completion"],
                row["outcome"],
                row["extracted"],
                row["finish_reason"],
                row["num_tokens"],
                row.get("detail", ""),
                row.get("vote"),
            )
            if row["kind"] == SAMPLE:
                samples[problem_id].append(judged)
                continue
            greedy[problem_id] = judged
            problems[problem_id] = problem_of(row)
        except KeyError as error:
            raise UserError(f"{path}, line {number}: no field {error}") from None
    records = (Record(problems[i], greedy[i], tuple(samples[i])) for i in problems)
    return Evaluation(
        name=header.get("name", path.stem),
        records=judged_records(records),
        protocol=header["protocol"],
        version=header.get("version", 0),
        seed=header.get("seed", 0),
        skipped=header.get("skipped", 0),
        seconds=header.get("seconds", {}),
        info=header.get("info", {}),
    )


def problem_of(row: Mapping[str, Any]) -> Problem:
    """The problem of a row that ``to_row`` wrote."""
    return Problem(
        row["problem_id"],
        row["question"],
        row["answer"],
        row.get("answer_type", "auto"),
        options=tuple(row.get("options", ())),
        meta=row.get("meta", {}),
        row=row.get("row", {}),
        system_prompt=row.get("system_prompt", ""),
    )


def judged_records(records: Iterable[Record]) -> tuple[Record, ...]:
    """Records without the problems whose reference no verifier reads."""
    return tuple(r for r in records if r.greedy.outcome != UNJUDGED)
