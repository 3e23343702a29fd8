"""How references are read: what counts as mathematics, as words alone, and as unread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verifiers import verify
from verifiers.tools.references import Reading, read_reference


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "$x^2+1$",
        "\\text{(B)}",
        "B",
        "(C) 12",
        "\\text{A, C}",
        "Yes",
        "\\text{no}",
        "True",
        "DNE",
        "x=3",
    ],
)
def test_what_is_compared_beyond_its_spelling_is_mathematics(answer: str) -> None:
    assert read_reference(answer).reading is Reading.MATHEMATICS


@pytest.mark.parametrize(
    "answer",
    ["\\text{Tuesday}", "ellipse", "Tuesday evening", "a parabola", "充要条件", "the set is bounded below"],
)
def test_what_only_its_own_words_meet_is_words(answer: str) -> None:
    found = read_reference(answer)
    assert (found.reading, found.kind) == (Reading.WORDS, "words")


@pytest.mark.parametrize(
    ("answer", "reading"),
    [
        ("concave up on $(0,1)$", Reading.DESCRIPTION),
        ("最小值为 $3$", Reading.MATHEMATICS),
        ("The current is 2 amps.", Reading.MATHEMATICS),
        ("\\frac{11}{2^{20}", Reading.MATHEMATICS),
    ],
)
def test_words_around_mathematics_are_a_class_of_their_own(answer: str, reading: Reading) -> None:
    assert read_reference(answer).reading is reading


def test_unread_references_of_one_kind_count_together() -> None:
    found = [read_reference(answer) for answer in ("3x^{2}-", "7y+")]
    assert {read.reading for read in found} == {Reading.UNREAD}
    assert len({read.kind for read in found}) == 1


def test_a_list_is_words_where_all_of_its_items_are() -> None:
    assert read_reference('["Tuesday", "Friday"]', "any_of").reading is Reading.WORDS
    assert read_reference("['6' '7']", "any_of").reading is not Reading.MATHEMATICS  # of numpy, and not 67
    assert read_reference('["Tuesday", "5"]', "all_of").reading is Reading.MATHEMATICS
    assert read_reference('["5", "7y+"]', "any_of").reading is Reading.UNREAD


def test_the_type_decides() -> None:
    assert read_reference("42", "text").reading is Reading.WORDS
    assert read_reference("Tuesday", "number").reading is Reading.UNREAD
    assert read_reference("B", "choice").reading is Reading.MATHEMATICS
    with pytest.raises(ValueError, match="number"):
        read_reference("42", "nubmer")


STYLES = [
    json.loads(line) for line in Path(__file__).with_name("reference_styles.jsonl").open(encoding="utf-8")
]


@pytest.mark.parametrize("style", sorted({row["style"] for row in STYLES}))
def test_references_in_the_style_of_public_sets(style: str) -> None:
    """Made-up references, written as those sets write theirs: each is read as it says and meets itself."""
    rows = [row for row in STYLES if row["style"] == style]
    assert len(rows) >= 15
    assert {r["answer"]: read_reference(r["answer"]).reading for r in rows} == {
        r["answer"]: r["reading"] for r in rows
    }
    refused = [r["answer"] for r in rows if not verify(r["answer"], r["answer"], extract="bare").correct]
    assert refused == []


# share of the references that may be unread
MAX_UNREAD = {
    "college_math": 0.006,
    "math_train": 0.0,
    "olympiadbench": 0.0,
    "omni_math": 0.001,
    "scibench": 0.0,
    "theoremqa": 0.0,
}


@pytest.mark.parametrize("name", MAX_UNREAD)
def test_real_references_are_read_and_meet_themselves(data_dir: Path, name: str) -> None:
    file = data_dir / "references" / f"{name}.jsonl"
    if not file.exists():
        pytest.skip("real references: the folder references of MATHRL_DATA_DIR")
    answers = [json.loads(line)["answer"] for line in file.open(encoding="utf-8")]
    unread = [a for a in answers if read_reference(a).reading is Reading.UNREAD]
    assert len(unread) <= MAX_UNREAD[name] * len(answers), unread
    for answer in answers[:: max(1, len(answers) // 300)]:
        if answer not in unread:
            rule = "boxed" if "\\boxed" in answer else "bare"
            assert verify(answer, answer, extract=rule).correct, answer
