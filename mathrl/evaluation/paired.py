"""Two evaluations are compared where problems and protocol are the same, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mathrl.errors import UserError
from mathrl.evaluation.result import Evaluation, Slice
from mathrl.evaluation.statistics import Interval, PairedTest, holm, paired_bootstrap, paired_proportions


@dataclass(frozen=True, slots=True)
class Difference:
    """After minus before on the same problems by the same protocol."""

    value: float
    ci95: Interval
    p_value: float
    newly_right: tuple[str, ...]  # problem ids
    newly_wrong: tuple[str, ...]
    mean_at_k: PairedTest | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the first three keys are those of summary.json."""
        out: dict[str, Any] = {"value": self.value, "ci95": list(self.ci95), "p_value": self.p_value}
        if self.mean_at_k is not None:
            test = self.mean_at_k
            out["mean_at_k"] = {"value": test.value, "ci95": list(test.ci95), "p_value": test.p_value}
        return out | {"newly_right": list(self.newly_right), "newly_wrong": list(self.newly_wrong)}


def compare_evaluations(before: Evaluation, after: Evaluation) -> Difference:
    """The paired difference of two evaluations.

    Raises:
        UserError: their protocols differ (prompt, verifier, limits, samples …), or their problems do.
    """
    check_comparable(before.protocol, after.protocol, before.name, after.name)
    if [r.problem.id for r in before.records] != [r.problem.id for r in after.records]:
        raise UserError(f"{before.name} and {after.name} cannot be compared: they judged other problems")
    was = [r.greedy.correct for r in before.records]
    now = [r.greedy.correct for r in after.records]
    greedy = paired_proportions(was, now)
    ids = [r.problem.id for r in before.records]
    samples = None
    if before.k and after.k:
        samples = paired_bootstrap(_mean_of_samples(before), _mean_of_samples(after))
    return Difference(
        greedy.value,
        greedy.ci95,
        greedy.p_value,
        tuple(i for i, a, b in zip(ids, was, now, strict=True) if b and not a),
        tuple(i for i, a, b in zip(ids, was, now, strict=True) if a and not b),
        samples,
    )


def check_comparable(
    before: Mapping[str, Any], after: Mapping[str, Any], before_name: str, after_name: str
) -> None:
    """Refuse protocols that differ in anything.

    Raises:
        UserError: in what, with both values.
    """
    differ = sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k))
    if differ == ["verifiers"]:
        raise UserError(
            f"{before_name} and {after_name} cannot be compared, for their verdicts are by other versions of "
            "the verifiers; judge the older completions again with mathrl judge, and compare with its result"
        )
    if differ:
        told = ", ".join(f"{k} ({before.get(k)} against {after.get(k)})" for k in differ)
        raise UserError(
            f"{before_name} and {after_name} cannot be compared, for they differ in {told}; "
            "evaluate both alike"
        )


def compare_slices(key: str, before: Evaluation, after: Evaluation) -> list[tuple[Slice, Slice, PairedTest]]:
    """Before, after and their paired test for each value of a meta field; p-values by Holm over the values.

    The evaluations must be of the same problems (``compare_evaluations`` refuses others).
    """
    pairs: dict[str, tuple[list[bool], list[bool]]] = {}
    for old, new in zip(before.records, after.records, strict=True):
        was, now = pairs.setdefault(str(new.problem.meta.get(key)), ([], []))
        was.append(old.greedy.correct)
        now.append(new.greedy.correct)
    slices = list(zip(before.by(key), after.by(key), strict=True))
    tests = [paired_proportions(*pairs[now.value]) for _, now in slices]
    adjusted = holm([test.p_value for test in tests])
    return [
        (was, now, test._replace(p_value=p))
        for (was, now), test, p in zip(slices, tests, adjusted, strict=True)
    ]


def _mean_of_samples(evaluation: Evaluation) -> list[float]:
    return [c / len(r.samples) for c, r in zip(evaluation.sample_right, evaluation.records, strict=True)]
