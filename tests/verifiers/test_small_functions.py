"""Numerals, signs, sets of reals and gaps between boxes, function by function or by one line of an answer."""

from fractions import Fraction

import pytest

from verifiers import Outcome, ParseError, verify
from verifiers.answers.choice import option_letter
from verifiers.answers.collection import FiniteSet
from verifiers.answers.number import Number
from verifiers.answers.stated import parse_stated
from verifiers.extraction.boxes import joined
from verifiers.extraction.rules import extract
from verifiers.grammar.numerals import letter_numeral
from verifiers.grammar.plain import terminates


def outcome(reference: str, given: str, answer_type: str = "auto") -> Outcome:
    return verify(given, reference, answer_type, "bare").outcome


def test_finite_decimals_are_fractions_of_two_and_five() -> None:
    finite = {Fraction(1, 8), Fraction(3, 10), Fraction(7), Fraction(9, 125)}
    for value in (*finite, Fraction(1, 3), Fraction(1, 6), Fraction(5, 12), Fraction(2, 7)):
        assert terminates(value) == (value in finite)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2A_{16}", "42"),
        ("FF_{16}", "255"),
        ("1B_{12}", "23"),
        ("1C_{12}", None),  # C is twelve, which base twelve has no digit for
        ("2G_{16}", None),
        ("A_{12}", None),  # a name
        ("AB_{12}", None),
        ("12_{40}", None),
    ],
)
def test_a_digit_is_smaller_than_its_base(text: str, value: str | None) -> None:
    assert letter_numeral(text, 0) == (None if value is None else (value, len(text)))


@pytest.mark.parametrize(
    ("reference", "given", "expected"),
    [
        ("0, 2", r"1 \pm 2 \mp 3", Outcome.CORRECT),  # the lower sign goes the other way
        ("-4, 6", r"1 \pm 2 \mp 3", Outcome.WRONG),
        ("-4, 6", r"1 \pm 2 \pm 3", Outcome.CORRECT),
    ],
)
def test_plus_minus_and_minus_plus(reference: str, given: str, expected: Outcome) -> None:
    assert outcome(reference, given) is expected


@pytest.mark.parametrize(
    ("reference", "given", "expected"),
    [
        ("(0,1]", r"(0,2] \cap [0,1]", Outcome.CORRECT),
        ("[0,1]", r"(0,2] \cap [0,1]", Outcome.WRONG),
        ("[0,1)", r"[0,1] \cap [-1,1)", Outcome.CORRECT),
        ("[0,1]", r"[0,1] \cap [-1,1)", Outcome.WRONG),
        (r"[0,1] \cap [-1,1)", "[0,1)", Outcome.CORRECT),
    ],
)
def test_an_intersection_has_an_end_that_both_sets_have(
    reference: str, given: str, expected: Outcome
) -> None:
    assert outcome(reference, given, "interval") is expected


@pytest.mark.parametrize(
    ("reference", "given", "expected"),
    [
        (r"1.50 \times 10^3", "1503", Outcome.CORRECT),  # three digits: within half of ten
        (r"1.50 \times 10^3", "1506", Outcome.WRONG),
        (r"1.50 \times 10^{-3}", "0.001503", Outcome.CORRECT),
        (r"1.50 \times 10^{-3}", "0.0016", Outcome.WRONG),
    ],
)
def test_the_digits_of_a_power_of_ten(reference: str, given: str, expected: Outcome) -> None:
    assert outcome(reference, given) is expected


def test_boxes_far_from_each_other_are_two_answers() -> None:
    near, far = " " * 79 + ",", " " * 80 + ","
    assert joined(near)
    assert not joined(far)
    assert extract(f"\\boxed{{1}}{near}\\boxed{{2}}", "boxed") == "1, 2"
    assert extract(f"\\boxed{{1}}{far}\\boxed{{2}}", "boxed") == "2"


def test_of_options_that_read_alike_only_the_references_is_taken() -> None:
    options = ["4 ", "4", "5"]
    assert option_letter("5", options) == "C"
    assert option_letter("4", options) == option_letter("4", options, preferred="C") == "4"
    assert option_letter("4", options, preferred="B") == "B"


@pytest.mark.parametrize("point", ["(1,2)", "[1,2]", r"\langle 1,2 \rangle"])
def test_a_point_is_no_set(point: str) -> None:
    assert FiniteSet().parse(r"\{1,2\}").node is not None
    with pytest.raises(ParseError, match="expected a finite set"):
        FiniteSet().parse(point)


@pytest.mark.parametrize("text", ["So she has 42 apples. The answer is 42.", "It comes to 12 + 30 = 42"])
def test_a_reference_that_is_a_sentence_states_its_last_number(text: str) -> None:
    number = Number()
    assert number.equal(parse_stated(number, text), number.parse("42"))
    with pytest.raises(ParseError, match="expected one number"):
        number.parse(text)
