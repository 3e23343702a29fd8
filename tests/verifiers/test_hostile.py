"""Hostile completions: nothing is run, hangs or crashes, and nothing undeserved is accepted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hostile_corpus import CORPUS, Case
from random_formulas import random_formula

from verifiers import Outcome, Verdict
from verifiers.pool.pool import Request, VerifierPool
from verifiers.tools.hostile import hostile_texts

TIMEOUT_S = 5.0


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=2, timeout_s=TIMEOUT_S) as shared:
        yield shared


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, pool: VerifierPool) -> list[tuple[Case, Verdict]]:
    marker = tmp_path_factory.mktemp("injection") / "marker"
    cases = [replace(c, completion=c.completion.replace("{marker}", str(marker))) for c in CORPUS]
    requests = [Request(c.completion, c.answer, c.answer_type, c.extract) for c in cases]
    verdicts = pool.map(requests)
    assert not marker.exists(), "a completion was executed"
    return list(zip(cases, verdicts, strict=True))


def describe(pairs: list[tuple[Case, Verdict]]) -> list[str]:
    return [f"{c.kind}: {c.answer!r} {c.completion[:80]!r} {v.outcome} {v.detail[:80]}" for c, v in pairs]


def test_the_corpus_is_broad() -> None:
    kinds = Counter(case.kind for case in CORPUS)
    assert len(CORPUS) >= 160
    assert (
        min(kinds[k] for k in ("bomb", "size", "nesting", "injection", "hedging", "gaming", "unicode")) >= 15
    )
    assert sum(case.accept for case in CORPUS) >= 25


def test_nothing_hangs_and_nothing_crashes(judged: list[tuple[Case, Verdict]]) -> None:
    assert describe([(c, v) for c, v in judged if v.outcome in (Outcome.TIMEOUT, Outcome.ERROR)]) == []


def test_no_reference_is_blamed_for_a_hostile_completion(judged: list[tuple[Case, Verdict]]) -> None:
    huge = {"10^{10^{10}}", "99999999!"}  # too large to be compared exactly, and so refused as references
    blamed = [(c, v) for c, v in judged if v.outcome is Outcome.BAD_REFERENCE and c.answer not in huge]
    assert describe(blamed) == []


def test_nothing_undeserved_is_accepted(judged: list[tuple[Case, Verdict]]) -> None:
    assert describe([(c, v) for c, v in judged if v.outcome is Outcome.CORRECT and not c.accept]) == []


def test_nothing_deserved_is_refused(judged: list[tuple[Case, Verdict]]) -> None:
    assert describe([(c, v) for c, v in judged if v.outcome is not Outcome.CORRECT and c.accept]) == []


@pytest.mark.parametrize("answer_type", ["auto", "number", "choice", "text", "boolean"])
def test_hostile_texts_as_references_and_as_answers(pool: VerifierPool, answer_type: str) -> None:
    plain = {"choice": "B", "boolean": "yes"}.get(answer_type, "42")
    texts = list(hostile_texts().values())
    given = pool.map([Request(text, plain, answer_type, "bare") for text in texts])
    references = pool.map([Request(plain, text, answer_type, "bare") for text in texts])
    names = list(hostile_texts())
    bad = (Outcome.CORRECT, Outcome.TIMEOUT, Outcome.ERROR)
    assert [n for n, v in zip(names, given, strict=True) if v.outcome in bad] == []
    assert [n for n, v in zip(names, references, strict=True) if v.outcome in bad] == []


def test_random_formulas_of_large_numbers_neither_hang_nor_crash_and_equal_themselves(
    pool: VerifierPool,
) -> None:
    draw = random.Random(20240607)
    formulas = [random_formula(draw, draw.randint(1, 4)) for _ in range(400)]
    for_a_number = pool.map([Request(f"\\boxed{{{f}}}", "918273645") for f in formulas])
    for_the_next = pool.map(
        [Request(f"\\boxed{{{f}}}", g) for f, g in zip(formulas[1:], formulas, strict=False)]
    )
    for_itself = pool.map([Request(f"\\boxed{{{f}}}", f) for f in formulas])
    bad = (Outcome.TIMEOUT, Outcome.ERROR)
    judged = [*for_a_number, *for_the_next, *for_itself]
    assert [v for v in judged if v.outcome in bad] == []
    assert [v for v in for_a_number if v.outcome is Outcome.CORRECT] == []
    own = (Outcome.CORRECT, Outcome.BAD_REFERENCE)
    assert [v for v in for_itself if v.outcome not in own] == []
    assert sum(v.outcome is Outcome.CORRECT for v in for_itself) > 300
