"""mathrl init: what is found of a model and a file, and the recipe that follows from it."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mathrl.cli import main
from mathrl.data.guess import guess_columns
from mathrl.data.problems import load_problems
from mathrl.data.wordproblems import corpus
from mathrl.errors import UserError
from mathrl.policy.scratch import build_tokenizer
from mathrl.recipes import load_recipe

CHAT = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
THINKING = CHAT + "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What makes a model's folder with a chat template."""

    def make(template: str = "", context: int = 2048) -> Path:
        folder = tmp_path_factory.mktemp("model") / "mine"
        tokenizer = build_tokenizer(corpus(), 400)
        if template:
            tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        torch.manual_seed(0)
        config = Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=context,
        )  # fmt: skip
        Qwen2ForCausalLM(config).save_pretrained(folder)
        return folder

    return make


def file(folder, rows, name="mine.jsonl"):
    path = folder / name
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


ROWS = [{"question": f"What is {n}+1?", "answer": f"{n + 1}", "id": n} for n in range(100)]


def init(capsys, tmp_path, model, data, *words):
    out = tmp_path / "made.toml"
    capsys.readouterr()
    status = main(["init", "--model", str(model), "--data", str(data), "--out", str(out), *words])
    told = capsys.readouterr()
    return status, told.out + told.err, out


def test_the_recipe_is_whole_and_says_what_was_found(model, tmp_path, capsys):
    rows = [
        {"meta": {"task": f"What is {n}+1?"}, "gold": n + 1, "rationale": f"{n} and 1 make {n + 1}."}
        for n in range(100)
    ]
    path = file(tmp_path, rows)
    status, told, out = init(capsys, tmp_path, model(CHAT), path)
    assert status == 0
    assert (
        "question meta.task, answer gold, read as number; 100 of the 100 rows looked at are problems" in told
    )
    assert "a chat template" in told
    config = load_recipe(str(out))
    assert config.recipe == "made"
    assert config.model.prompt == "chat"
    data = config.data
    assert (data.question_field, data.answer_field, data.solution_field) == ("meta.task", "gold", "rationale")
    assert (data.answer_type, data.extract, config.sft.skip) == ("number", "gsm8k", False)
    assert config.update.learning_rate == 1e-4  # a small model
    assert config.rollout.max_completion_tokens == 0
    problem = load_problems(data, "train", 0).problems[0]
    assert problem.solution is not None
    assert out.read_text().count(" # ") > 8


def test_a_base_model_a_short_file_and_no_solutions(model, tmp_path, capsys):
    path = file(tmp_path, ROWS[:20])
    _, told, out = init(capsys, tmp_path, model(), path)
    assert "no chat template" in told
    config = load_recipe(str(out))
    assert config.model.prompt == "plain"
    assert config.sft.skip
    assert config.rollout.problems_per_step == 5


def test_a_tokenizer_without_its_vocabulary_is_told(model, tmp_path, capsys):
    folder = model(CHAT)
    (folder / "tokenizer.json").unlink()  # transformers makes an empty one of tokenizer_config.json alone
    change = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(change))
    status, told, _ = init(capsys, tmp_path, folder, file(tmp_path, ROWS))
    assert (status, "so its vocabulary is missing (tokenizer.json" in told) == (2, True)


def test_a_model_that_thinks_has_room_for_it(model, tmp_path, capsys):
    _, told, out = init(capsys, tmp_path, model(THINKING), file(tmp_path, ROWS))
    assert "thinks where it is let" in told
    config = load_recipe(str(out))
    assert config.model.chat_template_kwargs == {"enable_thinking": False}
    assert 1024 < config.rollout.max_completion_tokens < 2048  # the context is the limit


def nine(**columns):
    """Rows of these columns, with a number in place of {n}."""
    return [json.loads(json.dumps(columns).replace("{n}", str(n))) for n in range(9)]


VERL = {"prompt": [{"role": "user", "content": "P{n}"}], "reward_model": {"ground_truth": "3"}}


def test_the_two_names_of_a_known_set_do_not_make_a_file_that_set():
    mine = nine(Question="P{n}", Answer="(1, {n})", Solution="So (1, {n}).")
    for rows, solution in (
        (mine, "Solution"),
        (nine(problem="P{n}", answer="{n}", rationale="So."), "rationale"),
    ):
        guess = guess_columns(rows, "file")
        assert (guess.known, guess.row.solution, guess.row.lists) == (False, solution, "any_of")
    assert guess_columns(mine, "file").row.answer_type == "auto"
    theirs = nine(Question="P{n}", Answer="[1, {n}]", Answer_type="list of integer", Picture=None)
    assert guess_columns(theirs, "file").row.name == "theoremqa"
    assert guess_columns(nine(problem="P{n}", answer="{n}", solution="So."), "file").known


