"""What stands in a field: messages, parts, decimals, null; and that nothing becomes Python's own spelling."""

import datetime
import json
import math
from decimal import Decimal

import numpy as np
import pytest

from mathrl.data.fields import (
    UnusableRow,
    field_text,
    is_single,
    json_value,
    list_in,
    questions_in,
    read_answer,
    read_answers,
    read_options,
    read_question,
    single,
)


def said(role: str, content: object) -> dict:
    return {"role": role, "content": content}


USER = said("user", "What is 1 + 1? ")
PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2?"}]
BRIEF = said("system", "Be brief.")


@pytest.mark.parametrize(
    ("value", "question", "system"),
    [
        (" What is 1 + 1? ", "What is 1 + 1?", ""),
        ([USER], "What is 1 + 1?", ""),
        (USER, "What is 1 + 1?", ""),
        ([BRIEF, USER], "What is 1 + 1?", "Be brief."),
        ([said("developer", "Be brief."), USER], "What is 1 + 1?", "Be brief."),
        ([USER, said("assistant", "2")], "What is 1 + 1?", ""),  # what follows is not asked
        ([said("user", PARTS)], "What is 2?", ""),
        ([{"from": "human", "value": "What is 2?"}, {"from": "gpt", "value": "2"}], "What is 2?", ""),
        (json.dumps([BRIEF, USER]), "What is 1 + 1?", "Be brief."),  # a list that a CSV file holds as text
        (str([BRIEF, USER]), "What is 1 + 1?", "Be brief."),
        ("[1, 2] is an interval: how long is it?", "[1, 2] is an interval: how long is it?", ""),
        (7, "7", ""),
    ],
)  # fmt: skip
def test_questions_are_text_or_messages(value: object, question: str, system: str) -> None:
    assert read_question(value) == (question, system)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty question"),
        ("  ", "empty question"),
        (math.nan, "empty question"),
        ([said("user", " ")], "empty question"),
        ([], "a list, not a text"),
        (["What is 2?"], "a list of a str"),
        ({"text": "What is 2?"}, "a dictionary"),
        ([BRIEF], "by the user"),
        ([said("tool", "x"), USER], "'tool'"),
        ([{"content": "What is 2?"}], "no role"),
        ([said("user", None)], "no text"),
        ([said("user", [{"type": "image", "url": "x"}])], "more than text"),
        ([USER, said("assistant", "2"), said("user", "And twice that?")], "several turns"),
        ([said("user", "Let x be 2."), said("user", "What is x?")], "several turns"),
        ("[{'role': 'user', 'content': 'What", "stored as text"),
    ],
)
def test_other_questions_make_the_row_unusable_with_a_reason(value: object, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read_question(value)


def test_all_that_a_user_asked_is_found_for_the_search_for_overlap() -> None:
    talk = [BRIEF, USER, said("assistant", "2"), said("user", "And twice that?")]
    assert questions_in(talk) == ["What is 1 + 1?", "And twice that?"]
    assert questions_in("What is 2?") == ["What is 2?"]
    with pytest.raises(UnusableRow):
        questions_in([BRIEF])
    with pytest.raises(UnusableRow):
        questions_in({"text": "x"})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" 4 ", "4"),
        (4, "4"),
        (4.0, "4"),
        (True, "True"),
        (False, "False"),
        (-0.0, "0"),
        (0.1, "0.1"),
        (1e-7, "0.0000001"),
        (1e23, "1" + "0" * 23),
        (Decimal("1.50"), "1.5"),
        (Decimal("20.00"), "20"),
        (Decimal("100"), "100"),
        (Decimal("1E+2"), "100"),
        (Decimal("-0.00"), "0"),
        (Decimal("0.12345678901234567890123456789012345"), "0.12345678901234567890123456789012345"),
    ],
)
def test_answers_are_text_or_numbers(value: object, text: str) -> None:
    assert read_answer(value) == text


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ('["4"]', ["4"]),
        ('["4", "5"]', ["4", "5"]),
        (r'["\\frac{1}{2}"]', [r"\frac{1}{2}"]),
        (r'["\frac{1}{2}"]', [r"\frac{1}{2}"]),  # one backslash: an escape of JSON, and meant all the same
        (r"['\sqrt{2}']", [r"\sqrt{2}"]),
        ("[1, 2]", "[1, 2]"),  # an interval or a list of numbers: the verifiers read it
        ("[a]", "[a]"),
        (7, 7),
    ],
)
def test_lists_that_were_stored_as_text_are_lists(value: object, found: object) -> None:
    assert list_in(value) == found


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty answer"),
        ("", "empty answer"),
        (math.nan, "empty answer"),
        (Decimal("NaN"), "empty answer"),
        (math.inf, "the answer is inf"),
        (Decimal("-Infinity"), "the answer is -Infinity"),
        (["4"], "a list"),
        ({"value": 4}, "a dictionary"),
        (datetime.date(2026, 1, 2), "a date"),
    ],
)
def test_other_answers_make_the_row_unusable_with_a_reason(value: object, reason: str) -> None:
    with pytest.raises(UnusableRow, match=reason):
        read_answer(value)


