"""JSON and CSV as they were written: no column moves, no value becomes another one."""

import json

import pytest

from mathrl.data.fields import list_in
from mathrl.data.in_memory import write_rows
from mathrl.data.source import read_file
from mathrl.errors import UserError


def rows(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path)


def lines(*objects):
    return "\n".join(map(json.dumps, objects))


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (["72", "-3", ""], [72, -3, None]),
        (["1", "2.5"], [1, 2.5]),
        (["12345678901234567890123", ""], [12345678901234567890123, None]),
        (["007", "1"], ["007", "1"]),
        (["2.50", "1"], ["2.50", "1"]),
        (["1e5", "NA", "nan"], ["1e5", "NA", "nan"]),
        (["2024-01-05"], ["2024-01-05"]),
        ([*map(str, range(20_000)), "1/2"], [*map(str, range(20_000)), "1/2"]),
    ],
)
def test_cells_of_csv_are_numbers_where_these_say_all_that_was_written(tmp_path, answers, found):
    text = "question,answer\n" + "".join(f"What is q{i}?,{a}\n" for i, a in enumerate(answers))
    assert [row["answer"] for row in rows(tmp_path, "a.csv", text)] == found


@pytest.mark.parametrize(
    "text",
    [
        'question,answer\n"Tom has 3, and 4 ""more""\nthings",7\n',
        '\ufeffquestion, answer\r\n"Tom has 3, and 4 ""more""\nthings", 7\r\n\r\n',
        'question,answer\n"Tom has 3, and 4 ""more""\nthings",7,\n',
    ],
)
def test_quotes_blanks_and_a_comma_at_the_end(tmp_path, text):
    assert rows(tmp_path, "a.csv", text) == [{"question": 'Tom has 3, and 4 "more"\nthings', "answer": 7}]


def test_a_separator_inside_of_a_text_ends_no_row(tmp_path):
    assert rows(tmp_path, "a.csv", "question,answer\nof a\u2028page\x0c,1\n") == [
        {"question": "of a\u2028page\x0c", "answer": 1}
    ]
    text = json.dumps({"question": "of a\u2028page", "answer": 1}, ensure_ascii=False)
    assert rows(tmp_path, "a.jsonl", text)[0]["question"] == "of a\u2028page"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        # a table of columns takes the first half of each question for the row's name
        ("a.csv", "question,answer\nTom has 3, and 4 more?,7\n", "row 1 has 3 fields and the header 2: put"),
        ("a.csv", "question,answer\nq,1\nTom has 3, and 4?,7\n", "row 2 has 3 fields and the header 2"),
        ("a.csv", 'question,answer\nq,1\n"open,2\n', "line 3: unexpected end of data"),
        ("a.csv", "question;answer\nq;1\n", "parted by ';': part them by commas"),
        ("a.csv", "question,answer,answer\nq,1,2\n", "two columns are named 'answer'"),
        ("a.csv", "question,answer\n", "holds no rows"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.jsonl", b"caf\xe9", "not UTF-8 text \\(byte 0xe9 at 3\\)"),
        ("a.jsonl", '{"question": 1}\n{"question"', "line 2: Expecting"),
        ("a.json", '[{"question": 1},\n{"question"]', "Expecting ':'"),
        ("a.json", "[1, 2]", "row 1 is 1, not an object"),
        ("a.json", '[["q", 1], {"question": 1}]', "mixes lists with other rows"),
    ],
)
def test_what_is_no_file_of_rows_is_told_in_a_sentence(tmp_path, name, text, words):
    with pytest.raises(UserError, match=words) as told:
        rows(tmp_path, name, text)
    assert "\n" not in str(told.value)


def test_half_a_character_is_read_as_a_sign_for_it_wherever_it_comes_from(tmp_path):
    told = {"question": "What \ud800 is 1?", "answer": ["1", "\ude00"], "deep": {"a": "\ud83d\ude00"}}
    read = {"question": "What \ufffd is 1?", "answer": ["1", "\ufffd"], "deep": {"a": "\U0001f600"}}
    assert rows(tmp_path, "a.jsonl", json.dumps(told)) == [read]
    assert rows(tmp_path, "a.json", json.dumps([told], indent=1)) == [read]
    assert read_file(write_rows([told], tmp_path)) == [read]
    assert list_in(r'["1", "\ude00"]') == read["answer"]


def test_a_parquet_file_without_rows_is_told_as_such(tmp_path):
    import pandas

    pandas.DataFrame({"question": [], "answer": []}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet holds no rows"):
        read_file(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "answers",
    [
        [12345678901234567890123, 2.5],  # no digit is lost
        ["2024-01-05", "2024-02-05"],  # no text becomes a date
        [*range(1000), "1/2"],
        [["5"], "1/2", None],
    ],
)
def test_values_of_json_stay_what_they_are(tmp_path, answers):
    objects = [{"question": f"q{i}", "answer": a} for i, a in enumerate(answers)]
    texts = {
        "a.jsonl": lines(*objects),
        "a.json": json.dumps(objects),
        "b.json": json.dumps(objects, indent=1),
    }
    for name, text in texts.items():
        found = [row["answer"] for row in rows(tmp_path, name, text)]
        assert found == answers
        assert [*map(type, found)] == [*map(type, answers)]


def test_rows_have_the_fields_of_all_also_inside_of_objects(tmp_path):
    text = lines({"q": 1, "m": {"a": 1}}, {"m": None, "q": 2}, {"m": {"b": {"c": 2}}, "level": 3})
    assert rows(tmp_path, "a.jsonl", text) == [
        {"q": 1, "m": {"a": 1, "b": None}, "level": None},
        {"q": 2, "m": None, "level": None},
        {"q": None, "m": {"a": None, "b": {"c": 2}}, "level": 3},
    ]
    many = [{"m": {f"id{i}": i}} for i in range(300)]  # keys that are data
    assert rows(tmp_path, "b.jsonl", lines(*many)) == many
