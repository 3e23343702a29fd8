"""The rule book: each rule stands once, and what is changed there changes on every path."""

from __future__ import annotations

import inspect
import subprocess
import sys
from fractions import Fraction

import pytest

from verifiers import Outcome, policy, verify


def accepts(reference: str, given: str) -> bool:
    return verify(f"\\boxed{{{given}}}", reference).outcome is Outcome.CORRECT


FORMS = ["25", "\\frac{50}{2}", "x = 25", "5^2"]
"""One number by the fast path and by the full one."""


def test_the_percent_rule_stands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [accepts("25\\%", form) for form in FORMS] == [True] * 4

    def strict(reference: bool, given: bool, share: bool) -> tuple[tuple[Fraction, Fraction, bool], ...]:
        return ((Fraction(1), Fraction(1), True),) if reference == given else ()

    monkeypatch.setattr(policy, "percent_readings", strict)
    assert [accepts("25\\%", form) for form in FORMS] == [False] * 4
    assert accepts("25\\%", "25\\%")


def test_the_rounding_rule_stands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    forms = ["3.1416", "\\frac{31416}{10000}", "3.1416 \\text{ cm}"]
    assert [accepts("3.142", form) for form in forms] == [True] * 3
    monkeypatch.setattr(policy, "within_own_digits", lambda ours, _d, theirs, _t: ours == theirs)
    assert [accepts("3.142", form) for form in forms] == [False] * 3


def test_the_unit_rule_stands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("4 \\text{ m}", "4"), ("(4 \\text{ m}, 1)", "(4, 1)"), ("x = 4 \\text{ m}", "4")]
    assert [accepts(*pair) for pair in pairs] == [True] * 3
    monkeypatch.setattr(policy, "unit_factor", lambda ours, theirs: Fraction(1) if ours == theirs else None)
    assert [accepts(*pair) for pair in pairs] == [False] * 3


@pytest.mark.parametrize(
    ("reference", "given", "expected"),
    [
        ("33.3\\%", "33.33", True),  # a bare number as a percentage, rounded as any other
        ("33.3\\%", "33.44", False),
        ("33.3\\%", "\\frac{3333}{100}", True),
        ("33.3\\%", "\\frac{3344}{100}", False),
        ("33.3\\%", "0.333", True),
        ("33.3\\%", "0.3333", False),  # the share is exact: 33.3% is no rounded 0.3333
        ("0.5", "50\\%", True),
        ("5", "500\\%", False),
        ("5", "5\\%", False),
        ("\\$5", "5\\%", False),
        ("5\\%", "\\$5", False),
    ],
)
def test_percentages(reference: str, given: str, expected: bool) -> None:
    assert accepts(reference, given) is expected


@pytest.mark.parametrize(
    ("question", "asks"),
    [
        ("There are 3 roses and 5 tulips. What percentage of the flowers are roses?", True),
        ("If he won 63% of 200 games, what is his new win percentage?", True),
        ("By how many percent did the price rise?", True),
        ("It cost $150 and is now $135. Find the percent increase. Round to the nearest integer.", True),
        ("How much is left? Give your answer as a percentage.", True),
        ("What is the probability, expressed\nas a percent, of a six?", True),
        ("What percent of 6.5 is 1.3?", True),
        ("What is 60 percent of 80?", False),
        ("What is twenty percent of 80?", False),
        ("It fell by 10 percent. How many are left?", False),
        ("What percentage did he pay? The rest was a gift. How many dollars was it?", False),
        ("What percentage is that, and how many dollars?", False),
        ("By how many percentage points did it rise?", False),
        ("What percent of the pie is left, as a fraction?", False),
        ("How many must they win so that their percentage of wins is 64%?", False),
        ("", False),
    ],
)
def test_questions_for_a_percentage(question: str, asks: bool) -> None:
    assert policy.asks_for_percent(question) is asks


