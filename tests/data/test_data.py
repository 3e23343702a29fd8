"""Data sets as problems: formats, fields, what is skipped, who is held out, the cursor, real files."""

import datetime
import json
from dataclasses import replace
from decimal import Decimal

import pytest
from data_files import ROWS, load, write

from mathrl.config import Config, DataConfig
from mathrl.data.fields import UnusableRow
from mathrl.data.in_memory import write_rows
from mathrl.data.problems import (
    DATASETS,
    DatasetRow,
    load_demonstrations,
    load_problems,
    make_problem,
)
from mathrl.data.source import read_file, rows_of
from mathrl.data.stream import ProblemStream
from mathrl.data.wordproblems import is_drill
from mathrl.errors import UserError
from mathrl.training.sft import load_examples
from mathrl.types import Problem


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_problems(ending, tmp_path):
    path = write(tmp_path / f"sums.{ending}", ROWS)
    both = [*load(path).problems, *load(path, "held_out").problems]
    assert {p.question: p.answer for p in both} == {row["question"]: row["answer"] for row in ROWS}


def test_fields_are_mapped_and_rows_filtered(tmp_path):
    rows = [{"task": row["question"], "gold": row["answer"], "level": row["level"]} for row in ROWS]
    path = write(tmp_path / "other.jsonl", rows)
    fields = {"question_field": "task", "answer_field": "gold", "where": "level=1"}
    found = [*load(path, **fields).problems, *load(path, "held_out", **fields).problems]
    assert {p.answer for p in found} == {str(n + 1) for n in range(50) if n % 2}
    assert {p.meta["level"] for p in found} == {1}


def test_what_is_skipped_is_counted_with_its_reason(tmp_path):
    bad = [
        {"question": "And now?", "answer": "no idea at all"},
        {"question": " what is 3  PLUS 1?", "answer": "4"},
        {"question": "", "answer": "4"},
        {"question": "How many?", "answer": "inf"},
    ]
    found = load(write(tmp_path / "mixed.jsonl", ROWS + bad), answer_type="number")
    reasons = {s.row: s.reason for s in found.skipped}
    assert set(reasons) == {51, 52, 53, 54}
    assert reasons[51] == reasons[54] == "no verifier reads the reference answer"
    assert reasons[52] == "question asked before"
    assert reasons[53] == "empty question"
    assert "skipped" in found.describe()


@pytest.mark.parametrize(
    ("ending", "missing"),
    [(e, m) for e in ("jsonl", "json", "csv", "parquet") for m in (None, "")]
    + [("jsonl", float("nan")), ("parquet", float("nan"))],
)
def test_an_answer_that_is_missing_is_skipped_and_counted(missing, ending, tmp_path):
    number = float if isinstance(missing, float) else str
    rows = [{"question": row["question"], "answer": number(row["answer"])} for row in ROWS]
    bad = [{"question": "And without?", "answer": missing}, {"question": "And again?", "answer": missing}]
    path = write(tmp_path / f"some.{ending}", rows[:7] + bad + rows[7:])
    found = load(path)
    assert [(s.row, s.reason) for s in found.skipped] == [(8, "empty answer"), (9, "empty answer")]
    assert "2 skipped, such as row 8: empty answer" in found.describe()
    assert len(found) + len(load(path, "held_out")) == len(ROWS)


def test_decimals_of_parquet_are_numbers(tmp_path):
    rows = [
        {"question": row["question"], "answer": Decimal(row["answer"]).scaleb(-1), "level": Decimal(2)}
        for row in ROWS
    ]
    path = write(tmp_path / "prices.parquet", rows)
    both = [p for role in ("train", "held_out") for p in load(path, role, where="level=2").problems]
    assert {p.answer for p in both} == {format((n + 1) / 10, "g") for n in range(50)}
    assert {p.meta["level"] for p in both} == {2}
    assert json.dumps([dict(p.meta) for p in both])


def test_32_bit_floats_of_tables_are_the_numbers_that_were_written(tmp_path):
    import datasets
    import pandas

    told = pandas.DataFrame({"question": ["How far?", "How much?"], "answer": [0.1, 16777216.0]})
    table = datasets.Dataset.from_pandas(told.astype({"answer": "float32"}))
    table = table.add_column("seen", [{"at": [0.7]}, {"at": []}])
    table = table.cast_column("seen", {"at": datasets.Sequence(datasets.Value("float32"))})
    table.to_parquet(tmp_path / "a.parquet")
    rows = read_file(tmp_path / "a.parquet")
    assert [(row["answer"], row["seen"]["at"]) for row in rows] == [(0.1, [0.7]), (16777216.0, [])]
    kept = read_file(write_rows(told.astype({"answer": "float32"}), tmp_path))
    assert [row["answer"] for row in kept] == [0.1, 16777216.0]
    assert read_file(write_rows(table, tmp_path)) == rows
    shape = datasets.Features({"at": datasets.Array2D((1, 2), "float32")})
    assert rows_of(datasets.Dataset.from_dict({"at": [[[0.1, 0.7]]]}, shape)) == [{"at": [[0.1, 0.7]]}]


