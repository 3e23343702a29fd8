"""Generated word problems: every shown equation holds, and the two sides never meet."""

import json
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathrl.cli import main
from mathrl.data import wordproblems
from mathrl.data.wordproblems import generate_drills, generate_problems
from mathrl.errors import UserError

COMPUTE = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


def assert_exact(problem, max_operand):
    """Recompute the worked solution with fractions from the numbers of the question alone."""
    numbers = [Fraction(n) for n in re.findall(r"\d+", problem.question)]
    *equations, last = problem.solution.split("\n")
    assert len(numbers) == len(equations) + 1 == problem.meta["num_steps"] + 1
    total = numbers[0]
    for equation, operand, op in zip(equations, numbers[1:], problem.meta["operations"], strict=True):
        left, shown_op, right, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", equation).groups()
        assert (Fraction(left), shown_op, Fraction(right)) == (total, op, operand)
        total = COMPUTE[op](total, operand)
        assert total == Fraction(result)
        assert 1 <= total <= 10 * max_operand
        assert 2 <= operand <= (max_operand if op in "+-" else 3)
    assert last == f"#### {total}"
    assert problem.answer == str(total)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    unseen=st.booleans(),
    side=st.sampled_from(["train", "held_out"]),
    max_operand=st.sampled_from([2, 5, 10, 99]),
    steps=st.sampled_from([(1, 1), (1, 2), (2, 3), (3, 3)]),
)
def test_worked_solutions_are_exact(seed, unseen, side, max_operand, steps):
    low, high = steps
    problems = generate_problems(
        6, seed, side=side, unseen_templates=unseen, min_steps=low, max_steps=high, max_operand=max_operand
    )
    for problem in problems:
        assert_exact(problem, max_operand)
    counts = Counter(p.meta["num_steps"] for p in problems)
    assert counts == dict.fromkeys(range(low, high + 1), 6 // (high - low + 1))


def test_drills_are_exact_and_have_no_story():
    drills = generate_drills(60, 3)
    for drill in drills:
        assert_exact(drill, 10)
    assert {d.meta["template"] for d in drills} == {"drill"}
    assert {d.meta["num_steps"] for d in drills} == {1, 2, 3}


def test_sides_never_meet_whatever_the_seeds():
    trained = {p.question for seed in range(3) for p in generate_problems(2000, seed)}
    held_out = {p.question for seed in range(3) for p in generate_problems(500, seed, side="held_out")}
    assert len(held_out) > 1000
    assert not trained & held_out

    # the numbers of a held-out problem are new for its template, not only the names in it
    def story(p):
        return (p.meta["template"], p.solution)

    trained_stories = {story(p) for p in generate_problems(4000, 0)}
    assert not trained_stories & {story(p) for p in generate_problems(500, 0, side="held_out")}


def test_same_seed_same_problems():
    assert generate_problems(50, 7) == generate_problems(50, 7)
    assert generate_problems(50, 7) != generate_problems(50, 8)
    problems = generate_problems(3000, 1)
    assert len({p.question for p in problems}) == len({p.id for p in problems}) == 3000


def test_unseen_templates_are_new_stories_in_known_words():
    unseen = generate_problems(600, 0, side="held_out", unseen_templates=True)
    seen = generate_problems(2000, 0)
    names = [{re.match(r"[a-z]+", p.meta["template"])[0] for p in ps} for ps in (seen, unseen)]
    assert not names[0] & names[1]
    sentences = [
        {re.sub(r"\d+", "N", s) for p in problems for s in p.question.split(". ")}
        for problems in (seen, unseen)
    ]
    assert len(sentences[1] - sentences[0]) > 0.9 * len(sentences[1])
    words = set(re.findall(r"[A-Za-z]+", " ".join(wordproblems.corpus())))
    assert not set(re.findall(r"[A-Za-z]+", " ".join(p.question for p in unseen))) - words


def test_asking_for_more_than_there_are_is_told(monkeypatch):
    bus = tuple(scene for scene in wordproblems.SEEN if scene.name == "bus")
    monkeypatch.setattr(wordproblems, "SEEN", bus)  # the only story without names
    with pytest.raises(UserError, match=r"only \d+ different word problems were found of 5000"):
        generate_problems(5000, 0, max_steps=1)


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text("mine")
    assert main(["generate-problems", "--n", "3", "--out", str(path)]) == 2
    assert f"{path} exists: choose another --out, or replace it with --overwrite" in capsys.readouterr().err
    assert path.read_text() == "mine"
    assert main(["generate-problems", "--n", "3", "--out", str(path), "--overwrite"]) == 0
    assert path.read_text().count("\n") == 3


def test_written_problems_load_again(tmp_path, capsys):
    path = tmp_path / "new" / "folders" / "problems.jsonl"
    words = ["generate-problems", "--n", "30", "--seed", "5", "--out", str(path)]
    assert main([*words, "--max-steps", "2"]) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    expected = generate_problems(30, 5, max_steps=2)
    assert [(r["question"], r["answer"], r["solution"], r["num_steps"]) for r in rows] == [
        (p.question, p.answer, p.solution, p.meta["num_steps"]) for p in expected
    ]
    assert main([*words, "--min-steps", "3", "--max-steps", "2", "--overwrite"]) == 2
    assert "min-steps <= max-steps" in capsys.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == ["problems.jsonl"]
