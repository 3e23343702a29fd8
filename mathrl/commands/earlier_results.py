"""What lies in an evaluation's folder already: eval.json and eval.html are written anew, and nothing is lost.

Results of the benchmarks that are asked make way for the same evaluation alone. Those of other benchmarks, if
of the same model, stay beside the new ones; what cannot be told again is refused before anything is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mathrl.errors import UserError
from mathrl.evaluation.completions import FILE, other_evaluation, read_evaluation
from mathrl.evaluation.protocol import key_of
from mathrl.report.evaluation_page import PAGE_FILES, Result
from mathrl.run.files import refuse_taken

_WAYS_OUT = "choose another --out, or replace it with --overwrite"


@dataclass(frozen=True)
class EarlierResults:
    """The eval.json of a folder; ``benchmarks`` is empty where there is none, or it may be replaced."""

    file: Path
    benchmarks: Mapping[str, Mapping[str, Any]]  # name -> Evaluation.to_dict and what is told beside it
    against: str  # where the results lie that they are compared with

    @classmethod
    def read(cls, out: Path, *, overwrite: bool) -> EarlierResults:
        """What is to be kept in ``out``.

        Raises:
            UserError: it is a file, cannot be made, or files lie there that ``mathrl eval`` has not written.
        """
        numbers, page = (out / name for name in PAGE_FILES)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out} is a file and no folder: choose another --out")
        found = None if overwrite else _read(numbers)
        for file in (numbers, page) if found is None else ():
            refuse_taken(file, "--out", overwrite=overwrite)
        refuse_taken(
            out / FILE, "--out", overwrite=overwrite
        )  # the folder of one evaluation, as judge leaves it
        return cls(numbers, *(found or ({}, "")))

    def kept(self, names: Collection[str]) -> list[Result]:
        """The results of other benchmarks than ``names``, which are told again beside the new ones.

        Raises:
            UserError: they are a comparison or ranked, or their completions are gone: they cannot be.
        """
        return [self._again(name) for name in self.benchmarks if name not in names]

    def refuse_loss(
        self, names: Collection[str], against: Path | None, rank_by: str, *, overlap: bool
    ) -> None:
        """Raise UserError where new results of ``names`` would leave out what is told of them here.

        Args:
            against, rank_by: what the new results are compared with, and ranked by.
            overlap: whether they tell the overlap with training questions.
        """
        for name in names:
            table, lost = self.benchmarks.get(name, {}), ""
            ranked_by = table.get("ranking", {}).get("model", "")
            if table.get("difference") and self.against != str(against or ""):
                lost = f"the comparison with {self.against}, and --against does not name that"
            elif ranked_by and ranked_by != rank_by:
                lost = f"the ranking by {ranked_by}, and --rank-by does not name that"
            elif table.get("contamination") and not overlap:
                lost = "the overlap with training questions, and --trained-on names no file of them"
            if lost:
                raise UserError(f"{self.file} has of {name} {lost}: do so, {_WAYS_OUT}")

    def refuse_other(self, name: str, resume_key: str, info: Mapping[str, Any]) -> None:
        """Refuse numbers of another evaluation of ``name``, or of another model.

        Args:
            info: the model that is evaluated now.

        Raises:
            OtherEvaluationError: there are some, and they may not be replaced.
        """
        if name in self.benchmarks and key_of(self.benchmarks[name]) != resume_key:
            raise other_evaluation(self.file, f"another evaluation of {name}")
        for other, table in self.benchmarks.items():
            if {k: v for k, v in table["info"].items() if k != "engine"} != info:
                raise other_evaluation(self.file, f"an evaluation of {other}")

    def _again(self, name: str) -> Result:
        table, file = self.benchmarks[name], self.file.parent / name / FILE
        advice = (
            "name it too with --benchmark, or its file with --data (what was sampled is not sampled again), "
            f"{_WAYS_OUT}"
        )
        if table.get("difference") or table.get("ranking"):
            told = "comparison" if table.get("difference") else "ranking"
            raise UserError(f"{self.file} has a {told} of {name}, which would be gone: {advice}")
        try:
            evaluation = read_evaluation(file)
        except UserError as error:
            raise UserError(
                f"{self.file} has results of {name}, which would be gone ({error}): {advice}"
            ) from None
        if key_of(vars(evaluation)) != key_of(table):
            raise UserError(f"{self.file} has other results of {name} than {file}: {advice}")
        evaluation = replace(evaluation, reused=table["reused"])
        return Result(evaluation, benchmark=table["benchmark"], contamination=table["contamination"])


def _read(file: Path) -> tuple[dict[str, dict[str, Any]], str] | None:
    """Benchmarks and what they are compared with; None where it is no eval.json."""
    try:
        saved = json.loads(file.read_bytes())
        tables = {str(name): dict(table) for name, table in saved["benchmarks"].items()}
        for table in tables.values():
            key_of(table)
        return tables, str(saved.get("against", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
