"""``mathrl judge``: saved completions of ours and of other tools, judged again without a model."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mathrl.cli import main
from mathrl.evaluation.completions import read_evaluation, write_evaluation
from mathrl.evaluation.paired import compare_evaluations
from mathrl.evaluation.protocol import EvaluationSettings, make_protocol
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.types import Problem

PROBLEMS = [Problem(f"sums/{i}", f"What is {i} + {i}?", str(2 * i), "number") for i in range(6)]
TEXTS = ["#### 0", "#### 2", "so 4", "#### 7", "#### two or three", "#### 10"]
OUTCOMES = ["correct", "correct", "no_answer", "wrong", "unparsed", "correct"]


def write(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ours(path: Path, outcomes: Sequence[str] = OUTCOMES) -> Evaluation:
    """An evaluation on disk, as ``mathrl eval`` leaves it."""
    settings = EvaluationSettings(9, num_samples=1, temperature=0.5)
    protocol = make_protocol(PROBLEMS, settings, extract="gsm8k")
    records = [
        Record(p, Judged(t, o, num_tokens=3, finish_reason="length"), (Judged("#### 0", "wrong", "0"),))
        for p, t, o in zip(PROBLEMS, TEXTS, outcomes, strict=True)
    ]
    evaluation = Evaluation("sums", tuple(records), protocol, seed=5, info={"model": "m"})
    write_evaluation(evaluation, path, {"resume_key": "made"})
    return evaluation


def judged(out: Path) -> Evaluation:
    return read_evaluation(out)


def test_our_own_completions_are_judged_again_and_stay_comparable(tmp_path: Path, capsys) -> None:
    file = tmp_path / "completions.jsonl"
    stale = ["wrong", "correct", "no_answer", "wrong", "unparsed", "wrong"]
    before = ours(file, stale)
    assert main(["judge", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "wrong -> correct: 3" in printed  # two greedy ones and the sample of 0 + 0
    assert printed.count(" -> ") == 1  # the others stayed what they were
    assert "12 completions judged in" in printed
    after = judged(tmp_path / "completions-judged")
    assert [r.greedy.outcome for r in after.records] == OUTCOMES
    assert [r.greedy.extracted for r in after.records] == ["0", "2", None, "7", "two or three", "10"]
    assert [r.samples[0].correct for r in after.records] == [True] + [False] * 5
    assert (after.protocol, after.seed, after.info) == (before.protocol, before.seed, before.info)
    assert [r.greedy.finish_reason for r in after.records] == ["length"] * 6
    difference = compare_evaluations(before, after)
    assert difference.newly_right == ("sums/0", "sums/5")


def test_a_folder_of_an_evaluation_is_taken_as_the_file_in_it(tmp_path: Path, capsys) -> None:
    whole, own = tmp_path / "model", tmp_path / "model" / "sums"
    own.mkdir(parents=True)
    ours(own / "completions.jsonl")
    for folder, file in ((own, "a"), (whole, "b")):
        words = ["--out", str(tmp_path / file), "--against", str(folder)]
        assert main(["judge", str(folder), *words]) == 0
        assert [r.greedy.outcome for r in judged(tmp_path / file).records] == OUTCOMES
        pairs = tmp_path / f"{file}.jsonl"
        assert main(["pairs", str(folder), "--out", str(pairs), "--length-ratio", "inf"]) == 0
        assert pairs.read_text().count("\n") == 2
    (whole / "more").mkdir()
    ours(whole / "more" / "completions.jsonl")
    run = tmp_path / "run"
    (run / "evaluations").mkdir(parents=True)
    ours(run / "evaluations" / "before.jsonl")
    for folder, told in ((whole, f"name one of {whole}/more/comp"), (run, f"one of {run}/evaluations/bef")):
        capsys.readouterr()
        assert main(["judge", str(folder)]) == 2
        assert told in capsys.readouterr().err
    assert main(["pairs", str(whole), "--out", str(tmp_path / "c.jsonl")]) == 2


def test_results_that_are_there_are_replaced_only_where_that_is_asked_for(tmp_path: Path, capsys) -> None:
    file, out = tmp_path / "completions.jsonl", tmp_path / "out"
    ours(file)
    kept = file.read_bytes()
    words = ["judge", str(file), "--out"]
    assert main([*words, str(out)]) == 0
    assert main([*words, str(out)]) == 2
    assert f"{out}/completions.jsonl exists: choose another --out, or replace it" in capsys.readouterr().err
    assert main([*words, str(out), "--extract", "auto", "--overwrite"]) == 0
    assert judged(out).protocol["extract"] == "auto"
    assert main([*words, str(tmp_path), "--overwrite"]) == 2
    assert "is where the completions lie that are judged" in capsys.readouterr().err
    assert main([*words, str(file)]) == 2
    assert "is a file and no folder" in capsys.readouterr().err
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "completions.json").write_text("[]")
    assert main([*words, str(tmp_path / "notes")]) == 2
    assert "notes/completions.json exists" in capsys.readouterr().err
    assert file.read_bytes() == kept


def test_another_rule_or_verifier_is_another_protocol(tmp_path: Path, capsys) -> None:
    file = tmp_path / "completions.jsonl"
    ours(file)
    words = ["--extract", "auto", "--answer-type", "text", "--out", str(tmp_path / "x")]
    assert main(["judge", str(file), *words]) == 0
    assert judged(tmp_path / "x").protocol["extract"] == "auto"
    assert main(["judge", str(file), *words, "--overwrite", "--against", str(file)]) == 2
    assert "cannot be compared, for they differ in extract (gsm8k against auto)" in capsys.readouterr().err


def test_harness_samples(tmp_path: Path) -> None:
    """One line a document and filter, the raw responses in ``resps``; a task may have renamed its fields."""
    rows = []
    for name in ("strict-match", "flexible-extract"):
        for i, (p, text) in enumerate(zip(PROBLEMS, TEXTS, strict=True)):
            document = {"question": p.question, "answer": f"work\n#### {p.answer}"}
            if i == 5:
                document = {"question": p.question, "final": p.answer}
            rows.append(
                {
                    "doc_id": i,
                    "doc": document,
                    "target": f"work\n#### {p.answer}",
                    "arguments": {},
                    "resps": [[text, "#### 0"]],
                    "filtered_resps": ["[invalid]"],
                    "filter": name,
                    "exact_match": 0.0,
                }
            )
    file = write(tmp_path / "samples_gsm8k_2030-01-01.jsonl", rows)
    assert main(["judge", str(file), "--benchmark", "gsm8k"]) == 0
    after = judged(tmp_path / "samples_gsm8k_2030-01-01-judged")
    assert [r.greedy.outcome for r in after.records] == OUTCOMES
    assert [len(r.samples) for r in after.records] == [1] * 6
    assert after.protocol["prompt"] == {"saved by": "lm-evaluation-harness"}


def test_plain_lines_with_samples_of_one_problem(tmp_path: Path) -> None:
    rows: list[dict] = [
        {"id": "a", "question": "1 + 1?", "answer": "2", "completion": r"\boxed{2}"},
        {"id": "a", "question": "1 + 1?", "answer": "2", "completion": r"\boxed{3}"},
        {"question": "2 + 2?", "answer": "4", "completions": [r"\boxed{5}", r"\boxed{4}"]},
    ]
    file = write(tmp_path / "plain.jsonl", rows)
    assert main(["judge", str(file), "--extract", "boxed", "--out", str(tmp_path / "out")]) == 0
    after = judged(tmp_path / "out")
    assert [(r.problem.id, r.greedy.correct, r.samples[0].correct) for r in after.records] == [
        ("plain/a", True, False),
        ("plain/3", False, True),
    ]


OPENED = "<|im_start|>user\nHow many?<|im_end|>\n<|im_start|>assistant\n<think>\n"


def outcomes_of(file: Path, *words: str) -> list[str]:
    out = file.with_suffix("")
    assert main(["judge", str(file), "--out", str(out), *words]) == 0
    return [r.greedy.outcome for r in judged(out).records]


@pytest.mark.parametrize(("prompt", "outcome"), [(OPENED, "no_answer"), ("How many?", "correct")])
def test_files_of_every_form_say_what_opened_a_thought(tmp_path: Path, prompt: str, outcome: str) -> None:
    plain = [{"question": "How many?", "answer": "2", "completion": "#### 2", "prompt": prompt}]
    assert outcomes_of(write(tmp_path / "plain.jsonl", plain), "--extract", "gsm8k") == [outcome]
    for name, arguments in (("new", {"gen_args_0": {"arg_0": prompt}}), ("old", [[prompt, {}]])):
        document = {"question": "How many?", "answer": "#### 2"}
        row = {"doc_id": 1, "doc": document, "target": "2", "resps": [["#### 2"]], "arguments": arguments}
        assert outcomes_of(write(tmp_path / f"{name}.jsonl", [row]), "--benchmark", "gsm8k") == [outcome]
    file = tmp_path / "completions.jsonl"
    ours(file)
    header, *rows = [json.loads(line) for line in file.read_text().splitlines()]
    header["protocol"]["prompt"] = {"kind": "chat", "prompt": prompt.replace("How many?", "{question}")}
    first = outcomes_of(write(tmp_path / "own.jsonl", [header, *rows]))
    assert first == (["no_answer"] * 6 if outcome == "no_answer" else OUTCOMES)
    again = tmp_path / "own" / "completions.jsonl"  # judged once more, it says the same
    assert outcomes_of(again) == first


def test_references_that_are_lists(tmp_path: Path) -> None:
    rows = [
        {"question": "a?", "answer": ["1/2", "0.5 cm"], "completion": r"\boxed{0.5}"},
        {"question": "b?", "answer": ["1/2", "0.5 cm"], "completion": r"\boxed{2}"},
        {
            "question": "c?",
            "final_answer": ["3", "5"],
            "is_multiple_answer": True,
            "completion": r"\boxed{5, 3}",
        },
        {
            "question": "d?",
            "final_answer": ["3", "5"],
            "is_multiple_answer": True,
            "completion": r"\boxed{5}",
        },
    ]
    assert outcomes_of(write(tmp_path / "any.jsonl", rows[:2]), "--extract", "boxed") == ["correct", "wrong"]
    every = write(tmp_path / "all.jsonl", rows[2:])
    assert outcomes_of(every, "--benchmark", "olympiadbench") == ["correct", "wrong"]


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        (None, "", "cannot read"),
        ("", "", "is empty"),
        ("[1]\n", "", "line 1: not a JSON object"),
        ('{"question": "q"}\n', "", "line 1: no text in the field 'completion'"),
        ('{"completion": "c"}\n', "", "line 1, has no field 'answer'"),
        ('{"completion": "c", "question": "q", "answer": ""}\n', "", "line 1: empty"),
        ('{"completion": "c", "question": "q", "answer": "}{"}\n', "", "no verifier can read any of the 1"),
        ('{"doc": {}, "resps": [["a"]], "doc_id": 1}\n', "", "line 1: no field 'target'"),
        (
            '{"doc": {"question": "q"}, "resps": [[[-1.0, false]]], "doc_id": 1, "target": "1"}\n',
            "",
            "only samples of generate_until",
        ),
        (
            '{"completions": [], "question": "q", "answer": "1"}\n',
            "",
            "problem file/1 ('q') has no completion",
        ),
        ('{"doc": {"question": "q"}, "resps": [], "doc_id": 7, "target": "1"}\n', "", "problem file/7"),
        ('{"kind": "header"}\n', "", "holds no completion yet"),
        ('{"kind": "header"}\n{"kind": "greedy"}\n', "", "line 2: no field 'problem_id'"),
        ('{"completion": "c", "question": "q", "answer": "1"}\n', "--answer-type numbr", "'numbr'"),
        ('{"completion": "c", "question": "q", "answer": "1"}\n', "--extract boxd", "boxd"),
        ('{"completion": "c", "question": "q", "answer": "1"}\n', "--benchmark gsmk8", "did you mean"),
        ('{"completion": "c", "question": "q", "answer": "1"}\n', "--jobs 0", "--jobs must lie"),
        ('{"completion": "c", "question": "q", "answer": "1"}\n', "--timeout-s 0", "--timeout-s must be > 0"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(
    text: str | None, words: str, message: str, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "file.jsonl"
    if text is not None:
        file.write_text(text)
    assert main(["judge", str(file), *words.split()]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "file-judged").exists()


def test_judging_needs_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "completions.jsonl"
    ours(file)
    code = (
        "import sys; from mathrl.cli import main; "
        f"assert main(['judge', {str(file)!r}]) == 0; "
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
