"""Problems of one place: where its rows went is told where too few are left or they do not fit."""

import pytest
from data_files import ROWS, load, write

from mathrl.config import Config, DataConfig
from mathrl.data.few_shot import draw_examples
from mathrl.data.problem_set import ProblemSet, check_enough, keep_fitting
from mathrl.data.problems import (
    NoSolutions,
    load_demonstrations,
    load_problems,
)
from mathrl.errors import UserError
from mathrl.types import Problem


def test_too_few_problems_are_told_with_where_the_rows_went(tmp_path):
    path = write(tmp_path / "sums.jsonl", [*ROWS, ROWS[0], {"question": "", "answer": "4", "level": 0}])
    found = load(path, where="level=0", eval_fraction=0.2, max_problems=15)
    num_held_out = len(load(path, "held_out", where="level=0", eval_fraction=0.2))
    assert (len(found), num_held_out) == (15, 7)
    account = (
        "of 52 rows (25 outside data.where level=0; 7 held out by data.eval_fraction 0.2; 3 over "
        "data.max_problems 15; 1 skipped, question asked before; 1 skipped, empty question)"
    )
    assert found.account() == account
    with pytest.raises(UserError) as error:
        check_enough(32, found)
    assert str(error.value) == (
        f"a step needs 32 different problems and there are 15 in sums.jsonl, {account}: lower "
        "rollout.problems_per_step or load more problems"
    )
    check_enough(15, found)
    assert ProblemSet("f", found.problems).account() == ""
    left = "no problem is left of sums.jsonl to "
    with pytest.raises(UserError, match=rf"{left}train on, of 52 rows .52 outside data.where level=7.$"):
        load(path, where="level=7")
    with pytest.raises(
        UserError, match=rf"{left}evaluate on, .*50 to train on by .* such as row 51: question"
    ):
        load(path, "held_out", eval_fraction=1e-6)
    generated = load_problems(DataConfig(num_train_problems=20, max_problems=12), "train", 0)
    with pytest.raises(UserError, match=r"12 .* of 20 rows .8 over data.max_problems 12.: .* or raise d"):
        check_enough(13, generated)


def test_what_the_supervised_stage_and_examples_take_is_told(tmp_path):
    rows = [row | {"answer": f"{row['answer']} is one more.\n#### {row['answer']}"} for row in ROWS]
    path = write(tmp_path / "solved.jsonl", rows)
    found = load(path, sft_fraction=0.4)
    taken, held_out = 50 - len(found) - len(load(path, "held_out")), len(load(path, "held_out"))
    assert f"{taken} the supervised stage's by data.sft_fraction 0.4" in found.account()
    config = Config.model_validate({"data": {"path": path, "sft_fraction": 0.4}})
    left = f"{len(found)} left to reinforcement by data.sft_fraction 0.4"
    assert left in load_demonstrations(config)[0].account()
    bare = write(tmp_path / "bare.jsonl", ROWS)
    with pytest.raises(NoSolutions, match=rf"of 50 rows .{50 - held_out} without a worked .*; {held_out} h"):
        load_demonstrations(Config.model_validate({"data": {"path": bare}}))
    with pytest.raises(UserError, match=rf"9 worked .* has 0, of 50 rows .{50 - held_out} without a work"):
        draw_examples(DataConfig(shots=9), load(bare), 0)


def test_a_part_of_a_mix_that_cannot_give_its_share_is_refused_with_where_its_rows_went(tmp_path):
    few = [{"question": f"What is {n} plus 2?", "answer": str(n + 2)} for n in range(6)]
    many, small = write(tmp_path / "many.jsonl", ROWS), write(tmp_path / "small.jsonl", [*few, few[0]])
    mix = [{"path": many}, {"path": small, "weight": 0.5}]
    found = load_problems(DataConfig(mix=mix, eval_fraction=0.3), "train", 0)
    there = sum(p.meta["part"] == "small" for p in found.problems)
    assert there < 6
    check_enough(3 * there, found)
    with pytest.raises(UserError) as error:
        check_enough(3 * there + 1, found)
    assert (
        f"'small' gives {round(there + 1 / 3, 1):g} of a step's {3 * there + 1} problems and has {there}, "
        in str(error.value)
    )
    gone = f"of 7 rows ({6 - there} held out by data.eval_fraction 0.3; 1 skipped, question asked before)"
    assert gone in str(error.value)
    none = [{"path": many}, {"path": many, "weight": 0.5}]
    found = load_problems(DataConfig(mix=none), "train", 0)
    with pytest.raises(UserError, match=r"no problem is left of 'many 2' in data.mix, of 50 rows .*: take i"):
        check_enough(3, found)


def test_problems_that_do_not_fit_are_skipped_up_to_as_many_as_are_wanted():
    problems = tuple(Problem(f"d/f/{row}", f"{row}?", "1") for row in (3, 5, 8, 9, 12))
    found = ProblemSet("f", problems)
    reasons = ["", "70 tokens", "", "80 tokens", ""]
    kept = keep_fitting(found, reasons, called="too long", skip=True, most=2)
    assert [p.id for p in kept.problems] == ["d/f/3", "d/f/8"]
    assert [(s.row, s.reason) for s in kept.skipped] == [(5, "too long")]  # the rest was not looked at
    whole = keep_fitting(found, reasons, called="too long", skip=True)
    assert len(whole) == 3
    assert [s.row for s in whole.skipped] == [5, 9]
    with pytest.raises(UserError, match="f, problem d/f/5: 70 tokens.*--data.skip_long_prompts"):
        keep_fitting(found, reasons, called="too long", skip=False)
    with pytest.raises(UserError, match="no problem is left of f: all are too long .9 tokens"):
        keep_fitting(found, ["9 tokens"] * 5, called="too long", skip=True)
