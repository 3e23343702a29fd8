"""The command line: `python -m verifiers ...`, as a process where that is what is tested."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from verifiers.__main__ import main
from verifiers.tools.audit import wilson


def run(
    *arguments: str, stdin: str | bytes = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, "-m", "verifiers", *arguments], input=data, capture_output=True, cwd=cwd, timeout=120
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def called(
    *arguments: str, stdin: str | bytes = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What `run` does, in this process."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(sys, "path", list(sys.path))
        if cwd is not None:
            patch.chdir(cwd)
        code = main(list(arguments))
    return subprocess.CompletedProcess(list(arguments), code, out.getvalue(), err.getvalue())


def judge(lines: list[str], *arguments: str) -> list[dict[str, object]]:
    done = called("judge", "--jobs", "1", *arguments, stdin="".join(line + "\n" for line in lines))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def line(record_id: object, answer: object, completion: str, **more: object) -> str:
    return json.dumps({"id": record_id, "answer": answer, "completion": completion} | more)


def test_judge_gives_one_line_for_each_in_order() -> None:
    lines = [line(i, str(i % 5), f"so \\boxed{{{i % 3}}}") for i in range(300)]
    verdicts = judge(lines)
    assert [v["id"] for v in verdicts] == list(range(300))
    assert [v["correct"] for v in verdicts] == [i % 5 == i % 3 for i in range(300)]
    assert {v["outcome"] for v in verdicts} == {"correct", "wrong"}
    assert [v["extracted"] for v in verdicts] == [str(i % 3) for i in range(300)]
    assert all(isinstance(v["seconds"], float) and 0 <= v["seconds"] < 5 for v in verdicts)


def test_judge_auto_takes_box_then_hashes_then_a_line_then_prose_then_the_bare_text() -> None:
    completions = [
        "The answer is 1.\nA: 2\n#### 3\n\\boxed{42}",
        "The answer is 1.\nA: 2\n#### 42",
        "The answer is 1.\nA: 42",
        "I added 40 and 2. The answer is 42.",
        "42",
    ]
    verdicts = judge([line(i, "42", c) for i, c in enumerate(completions)])
    assert [v["outcome"] for v in verdicts] == ["correct"] * 5


def test_judge_extract_and_type_apply_and_a_line_may_name_its_own() -> None:
    lines = [
        line("no box", "42", "#### 42"),
        line("box", "42", "\\boxed{42}"),
        line("own rule", "42", "#### 42", extract="gsm8k"),
        line("own type", "B", "\\boxed{(B)}", type="choice"),
        line("not a number", "B", "\\boxed{B}"),
    ]
    verdicts = judge(lines, "--extract", "boxed", "--type", "number")
    outcomes = [v["outcome"] for v in verdicts]
    assert outcomes == ["no_answer", "correct", "correct", "correct", "bad_reference"]
    assert [v["correct"] for v in verdicts] == [False, True, True, True, None]


def test_judge_makes_an_error_line_of_every_malformed_line() -> None:
    lines = [
        "not json",
        "",
        "[1, 2]",
        '{"id": 4, "answer": "42"}',
        '{"id": 5, "completion": "42"}',
        '{"id": 6, "answer": true, "completion": "42"}',
        '{"id": 7, "answer": "42", "completion": ["42"]}',
        line(8, "42", "42", type="nomber"),
        line(9, "42", "42", extract="boxd"),
        line(10, "B", "42", options="AB"),
        "[" * 100_000,
        line(12, 42, "42"),
    ]
    verdicts = judge(lines)
    assert [v["id"] for v in verdicts] == [None, None, None, 4, 5, 6, 7, 8, 9, 10, None, 12]
    assert [v["outcome"] for v in verdicts] == ["error"] * 11 + ["correct"]
    assert all(v["correct"] is None and v["extracted"] is None for v in verdicts[:-1])
    details = [str(v.get("detail")) for v in verdicts]
    for number, word in enumerate(["JSON", "JSON", "object", "completion", "answer", "answer", "completion"]):
        assert f"line {number + 1}" in details[number]
        assert word in details[number]
    assert "number" in details[7]
    assert "boxed" in details[8]


def test_judge_survives_broken_text() -> None:
    raw = (
        b'{"id": 1, "answer": "42", "completion": "\xff\xfe"}\n'
        + line(2, "42", "\ud800 \\boxed{42}").encode()
    )
    done = run("judge", "--jobs", "1", stdin=raw)
    first, second = (json.loads(text) for text in done.stdout.splitlines())
    assert (first["outcome"], second["outcome"]) == ("error", "correct")


def test_judge_stops_quietly_when_its_reader_leaves() -> None:
    lines = "".join(line(i, "42", "\\boxed{42}") + "\n" for i in range(5_000))
    command = f"{sys.executable} -m verifiers judge --jobs 1 | head -n 2"
    done = subprocess.run(command, shell=True, input=lines, capture_output=True, text=True, timeout=120)
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["judge", "--type", "nomber"], ["nomber", "number"]),
        (["judge", "--extract", "boxd"], ["boxd"]),
        (["judge", "--jobs", "0"], ["num_workers", "0"]),
        (["judge", "--timeout-s", "-1"], ["timeout_s", "-1"]),
        (["audit", "absent.jsonl"], ["absent.jsonl", "No such file"]),
        (["check", "absent:Class", "absent.jsonl"], ["absent:Class"]),
        (["new", "two words"], ["two words"]),
        (["new", "number"], ["number", "already"]),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    done = called(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words)
    assert list(tmp_path.iterdir()) == []


def test_types_lists_what_is_registered() -> None:
    listed = [text.split()[0] for text in called("types").stdout.splitlines()]
    assert {"auto", "number", "choice", "text", "boolean"} <= set(listed)
    assert listed == sorted(listed)


def test_audit_counts_agreement_by_type_and_names_each_disagreement(tmp_path: Path) -> None:
    labelled = tmp_path / "labelled.jsonl"
    records = [
        line("a", "42", "\\boxed{42}", expected=True, type="number"),
        line("b", "42", "\\boxed{43}", expected=False, type="number"),
        line("c", "42", "\\boxed{42}", expected=False, type="number"),
        line("d", "42", "\\boxed{43}", expected="correct", type="number"),
        line("e", "42", "\\boxed{42", expected="no_answer", type="number"),
        line("f", "B", "\\boxed{B}", expected="correct", type="choice"),
        line("g", "B", "\\boxed{B}"),
        "junk",
        line("i", "B", "\\boxed{B}", expected="right"),
    ]
    labelled.write_text("".join(record + "\n" for record in records))
    done = called("audit", str(labelled), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    table = {text.split()[0]: text for text in done.stdout.splitlines()[:4]}
    assert "3/5 = 60.00 % [23.07, 88.24]" in table["number"]
    assert "1/3 = 33.33 % [6.15, 79.23]" in table["number"]
    assert "1/2 = 50.00 % [9.45, 90.55]" in table["number"]
    assert "1/1 = 100.00 % [20.65, 100.00]" in table["choice"]
    assert table["all"].split()[1] == "6"
    assert "verdicts/s" in done.stdout
    disagreements = [text for text in done.stdout.splitlines() if ": expected " in text]
    assert [text[0] for text in disagreements] == ["c", "d"]
    assert done.stdout.count("not counted:") == 3


def test_wilson_interval_matches_the_published_example() -> None:
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for successes, trials, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