def test_arrays_of_a_table_are_lists_of_answers(tmp_path):
    import pandas

    pandas.DataFrame({"question": ["Which?"], "answer": [["6", "7"]]}).to_parquet(tmp_path / "a.parquet")
    table = pandas.read_parquet(tmp_path / "a.parquet")  # pandas makes arrays of the lists
    assert read_file(write_rows(table, tmp_path))[0]["answer"] == ["6", "7"]


@pytest.mark.parametrize(
    ("options", "answer", "place"),
    [
        (["red", "blue", "green"], 0, True),
        (["red", "blue", "green"], "3", True),
        (["red", "blue", "green"], 4, False),
        (["10 km", "12 km", "20 km"], 2, True),  # an answer of 2 is none of these
        (["2 km", "3 km", "5 km"], 2, False),
        (["02", "1.5", "x"], 2, False),
        (["red", "blue"], "B", False),
        ([], 0, False),
    ],
)
def test_an_answer_that_counts_the_options_is_no_reference(options, answer, place):
    raw = {"question": "Which?", "options": options, "answer": answer}
    if place:
        with pytest.raises(UnusableRow, match=f"the answer {answer} is a place among the 3 options: give"):
            make_problem(DatasetRow("x"), raw, "row 1,", "x/1")
    else:
        assert make_problem(DatasetRow("x"), raw, "row 1,", "x/1").answer == str(answer)


def test_messages_are_asked_as_the_question_they_are(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": [system, {"role": "user", "content": row["question"]}], "answer": row["answer"]}
        for row in ROWS
    ]
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rows[3]["prompt"] = talk + rows[3]["prompt"][1:]
    for ending in ("jsonl", "parquet"):
        path = write(tmp_path / f"chats.{ending}", rows)
        train, held_out = (load(path, role, question_field="prompt") for role in ("train", "held_out"))
        asked = {p.question for p in (*train.problems, *held_out.problems)}
        assert asked == {row["question"] for i, row in enumerate(ROWS) if i != 3}
        assert {p.system_prompt for p in train.problems} == {"Be brief."}
        reason = "the question is a conversation of several turns"
        assert [(s.row, s.reason) for s in train.skipped] == [(4, reason)]
    path = write(tmp_path / "talks.jsonl", [rows[3]] * 3)
    with pytest.raises(
        UserError, match="3 of 3 rows make no problem .rows 1, 2, 3; row 1: .*several turns.*_field"
    ):
        load(path, question_field="prompt")


def test_references_that_are_only_words_are_counted_when_loaded(tmp_path):
    days = [{"question": f"On which day is {n}?", "answer": "Tuesday evening"} for n in range(3)]
    loaded = [load(write(tmp_path / "days.jsonl", ROWS + days), role) for role in ("train", "held_out")]
    counts = [sum(p.answer == "Tuesday evening" for p in found.problems) for found in loaded]
    assert sum(counts) == 3
    for found, count in zip(loaded, counts, strict=True):
        said = f"; {count} judged by their words alone, such as 'Tuesday evening'"
        assert (said in found.describe()) == (count > 0)
    assert "words" not in load(write(tmp_path / "sums.jsonl", ROWS)).describe()


@pytest.mark.parametrize(
    ("name", "raw", "answer", "answer_type"),
    [
        (
            "deepscaler",
            {"problem": "q?", "answer": ["1/2", "0.5"]},
            '["1/2", "0.5"]',
            "any_of",
        ),
        ("deepscaler", {"problem": "q?", "answer": ["1/2"]}, "1/2", "auto"),
        ("deepscaler", {"problem": "q?", "answer": 12.0}, "12", "auto"),
        (
            "olympiadbench",
            {"question": "q?", "final_answer": ["3", "5"], "is_multiple_answer": True, "solution": ["s"]},
            '["3", "5"]',
            "all_of",
        ),
        (
            "olympiadbench",
            {"question": "q?", "final_answer": ["3", "5"], "is_multiple_answer": "False"},
            '["3", "5"]',
            "any_of",
        ),
        ("theoremqa", {"Question": "q?", "Answer": True, "Answer_type": "bool"}, "True", "all_of"),
        ("theoremqa", {"Question": "q?", "Answer": [1, 2.5]}, '["1", "2.5"]', "all_of"),
        ("minerva_math", {"question": "q?", "answer": "x^2"}, "x^2", "auto"),
    ],
)
def test_references_that_are_lists_become_the_type_that_the_row_says(name, raw, answer, answer_type):
    problem = make_problem(DATASETS[name], raw, "row 1", "p")
    assert (problem.answer, problem.answer_type) == (answer, answer_type)
    assert problem.question == "q?"