@pytest.mark.parametrize(
    ("rows", "columns", "answer_type", "extract"),
    [
        (nine(problem="P{n}", answer="x^2+{n}"), ("problem", "answer"), "auto", "boxed"),
        (nine(**VERL), ("prompt", "reward_model.ground_truth"), "number", "boxed"),  # as dapo_math_17k
        (nine(question="P{n}", answer="So.\n#### {n}"), ("question", "answer"), "number", "gsm8k"),
        (
            nine(question="P{n}", choices=["A) 1", "B) 2"], label="B"),
            ("question", "label"),
            "choice",
            "boxed",
        ),
        # a column of a fitting name that holds no answers is passed over
        (nine(question="P{n}", answer=None, target="4"), ("question", "target"), "number", "gsm8k"),
    ],
)
def test_columns_are_found_by_what_they_hold(rows, columns, answer_type, extract):
    guess = guess_columns(rows, "file")
    assert (guess.row.question, guess.row.answer) == ((columns[0],), columns[1])
    assert (guess.row.answer_type, guess.row.extract, guess.share) == (answer_type, extract, 1.0)


@pytest.mark.parametrize(
    ("path", "source"),
    [("svamp/SVAMP.json", "svamp"), ("mawps/addsub.jsonl", "mawps"), ("aqua/dev.json", "aqua")],
)
def test_the_columns_of_known_sets_are_known(path, source, data_dir, model, tmp_path, capsys):
    _, told, out = init(capsys, tmp_path, model(CHAT), data_dir / path)
    assert f"(as {source})" in told
    assert load_recipe(str(out)).data.source == source


def test_columns_can_be_said(model, tmp_path, capsys):
    rows = [{"frage": f"Was ist {n}+1?", "antwort": n + 1, "answer": "none"} for n in range(30)]
    path = file(tmp_path, rows)
    status, told, _ = init(capsys, tmp_path, model(CHAT), path)
    assert status == 2
    assert "say which with --question and --answer" in told
    _, _, out = init(capsys, tmp_path, model(CHAT), path, "--question", "frage", "--answer", "antwort")
    assert load_recipe(str(out)).data.answer_field == "antwort"


def test_nothing_is_written_where_something_is_wrong(model, tmp_path, capsys):
    good, path = model(CHAT), file(tmp_path, ROWS)
    for words, message in (
        ((tmp_path / "none", path), "there is no model folder"),
        ((good, tmp_path / "none.jsonl"), "does not exist"),
        ((good, "gsm9k"), "'gsm8k'"),
        ((good, "mawps"), "has no copy on the hub"),
        ((good, file(tmp_path, [{"a": 1}], "odd.jsonl")), "columns: a"),
    ):
        status, told, out = init(capsys, tmp_path, *words)
        assert status == 2
        assert message in told
        assert told.count("\n") == 1
        assert not out.exists()
    assert init(capsys, tmp_path / "new" / "folder", good, path)[0] == 0
    assert init(capsys, tmp_path, good, path)[0] == 0
    made = (tmp_path / "made.toml").read_text()
    status, told, out = init(capsys, tmp_path, good, path)
    assert (status, out.read_text()) == (2, made)
    assert "--overwrite" in told
    assert init(capsys, tmp_path, good, path, "--overwrite")[0] == 0
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]


def test_a_file_without_columns_is_told():
    with pytest.raises(UserError, match="no column holds questions"):
        guess_columns([{"x": 1}], "file")


def test_options_with_letters_of_their_own_are_not_the_answer(capsys, tmp_path, model):
    rows = [
        {
            "question": f"What is {n}+1?",
            "choices": {"text": [f"{n}", f"{n + 1}"], "label": ["A", "B"]},
            "answerKey": "B",
        }
        for n in range(70)
    ]
    status, told, out = init(capsys, tmp_path, model(CHAT), file(tmp_path, rows))
    assert status == 0, told
    data = load_recipe(str(out)).data
    assert (data.answer_field, data.options_field, data.answer_type) == ("answerKey", "choices", "choice")
    problem = load_problems(data, "train", 0).problems[0]
    assert problem.question_with_options.endswith(f"\nA) {problem.options[0]}\nB) {problem.options[1]}")


def test_a_column_that_is_not_there_is_named(capsys, tmp_path, model):
    status, told, out = init(capsys, tmp_path, model(CHAT), file(tmp_path, ROWS), "--question", "questoin")
    assert (status, out.exists()) == (2, False)
    assert "has no column 'questoin': did you mean 'question'?" in told
