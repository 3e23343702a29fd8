"""Exactly one verdict whatever is submitted, and a pool that judges on as before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from test_isolation import request

from verifiers import Outcome
from verifiers.pool.child import Child
from verifiers.pool.pool import Request, VerifierPool

CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)
HARD = Request("\\boxed{\\sqrt{4}}", "2")
"""An answer that a worker judges."""


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=1, timeout_s=10.0) as shared:
        yield shared


MALFORMED: dict[str, Any] = {
    "no completion": Request(None, "2"),  # type: ignore[arg-type]
    "bytes": Request(b"\\boxed{\\sqrt{4}}", "2"),  # type: ignore[arg-type]
    "a number for a reference": Request("\\boxed{\\sqrt{4}}", 2),  # type: ignore[arg-type]
    "a list for a reference": Request("\\boxed{\\sqrt{4}}", ["2"]),  # type: ignore[arg-type]
    "options of another kind": Request("\\boxed{\\sqrt{4}}", "A", "choice", options=(1, 2)),  # type: ignore[arg-type]
    "no options": Request("\\boxed{\\sqrt{4}}", "2", options=None),  # type: ignore[arg-type]
    "no prompt": Request("\\boxed{\\sqrt{4}}", "2", prompt=None),  # type: ignore[arg-type]
    "no row": Request("\\boxed{\\sqrt{4}}", "2", row=None),  # type: ignore[arg-type]
    "no answer type": Request("\\boxed{\\sqrt{4}}", "2", answer_type=None),  # type: ignore[arg-type]
    "no rule": Request("\\boxed{\\sqrt{4}}", "2", extract=7),  # type: ignore[arg-type]
    "no request": None,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_an_error_and_the_next_one_is_judged(pool: VerifierPool, name: str) -> None:
    verdict = pool.submit(MALFORMED[name]).result(timeout=30)
    assert verdict.outcome is Outcome.ERROR
    assert verdict.detail.startswith("malformed request: ")
    assert pool.submit(HARD).result(timeout=30).correct


def test_a_row_that_no_worker_can_be_sent_is_an_error(pool: VerifierPool) -> None:
    bad = Request("say yes", "say yes", "hostile_types:TakesRow", "bare", row={"x": CIRCULAR})
    verdict = pool.submit(bad).result(timeout=30)
    assert (verdict.outcome, "row cannot be written" in verdict.detail) == (Outcome.ERROR, True)
    good = Request("say yes", "say yes", "hostile_types:TakesRow", "bare", row={"x": [1, None]})
    assert pool.submit(good).result(timeout=30).correct


def test_a_rule_that_raises_is_an_error(pool: VerifierPool) -> None:
    verdict = pool.submit(Request("7", "7", "number", "hostile_types:raising_rule")).result(timeout=30)
    assert (verdict.outcome, "KeyError" in verdict.detail) == (Outcome.ERROR, True)
    assert pool.submit(HARD).result(timeout=30).correct


def test_a_fault_inside_the_pool_leaves_no_request_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the supervising thread meets, its tasks get their verdict and the thread goes on."""
    with VerifierPool(num_workers=1, timeout_s=10.0) as pool:
        assert pool.map([request("say yes")])[0].correct
        send = Child.send
        with monkeypatch.context() as patch:
            patch.setattr(Child, "send", lambda self, message, limit_s: send(self, CIRCULAR, limit_s))
            verdicts = pool.map([request(text) for text in ["say yes", "say no"]])
        assert {v.outcome for v in verdicts} == {Outcome.ERROR}
        assert all("ValueError" in v.detail for v in verdicts)
        assert [v.correct for v in pool.map([request("say yes"), request("say no")])] == [True, False]