def test_the_whole_row_goes_into_the_problem():
    raw = {"question": "q?", "answer": "3", "modulus": 7, "when": datetime.date(2026, 1, 2), "level": 2}
    kept = make_problem(DatasetRow("mine", answer_type="number"), raw, "row 1", "p")
    assert kept.row == raw | {"when": "2026-01-02"}


def test_held_out_problems_are_the_same_for_every_seed_and_never_trained_on(tmp_path):
    path = write(tmp_path / "sums.jsonl", ROWS)
    held_out = [load(path, "held_out", seed).problems for seed in (0, 1)]
    assert held_out[0] == held_out[1]
    train = {p.question for p in load(path).problems}
    assert len(train) + len(held_out[0]) == 50
    assert not train & {p.question for p in held_out[0]}
    test = write(tmp_path / "test.jsonl", ROWS[10:20])
    named = load(path, eval_path=test)
    assert len(named) == 40
    assert sum(s.reason == "asked in the held-out problems too" for s in named.skipped) == 10


def test_the_supervised_share_is_its_own(tmp_path):
    rows = [row | {"answer": f"{row['answer']} is one more.\n#### {row['answer']}"} for row in ROWS]
    path = write(tmp_path / "solved.jsonl", rows)
    config = Config.model_validate({"data": {"path": path, "sft_fraction": 0.4}})
    sft = {p.question for p in load_demonstrations(config)[0].problems}
    train = {p.question for p in load_problems(config.data, "train", 0).problems}
    assert 10 < len(sft) < 30
    assert not sft & train
    assert len(sft | train) + len(load_problems(config.data, "held_out", 0)) == 50


def test_generated_demonstrations_share_no_question_with_training_or_held_out():
    config = Config.model_validate(
        {"data": {"num_train_problems": 300}, "sft": {"num_problems": 400, "max_steps": 3}}
    )
    sft = {p.question for p in load_demonstrations(config)[0].problems}
    for role in ("train", "held_out", "held_out_templates"):
        found = load_problems(config.data, role, config.run.seed)
        assert found is not None
        assert not sft & {p.question for p in found.problems}


def test_other_problems_than_were_saved_begin_an_epoch_of_their_own():
    problems = [Problem(str(n), f"{n}?", "1") for n in range(10)]
    first = ProblemStream(problems, seed=3)
    first.take(8)
    state = json.loads(json.dumps(first.state()))
    corrected = [*problems[:9], replace(problems[9], answer="2")]
    for others in (problems[:6], [*problems, Problem("10", "10?", "1")], corrected, problems[::-1]):
        stream = ProblemStream(others, seed=3)
        stream.restore(state)
        assert stream.changed
        assert (stream.epoch, stream.position) == (1, 0)
        assert len({p.id for p in stream.take(6)}) == 6
    same = ProblemStream(list(problems), seed=3)
    same.restore(state)
    assert not same.changed
    del state["problems"]  # as it was saved before
    same.restore(state)
    assert (same.changed, same.epoch, same.position) == (False, 0, 8)


def test_the_cursor_goes_on_where_it_was_saved():
    problems = [Problem(str(n), f"{n}?", "1") for n in range(10)]
    whole = ProblemStream(problems, seed=3)
    taken = [[p.id for p in whole.take(4)] for _ in range(6)]  # two a pass; two of ten are passed over
    assert all(len(set(taken[i] + taken[i + 1])) == 8 for i in (0, 2, 4))
    assert taken[0] + taken[1] != taken[2] + taken[3]  # another order
    first = ProblemStream(problems, seed=3)
    for _ in range(3):
        first.take(4)
    second = ProblemStream(problems, seed=3)
    second.restore(json.loads(json.dumps(first.state())))
    assert [[p.id for p in second.take(4)] for _ in range(3)] == taken[3:]
    assert [p.id for p in ProblemStream(problems, seed=4).take(4)] != taken[0]
    with pytest.raises(UserError, match="11 different problems and there are 10"):
        first.take(11)


