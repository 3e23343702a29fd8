"""Rows come back as they were written, whatever text they hold and wherever a kill has cut the file."""

import json

import pytest

from mathrl.errors import UserError
from mathrl.run.json_lines import append_rows, keep_rows, read_rows, to_line

SEPARATORS = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\rh\ni"  # where str.splitlines would tear a row apart


def test_text_with_any_separator_of_unicode_is_one_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": SEPARATORS, "n": 1}, {"text": "½ → ∞ 😀", "n": 2}]
    append_rows(file, rows[:1])
    append_rows(file, rows[1:])
    append_rows(file, [])
    assert list(read_rows(file)) == [(1, rows[0]), (2, rows[1])]
    keep_rows(file, lambda row: row["n"] > 1)
    assert list(read_rows(file)) == [(1, rows[1])]


def test_half_a_surrogate_pair_is_written_as_json_can_hold_it(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = json.loads('{"text": "\\ud83d alone"}')
    append_rows(file, [row])
    assert json.loads(file.read_text()) == row


@pytest.mark.parametrize("cut", range(1, len(to_line({"text": "½ 😀"}))))
def test_a_kill_anywhere_in_a_row_loses_that_row_alone(tmp_path, cut):
    file = tmp_path / "rows.jsonl"
    first, second = {"text": SEPARATORS}, {"text": "½ 😀"}
    file.write_bytes(to_line(first) + to_line(second)[:cut])
    assert list(read_rows(file, growing=True)) == [(1, first)]
    keep_rows(file, lambda row: True)
    assert file.read_bytes() == to_line(first)


def test_a_file_of_others_may_end_without_a_line_feed_and_begin_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": 2}')
    assert list(read_rows(file)) == [(1, {"a": 1}), (3, {"a": 2})]


def test_bytes_that_are_no_text_are_read_as_such_and_end_nothing(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"text": "a\xff\xc2"}\n{"text": "b"}\n')
    assert list(read_rows(file)) == [(1, {"text": "a\ufffd\ufffd"}), (2, {"text": "b"})]
    file.write_text(r'{"text": "a\ud800b\udc00", "\ud800": "\ud83d\ude00 \\ud800", "n": [1e400, NaN]}')
    ((_, row),) = read_rows(file)  # halves of surrogate pairs, which no file and no tokenizer takes
    assert list(row.items())[:2] == [("text", "a\ufffdb\ufffd"), ("\ufffd", "\U0001f600 \\ud800")]


def test_what_is_no_row_is_named_by_its_line(tmp_path):
    file = tmp_path / "rows.jsonl"
    for content, said in (
        (b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
        (b"[1]\n", "line 1: not a JSON object"),
        (b'{"a": 1}\n{"a"', "line 2: not JSON"),  # not of a growing file
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=said):
            list(read_rows(file))
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        list(read_rows(tmp_path / "none.jsonl"))
    keep_rows(tmp_path / "none.jsonl", lambda row: True)
    assert not (tmp_path / "none.jsonl").exists()
