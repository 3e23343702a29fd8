"""Worked examples before every question: which, in what form, and that they are not asked."""

import json

import pytest

from mathrl.config import DataConfig
from mathrl.data.few_shot import FewShotTemplate, draw_examples, template_with_examples
from mathrl.data.problems import load_problems
from mathrl.data.prompts import PromptTemplate
from mathrl.data.wordproblems import corpus
from mathrl.errors import UserError
from mathrl.policy.scratch import build_tokenizer
from mathrl.recipes import load_recipe
from mathrl.types import Problem

EXAMPLE = Problem("1", "What is 1+1?", "2", solution="1+1=2")


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(corpus(), 400)


def rows(folder, n=30, solved=10, name="mine.jsonl", start=0):
    path = folder / name
    found = [
        {"question": f"What is {k}+1?", "answer": f"{k + 1}"}
        | ({"solution": f"{k}+1={k + 1}"} if k < solved else {})
        for k in range(start, start + n)
    ]
    path.write_text("\n".join(map(json.dumps, found)) + "\n")
    return str(path)


def test_examples_are_training_problems_that_are_not_asked(tmp_path):
    data = DataConfig(path=rows(tmp_path), shots=3)
    train = load_problems(data, "train", 0)
    shown, rest = draw_examples(data, train, seed=0)
    assert len(shown) == 3
    assert all(p.solution for p in shown)
    assert {p.id for p in shown} | {p.id for p in rest.problems} == {p.id for p in train.problems}
    assert len(rest) == len(train) - 3
    assert sum(s.reason == "shown as an example" for s in rest.skipped) == 3
    assert draw_examples(data, train, seed=0)[0] == shown
    assert draw_examples(data, train, seed=1)[0] != shown
    assert draw_examples(DataConfig(path=data.path), train, 0) == ((), train)
    with pytest.raises(UserError, match="asks for 20 worked examples"):
        draw_examples(data.model_copy(update={"shots": 20}), train, 0)


def test_examples_can_come_from_a_file_of_their_own(tmp_path):
    other = rows(tmp_path, n=40, solved=200, name="other.jsonl", start=100)
    data = DataConfig(path=rows(tmp_path), shots=2, shots_path=other)
    train = load_problems(data, "train", 0)
    shown, rest = draw_examples(data, train, seed=0)
    assert rest == train
    assert all(int(p.answer) > 100 for p in shown)


def test_the_prompt_shows_them_and_a_completion_ends_where_the_next_would_begin(tokenizer):
    template = FewShotTemplate(tokenizer, [EXAMPLE], extract="gsm8k")
    asked = template.text(Problem("2", "What is 2+1?", "3"))
    assert asked == "Question: What is 1+1?\nAnswer: 1+1=2\n#### 2\n\nQuestion: What is 2+1?\nAnswer:"
    assert template.stop == "\nQuestion:"
    own = FewShotTemplate(tokenizer, [EXAMPLE], extract="gsm8k", instruction="Task {question}\nSolution:")
    assert own.text(EXAMPLE).startswith("Task What is 1+1?\nSolution: 1+1=2\n#### 2\n\nTask")
    assert own.stop == "\nTask"
    assert FewShotTemplate(tokenizer, [], extract="gsm8k", instruction="{question}\n=").stop == "\n\n"
    assert PromptTemplate(tokenizer, "plain").stop == ""


def test_a_recipe_asks_for_them(tokenizer, tmp_path):
    (tmp_path / "r.toml").write_text("")
    config = load_recipe(str(tmp_path / "r.toml"), [("data.shots", "1"), ("data.path", "x.jsonl")])
    assert template_with_examples(config, tokenizer, [EXAMPLE]).text(EXAMPLE).count("Question:") == 2
    assert template_with_examples(config, tokenizer, ()).text(EXAMPLE).count("Question:") == 1
    chat = load_recipe(str(tmp_path / "r.toml"), [("model.prompt", "chat"), ("data.path", "x.jsonl")])
    with pytest.raises(UserError, match="data.shots is for plain prompts"):
        template_with_examples(chat, tokenizer, [EXAMPLE])