def test_a_number_is_a_percentage_where_one_is_asked_for() -> None:
    asked = "What percentage of them are roses?"
    assert policy.as_asked("75", asked) == "75\\%"
    assert policy.as_asked(" 1,250.5 ", asked, "number") == "1,250.5\\%"
    for same in ("0.5", "1", "75%", "75 roses", "", "x"):  # 0.5 may be a share: 50 % meets it as it is
        assert policy.as_asked(same, asked) == same
    assert policy.as_asked("75", "How many are roses?") == "75"
    assert policy.as_asked("75", asked, "text") == "75"
    assert policy.as_asked("75", asked, "auto", ("70", "75")) == "75"
    given = ["75", "75\\%", "75 \\text{ percent}", "76\\%", "76", "7500\\%"]
    assert [accepts(policy.as_asked("75", asked), form) for form in given] == [True] * 3 + [False] * 3
    mixed = policy.as_asked("33\\frac{1}{3}", asked)
    assert [accepts(mixed, form) for form in ("33\\frac13\\%", "\\frac{100}{3}", "34\\%")] == [
        True,
        True,
        False,
    ]


def test_a_number_in_percent_is_none_without_percent() -> None:
    words = ("75 percent", "75 per cent of it", "75 pct", "75 apples", "75 percentage points")
    assert [verify(f"\\boxed{{{form}}}", "75", "number").correct for form in words] == [False] * 3 + [
        True
    ] * 2
    assert all(verify(f"\\boxed{{{form}}}", "75%", "number").correct for form in words)


def test_shares_are_small_either_way() -> None:
    values = [Fraction(-5), Fraction(-1), Fraction(1), Fraction(3, 2), None]
    assert [policy.is_share(value) for value in values] == [False, True, True, False, False]
    assert not accepts("-5", "-500\\%")


def test_a_zero_after_the_point_states_no_digit() -> None:
    assert [policy.stated_decimals(fraction) for fraction in ("", "0", "00", "5", "50")] == [
        None,
        None,
        2,
        1,
        2,
    ]
    assert accepts("18.0", "18")
    assert not accepts("18.0", "18.04")
    assert accepts("18.1", "18.14")


def test_brackets_mean_the_same_from_three_items_on() -> None:
    assert policy.order_counts("()", "[]", False, 3) is True
    assert policy.order_counts("()", "[]", False, 2) is None
    assert policy.order_counts("()", "langlerangle", False, 2) is True
    assert policy.order_counts("\\{\\}", "", False, 2) is False
    assert accepts("(1,2,3)", "[1,2,3]")
    assert not accepts("(1,2)", "[1,2]")


@pytest.mark.parametrize(
    ("reference", "given", "expected"),
    [
        ("yes", "yes it is", True),
        ("yes", "yes it is not", False),
        ("no", "no it is not", True),
        ("no", "yes it is", False),
        ("maybe", "yes it is", False),
    ],
)
def test_a_denial_after_yes_is_none(reference: str, given: str, expected: bool) -> None:
    assert policy.says_yes_or_no(reference, given) is expected


def test_every_rule_is_listed_and_says_one_sentence() -> None:
    listed = [rule for rules in policy.RULES.values() for rule in rules]
    public = [
        function
        for name, function in inspect.getmembers(policy, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == policy.__name__ and name != "rule_book"
    ]
    assert sorted(rule.__name__ for rule in listed) == sorted(function.__name__ for function in public)
    for rule in listed:
        assert (rule.__doc__ or "").partition("\n\n")[0].strip().endswith((".", ".\n")), rule.__name__
        assert len(inspect.getsource(rule).splitlines()) <= 30, rule.__name__


def test_the_command_prints_every_rule() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "verifiers", "policy"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == policy.rule_book().strip()
    for rules in policy.RULES.values():
        for rule in rules:
            assert rule.__name__ in done.stdout
    assert "p% is the number p/100" in done.stdout