@pytest.mark.parametrize("text", ["['6' '7']", "['6'\n '7']", "['it''s', '7']", '["a" "b", "c"]'])
def test_a_list_as_numpy_prints_it_is_refused_and_not_joined(text: str) -> None:
    with pytest.raises(UnusableRow, match="without commas"):
        list_in(text)
    assert list_in(r"""['a\'', '', "' '", '"']""") == ["a'", "", "' '", '"']


def test_arrays_and_32_bit_floats_are_the_numbers_that_were_written() -> None:
    pairs = [[0.1, 3.3], [16777216.0, -1e-7]]
    assert json_value(np.array(pairs, np.float32)) == pairs
    assert is_single("torch.float32")
    assert not is_single("torch.float64")
    given = {"a": np.float32(0.7), "b": np.int64(7), "c": np.bool_(True), "d": np.array(["6", "7"])}
    assert json_value(given) == {"a": 0.7, "b": 7, "c": True, "d": ["6", "7"]}
    assert json_value(np.array([{"role": "user"}], object)) == [{"role": "user"}]
    largest = float(np.finfo(np.float32).max)
    assert single(largest) == pytest.approx(largest)
    assert math.isnan(single(math.nan))
    assert single(math.inf) == math.inf


def test_answers_in_a_list_keep_its_shape() -> None:
    assert read_answers([" 4 ", 5.0, True, ["6", Decimal("1.50")]]) == ["4", "5", True, ["6", "1.5"]]
    for bad in ([], ["4", None], ["4", []], [["4"], {"value": 2}]):
        with pytest.raises(UnusableRow):
            read_answers(bad)


def test_options_of_every_form() -> None:
    assert read_options(["A) 10", "(B) 12 km", "C. 15"]) == ("10", "12 km", "15")
    assert read_options([10, 12.0, Decimal("1.50"), None]) == ("10", "12", "1.5")
    assert read_options({"label": ["A", "B"], "text": ["ten", "twelve"]}) == ("ten", "twelve")
    assert read_options([{"label": "A", "text": "ten"}, {"label": "B", "text": "two"}]) == ("ten", "two")
    assert read_options(None) == read_options([]) == read_options("") == ()
    for bad in ("a ) 38 , b ) 27", 4, [["x"]], {"label": ["A"]}, [{"label": "A"}, {"label": "B"}]):
        with pytest.raises(UnusableRow, match="option"):
            read_options(bad)


def test_meta_is_what_json_can_hold() -> None:
    row = {"a": Decimal("2"), "b": Decimal("2.5"), "c": [math.nan, datetime.date(2026, 1, 2)], "d": {1: True}}
    assert json_value(row) == {"a": 2, "b": 2.5, "c": [None, "2026-01-02"], "d": {"1": True}}
    assert json.loads(json.dumps(json_value(row), allow_nan=False)) == json_value(row)
    assert isinstance(json_value(Decimal("2")), int)
    assert json_value(Decimal("NaN")) is None


def test_conditions_see_numbers_as_they_are_written() -> None:
    assert [field_text(v) for v in (Decimal("2.00"), 2.0, 2, "2", None, True)] == [
        "2",
        "2",
        "2",
        "2",
        "",
        "True",
    ]
