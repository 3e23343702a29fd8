"""mathrl data: counts, reasons, references, overlap, and problems as they are asked."""

import json
import re

import pytest

from mathrl.cli import main
from mathrl.data.datasets import DATASETS
from mathrl.data.wordproblems import corpus
from mathrl.policy.scratch import build_tokenizer

GOLD = ["0", "2", "4", "6.5", r"\frac{1}{2}", "x^2+1", "ten cows", "(B)"] + ["9"] * 30


@pytest.fixture
def rows(tmp_path):
    asked = [f"A box has {n} balls and {n} more are put in. How many balls are there now?" for n in range(38)]
    good = [
        {"task": {"text": question}, "gold": gold, "solution": "We add them."}
        for question, gold in zip(asked, GOLD, strict=True)
    ]
    bad = [{"task": good[1]["task"], "gold": "2", "solution": None}]
    bad += [{"task": {"text": f"Hm {n}?"}, "gold": "", "solution": None} for n in range(3)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*good, *bad]) + "\n")
    return path


FIELDS = ["--data.question_field", "task.text", "--data.answer_field", "gold"]


def lines_of(capsys):
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_a_file_is_described(rows, capsys):
    assert main(["data", str(rows), *FIELDS, "--show", "2"]) == 0
    told = lines_of(capsys)
    assert "fields question task.text, answer gold, worked solution solution" in told
    assert "skipped 4 of 42 rows" in told
    assert "3 empty answer, such as row 40" in told
    assert "1 question asked before, such as row 39" in "\n".join(told)
    assert "references 92.7% are read by the verifiers" in told  # 38 of the 41 that ask something
    for kind, answer in (
        ("80.5% a whole number", "'"),
        ("2.4% a decimal", "'6.5'"),
        ("2.4% a fraction", "frac{1}{2}'"),
        ("2.4% other mathematics", "'x^2+1'"),
        ("2.4% words", "'ten cows'"),
        ("2.4% a choice", "'(B)'"),
    ):
        assert any(line.startswith(kind) and answer in line for line in told), kind
    assert "solutions 38 of 38 problems have one" in told
    assert any(line.startswith("question 17 in the middle") for line in told)
    assert sum(line.startswith("--- ") for line in told) == 2
    assert any(line.startswith("Think step by step") for line in told)
    assert any(line.startswith("→ ") for line in told)


def test_with_a_model_prompts_are_in_tokens_and_as_its_template_has_them(rows, tmp_path, capsys):
    tokenizer = build_tokenizer(corpus(), 400)
    tokenizer.chat_template = "{% for m in messages %}<U>{{ m['content'] }}{% endfor %}<A>"
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "qwen2"}')
    assert main(["data", str(rows), *FIELDS, "--show", "1", "--model.path", str(tmp_path / "model")]) == 0
    told = lines_of(capsys)
    assert any(line.startswith("prompt ") and line.endswith(" tokens") for line in told)
    assert any(line.startswith("<U>A box has") for line in told)


def test_questions_of_a_benchmark_are_found(rows, tmp_path, capsys):
    questions = [
        "A box has 9 balls and 9 more are put in. How many balls are there now?",  # word for word
        "a box has 11 balls, and 11 more are put in.  how many balls are there now",  # but for spelling
        "A box has 700 balls and 800 more are put in. How many balls are there now?",  # but for numbers
        "Something else altogether, which nobody has asked here before?",
    ]
    test = tmp_path / "test.jsonl"
    test.write_text("\n".join(json.dumps({"question": q, "answer": "#### 1"}) for q in questions))
    assert main(["data", str(rows), *FIELDS, "--benchmark", f"gsm8k={test}"]) == 0
    assert (
        "overlap gsm8k: of 4 questions 1 word for word, 1 but for spelling, 1 but for their numbers"
        in lines_of(capsys)
    )


@pytest.mark.parametrize("by", ["option", "recipe"])
def test_each_part_of_a_mix_is_described(by, rows, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text(
        "\n".join(
            json.dumps({"task": {"text": f"What is {n} times 2?"}, "gold": gold})
            for n, gold in enumerate(["0", "2", "4", "6", "8", "10", "12", "14", ""])
        )
    )
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        '[data]\nquestion_field = "task.text"\nanswer_field = "gold"\n'
        f'[[data.mix]]\npath = "{rows}"\nweight = 3\n[[data.mix]]\npath = "{other}"\n'
    )
    words = [str(recipe)] if by == "recipe" else ["--data.mix", f"{rows}=3,{other}=1", *FIELDS]
    assert main(["data", *words, "--show", "3"]) == 0
    told = lines_of(capsys)
    counts = [re.match(r"(\S+): (\d+) problems to train on, (\d+) held out(.*)", line) for line in told]
    found = {m[1]: (int(m[2]) + int(m[3]), m[4]) for m in counts if m}
    assert found == {
        "mine": (38, ", weight 3 (75% of a step)"),
        "other": (8, ", weight 1 (25% of a step)"),
    }
    assert told[0].startswith("a mix of 2: ")
    assert "skipped 4 of 42 rows" in told
    assert "skipped 1 of 9 rows" in told
    shown = [line for line in told if line.startswith("--- ")]
    assert not any("generated by this package" in line for line in told)
    of = [re.sub(r"--- \d. (\w+)/\d+", r"\1", line) for line in shown]
    assert of == ["mine", "mine", "other", "other"]  # three of two parts: two of each


def test_problems_held_out_of_a_whole_mix_are_described_by_themselves(rows, tmp_path, capsys):
    other = tmp_path / "held.jsonl"
    other.write_text(json.dumps({"task": {"text": "What is 5 times 2?"}, "gold": "10"}))
    words = ["--data.mix", f"{rows}=1", "--data.eval_path", str(other), *FIELDS, "--show", "0"]
    assert main(["data", *words]) == 0
    told = lines_of(capsys)
    assert "mine: 38 problems to train on, 0 held out, weight 1 (100% of a step)" in told
    assert "held.jsonl: 0 problems to train on, 1 held out" in " ".join(told)
    assert told.count("licence unknown") == 2


def test_the_known_sets_are_listed(capsys):
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    for row in DATASETS.values():
        assert row.name in out
        assert row.licence in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gsm9k"], "neither a file nor a known data set: did you mean 'gsm8k'"),
        (["lost.jsonl"], "lost.jsonl does not exist"),
        (["{rows}"], "has no field 'question'"),
        (["{rows}", *FIELDS, "--benchmark", "gsm9k"], "'gsm8k'"),
        (["--data.mix", "lost.jsonl=1,b.jsonl=2"], "lost.jsonl does not exist"),
        (["{rows}", "--data.mix", "a.jsonl=1"], "name two things to look at: leave one out"),
        (["--data.where", "level=1"], "name the set to look at"),
        (["lost.toml"], "recipe file 'lost.toml' does not exist"),
        (["{rows}", "--show", "-1"], "--show must be 0 or more"),
    ],
)
def test_what_cannot_be_read_is_told(words, message, rows, capsys):
    assert main(["data", *(w.format(rows=rows) for w in words)]) == 2
    out, told = capsys.readouterr()
    assert message in told
    assert told.count("\n") == 1
    assert not out


def test_a_real_set(data_dir, capsys):
    path = data_dir / "gsm8k" / "train.jsonl"
    assert main(["data", "gsm8k", "--data.path", str(path), "--show", "0"]) == 0
    told = lines_of(capsys)
    assert "references 100.0% are read by the verifiers" in told
    assert "solutions 7473 of 7473 problems have one" in told
