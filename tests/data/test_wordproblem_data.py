"""What supervised training on word problems is made of: every generated solution is right and complete."""

from __future__ import annotations

import json
import random
import re
import sys
from fractions import Fraction
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # last: a file there is named verifiers

from wordproblems_baselines import ahead, first_minus_second, nearest_equation
from wordproblems_gpu import generate_sums, reached
from wordproblems_renumbered import Worked, renumber
from wordproblems_stories import Vocabulary, generate_stories, read_stories, spaced, tell

EQUATION = re.compile(r"(-?[\d.]+)([-+*/])(-?[\d.]+)=(-?[\d.]+)")
STORIES = read_stories()


def value(left: str, op: str, right: str) -> Fraction:
    a, b = Fraction(left), Fraction(right)
    return {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else Fraction(-1)}[op]


def assert_worked(lines: list[str], answer: str) -> None:
    for line in lines:
        match = EQUATION.fullmatch(line)
        assert match, line
        assert value(*match.groups()[:3]) == Fraction(match[4])
    assert lines[-1].endswith(f"={answer}")


@pytest.mark.parametrize("story", STORIES, ids=range(len(STORIES)))
def test_every_story_can_be_told_and_is_worked_right(story):
    rng, told = random.Random(0), []
    for _ in range(2000):
        found = tell(story, rng, Vocabulary.of(()))
        if found:
            told.append(found)
            if len(told) == 20:
                break
    assert len(told) == 20
    for question, lines, answer in told:
        assert not re.search(r"[][{}~|]", question), question
        assert question.endswith(("?", "."))
        assert len(lines) == len(story.equations)
        assert_worked(lines, answer)
        assert Fraction(answer) >= 0
        assert "--" not in "".join(lines)


def test_stories_are_different_and_the_seed_decides():
    problems = generate_stories(500, 3)
    assert len({p.question for p in problems}) == 500
    assert problems == generate_stories(500, 3)
    assert problems != generate_stories(500, 4)
    used = Vocabulary.of(["Zork has 7 gizmos.", "Zork had 3 gizmos and a boat."])
    assert "Zork" in used.names
    assert "gizmos" in used.things
    assert any("gizmos" in p.question for p in generate_stories(3000, 0, used))


def test_sums_are_right():
    for problem in generate_sums(2000, 1):
        line, _, answer = (problem.solution or "").partition("\n#### ")
        assert_worked([line], answer)
        assert answer == problem.answer


def test_spaces_before_punctuation_spare_decimals():
    assert spaced("It cost $1,250.50, all in all. Why?") == "It cost $1,250.50 , all in all . Why ?"


SHOP = Worked(
    "Ann buys 4 pens at $1.50 each and twice as many books for 1,200 cents. She pays 5% tax. What now?",
    ("4*1.50=6", "6*100=600", "600+1200=1800"),
    "1800",
)


def test_other_numbers_go_through_the_same_calculations():
    found = renumber(SHOP, 20, 0)
    assert len(found) == 20
    for new in found:
        pens, price, cents = re.search(
            r"buys (\S+) pens at \$(\S+) each .* for (\S+) cents", new.question
        ).groups()
        assert "twice as many" in new.question
        assert "5% tax" in new.question
        assert new.equations[0].startswith(f"{pens}*{price}=")
        assert new.equations[1].endswith(f"={int(new.answer) - int(cents.replace(',', ''))}")
        assert new.equations[2].split("+")[1] == f"{cents.replace(',', '')}={new.answer}"
        assert_worked(list(new.equations), new.answer)
    assert renumber(SHOP, 20, 0) == found
    assert renumber(SHOP, 20, 1) != found


@pytest.mark.parametrize(
    ("question", "equations", "answer"),
    [
        ("A box has 6 pens. Two boxes and 2 pens?", ("6*2=12", "12+2=14"), "14"),  # which 2?
        ("A box has 6 pens, and 3 boxes and 18 more?", ("6*3=18", "18+18=36"), "36"),  # which 18?
        ("Of 20 pens 1/4 are red, and 4 are blue?", ("20/4=5", "5+4=9"), "9"),  # which 4?
        ("He had 20 pens and lost some?", ("20-5=15",), "15"),  # where does 5 come from?
        ("He had 20 pens and 5 cups?", ("20+5=26",), "26"),  # a slip
        ("He had 20 pens and 5 cups?", ("20+5=25",), "24"),  # not what was asked
        ("He had 20 pens and 5 cups?", ("20 pens+5=25",), "25"),  # more than numbers
        ("He had some pens?", ("1+1=2",), "2"),  # nothing to change
    ],
)
def test_what_cannot_be_read_for_sure_is_left_alone(question, equations, answer):
    assert renumber(Worked(question, equations, answer), 5, 0) == []


def asked(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


TAUGHT = [
    asked("Ann had 3 red pens and bought 4 pens. How many pens now?", "7"),
    asked("Each of 5 boxes holds 6 plums. How many plums in the boxes?", "30"),
]
HELD_OUT = [
    asked("Bob had 9 red pens and bought 2 pens. How many pens now?", "11"),
    asked("Each of 7 boxes holds 8 nuts. How many nuts in the boxes?", "56"),
    asked("Tom had 9 cups and lost 2 cups. How many cups now?", "7"),
    asked("Nobody had anything. How many?", "0"),
]


def test_baselines_take_the_nearest_questions_equation_or_the_difference():
    assert nearest_equation(TAUGHT, HELD_OUT) == [True, True, False, False]
    assert first_minus_second(HELD_OUT) == [False, False, True, False]


def test_greedy_answers_are_paired_with_the_baselines_by_question(tmp_path):
    (tmp_path / "mawps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HELD_OUT))
    answers = [
        {"kind": "header"},
        *({"kind": "greedy", "question": row["question"], "outcome": "correct"} for row in HELD_OUT[:0:-1]),
        {"kind": "greedy", "question": HELD_OUT[0]["question"], "outcome": "wrong"},
        {"kind": "sample", "question": HELD_OUT[0]["question"], "outcome": "correct"},
    ]
    file = tmp_path / "completions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in answers))
    found = ahead(tmp_path, "mawps", [True, False, False, False], file)
    assert found["difference"] == (3 - 1) / 4
    low, high = found["ci95"]
    assert low < 0.5 < high


def test_the_first_look_at_the_target_is_timed():
    looks = [
        {"step": 10.0 * i, "seconds": 9.0 * i, "accuracy": a} for i, a in enumerate((0.5, 0.6, 0.5, 0.7))
    ]
    assert reached(looks) == looks[1]
    assert reached(looks[:1]) is None
