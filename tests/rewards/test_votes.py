"""Which answers are one: by what they say, both ways round, and within a bound."""

from dataclasses import astuple

import pytest

from mathrl.rewards import votes
from mathrl.rewards.votes import same_answers
from mathrl.types import Problem
from verifiers import Outcome, Verdict, verify
from verifiers.pool.pool import Request


class Counted:
    """Judges in this process, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def __call__(self, requests: list[Request]) -> list[Verdict]:
        self.asked += requests
        return [verify(*astuple(request)) for request in requests]


def problem(answer_type: str = "auto", **fields) -> Problem:
    return Problem("p", "?", "77", answer_type, **fields)


@pytest.mark.parametrize(
    ("answer_type", "texts", "first"),
    [
        ("auto", ["1/2", "3", "0.5", "\\frac{1}{2}", "3.0"], [0, 1, 0, 0, 1]),
        ("number", ["1,000", "1000", "1 000", "100"], [0, 0, 0, 3]),
        ("auto", ["(1, 2)", "12", "(1,2)", "1, 2"], [0, 1, 0, 0]),  # a pair is no number
        ("auto", ["x+1", "1+x", "x-1"], [0, 0, 2]),
        ("auto", ["25%", "25", "0.25"], [0, 1, 0]),  # 25% as a reference forgives the sign, 25 does not
        ("number", ["0.33", "1/3"], [0, 1]),  # nor is a number its rounding
        ("auto", ["7"], [0]),
        ("auto", [], []),
    ],
)
def test_answers_are_one_where_each_is_right_for_the_other(answer_type, texts, first) -> None:
    assert same_answers(Counted(), [(problem(answer_type), texts)]) == [first]


def test_answers_in_percent_are_one_where_a_percentage_is_asked_for() -> None:
    asked = Problem("p", "What percentage of them are roses?", "77", "number")
    assert same_answers(Counted(), [(asked, ["75%", "75", "75.0", "0.75", "74"])]) == [[0, 0, 0, 0, 4]]


def test_problems_are_asked_together_and_apart() -> None:
    judge = Counted()
    options = ("ten", "twelve", "fifteen")
    asked = [
        (problem(), ["1/2", "0.5"]),
        (problem("choice", options=options), ["A", "(A)", "ten", "B"]),
        (problem(), ["8", "1/2"]),
    ]
    assert same_answers(judge, asked) == [[0, 0], [0, 0, 0, 3], [0, 1]]
    # a pair is asked the other way round only where it was right the first way
    assert len(judge.asked) == 2 + (3 + 2) + 1


def test_the_number_of_comparisons_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(votes, "MAX_COMPARISONS", 12)
    texts = [str(n) for n in range(9)] + ["0.0", "8.0"]
    judge = Counted()
    (first,) = same_answers(judge, [(problem("number"), texts)])
    assert len(judge.asked) == 12 + 1  # ten for the first, two of the next; one more was asked backwards
    assert first == [
        *range(9),
        0,
        10,
    ]  # the commonest is compared with all, the rarest go by their text
    judge = Counted()
    same_answers(judge, [(problem("number"), [str(n) for n in range(5)])])
    assert len(judge.asked) == 4 + 3 + 2 + 1


def test_what_cannot_be_judged_is_like_nothing_else() -> None:
    def judge(requests: list[Request]) -> list[Verdict]:
        return [Verdict(Outcome.TIMEOUT) for _ in requests]

    assert same_answers(judge, [(problem(), ["1", "2", "1"])]) == [[0, 1, 2]]
    assert same_answers(Counted(), [(problem("number"), ["x y", "}{"])]) == [[0, 1]]