def test_references_that_are_only_words_are_counted_in_a_mix_on_either_side(tmp_path):
    days = [{"question": f"On which day is {n}?", "answer": "Tuesday evening"} for n in range(12)]
    path = write(tmp_path / "days.jsonl", ROWS + days)
    mix = DataConfig(mix=[{"path": path}], eval_fraction=0.5)
    found = [load_problems(mix, role, 0) for role in ("train", "held_out")]
    assert sum(len(side.words) for side in found) == 12
    assert all(side.words and side.words <= {p.id for p in side.problems} for side in found)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("", "empty.jsonl", ["empty.jsonl is empty"]),
        ("{broken\n", "broken.jsonl", ["broken.jsonl", "not a valid .jsonl"]),
        ("x", "table.xlsx", [".xlsx", ".jsonl"]),
        ('{"question": "1?", "reply": "1"}\n', "fields.jsonl", ["row 1", "'answer'", "question, reply"]),
        ('{"question": "Why?", "answer": null}\n', "null.jsonl", ["row 1", "'answer'"]),
    ],
)
def test_an_unusable_file_is_told_in_one_sentence(content, name, words, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        load(tmp_path / name)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(UserError, match=r"trian.jsonl does not exist.*'train.jsonl'"):
        load(tmp_path / "trian.jsonl")


def test_an_unknown_data_set_suggests_near_names():
    with pytest.raises(UserError, match="'gsm8'.*'gsm8k'"):
        load_problems(DataConfig(source="gsm8"), "train", 0)


@pytest.mark.parametrize(
    ("source", "file", "eval_file", "num", "num_held_out"),
    [
        ("gsm8k", "gsm8k/train.jsonl", "gsm8k/test.jsonl", 7473, 1319),
        ("svamp", "svamp/SVAMP.json", "", 907, 93),
        ("mawps", "mawps/multiarith.jsonl", "", 525, 55),
        ("mawps", "mawps/addsub.jsonl", "", 356, 39),
        ("mawps", "mawps/singleeq.jsonl", "", 459, 49),
        ("mawps", "mawps/singleop.jsonl", "", 483, 48),
        ("gsm_hard", "gsm_hard/gsmhardv2.jsonl", "", 1198, 121),
        ("aqua", "aqua/dev.json", "aqua/test.json", 254, 254),
    ],
)
def test_the_real_files_load_whole(data_dir, source, file, eval_file, num, num_held_out):
    fields = {"source": source, "eval_path": str(data_dir / eval_file) if eval_file else ""}
    train, held_out = (load(data_dir / file, role, **fields) for role in ("train", "held_out"))
    assert (len(train), len(held_out)) == (num, num_held_out)
    assert not any("verifier" in s.reason for s in train.skipped)


def test_gsm8k_rows_have_answer_and_solution_without_calculator_notes(data_dir):
    by_question = {p.question: p for p in load(data_dir / "gsm8k/train.jsonl", source="gsm8k").problems}
    natalia = next(p for q, p in by_question.items() if q.startswith("Natalia sold clips to 48"))
    assert natalia.answer == "72"
    assert natalia.solution is not None
    assert natalia.solution.endswith("#### 72")
    assert "<<" not in natalia.solution
    assert "48/2 = 24 clips" in natalia.solution


def test_longer_demonstrations_have_their_share():
    sft = {"num_problems": 200, "max_steps": 2, "longer_fraction": 0.1, "drill_fraction": 0.25}
    config = Config.model_validate({"data": {"num_train_problems": 20}, "sft": sft})
    problems = load_demonstrations(config)[0].problems
    stories = [p for p in problems if not is_drill(p)]
    assert sum(p.meta["num_steps"] == 3 for p in stories) == 15
    assert {p.meta["num_steps"] for p in load_demonstrations(config)[1].problems} == {1, 2}
    assert len(problems) - len(stories) == 50


def test_a_demonstration_longer_than_the_context_is_refused_or_left_out(tmp_path):
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(30)]
    rows[7]["answer"] = "So " * 80 + "\n#### 7"
    path = write(tmp_path / "solved.jsonl", rows)
    fields = {"data": {"path": path}, "model": {"context_length": 64, "vocab_size": 300}}
    with pytest.raises(UserError, match=r"solved.jsonl/8: \d+ tokens .* context of 64"):
        load_examples(Config.model_validate(fields))
    fields["data"]["skip_long_prompts"] = True
    found = load_examples(Config.model_validate(fields))
    assert [s.row for s in found.train.skipped] == [8]  # of the file, though demonstrations are shuffled
    assert all(e.num_tokens <= 64 for e in found.examples.values())
    assert len(found.examples) == len(found.train) > 20
