"""Rows of data sets as their cards show them, dotted fields, and mixes of several sets."""

import json
import math
from collections import Counter

import pytest

from mathrl.config import DataConfig
from mathrl.data.datasets import DATASETS
from mathrl.data.history import History
from mathrl.data.problems import load_problems
from mathrl.data.stream import MixedStream, make_stream
from mathrl.errors import UserError
from mathrl.recipes import dump, load_config, load_recipe
from mathrl.types import Problem

DAPO = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{}\n\nRemember to put "
    'your answer on its own line after "Answer:".'
)
RULE = {"style": "rule-lighteval/MATH_v2"}
AS_ON_THE_HUB = {  # set -> a row of its form; the question and answer that it holds
    "dapo_math_17k": (
        {
            "prompt": [{"role": "user", "content": DAPO.format("What is $2^5$?")}],
            "reward_model": {"ground_truth": "32", **RULE},
            "ability": "MATH",
        },
        "What is $2^5$?",
        "32",
    ),
    "deepscaler": (
        {"problem": "Find $x$ with $2x=1$.", "answer": "\\frac{1}{2}", "solution": "So \\boxed{\\frac12}."},
        "Find $x$ with $2x=1$.",
        "\\frac{1}{2}",
    ),
    "big_math": (
        {"problem": "How many?", "answer": "1,200", "source": "orca_math", "llama8b_solve_rate": 0.5},
        "How many?",
        "1,200",
    ),
    "openr1_math": (
        {"problem": "Solve.", "solution": "Then …", "answer": "3", "question_type": "math-word-problem"},
        "Solve.",
        "3",
    ),
    "numina_math": (
        {
            "problem": "Solve.",
            "solution": "Then …",
            "answer": "(1, 2)",
            "question_type": "math-word-problem",
            "problem_is_valid": "Yes",
        },
        "Solve.",
        "(1, 2)",
    ),
    "skywork_or1": (
        {
            "data_source": "train-math-numinamath1.5_olympiads",
            "prompt": [{"role": "user", "content": "What is half of one?"}],
            "reward_model": {"ground_truth": '["\\\\frac{1}{2}"]', "style": "rule"},
            "extra_info": {"index": 3, "model_difficulty": {"7B": 4}},
        },
        "What is half of one?",
        "\\frac{1}{2}",
    ),
    "orz_57k": (
        [{"from": "human", "value": "What is 1+1?"}, {"from": "assistant", "ground_truth": {"value": "2"}}],
        "What is 1+1?",
        "2",
    ),
    "math": (
        {"problem": "Add.", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\sqrt2}$."},
        "Add.",
        "\\sqrt2",
    ),
}


def as_json(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def load(path, source="wordproblems", role="train", **fields):
    return load_problems(DataConfig(path=path, source=source, **fields), role, 0)


@pytest.mark.parametrize("source", AS_ON_THE_HUB)
def test_a_row_of_its_data_set_is_the_problem_it_holds(source, tmp_path):
    row, question, answer = AS_ON_THE_HUB[source]
    asked = json.dumps(question)[1:-1]
    others = [json.loads(json.dumps(row).replace(asked, f"Something else, {n}?")) for n in range(8)]
    path = as_json(tmp_path / "set.json", [row, *others])
    both = [p for role in ("train", "held_out") for p in load(path, source, role, eval_fraction=0.5).problems]
    assert len(both) == 9
    found = next(p for p in both if p.question == question)
    assert found.answer == answer
    assert DATASETS[source].extract == "boxed"


@pytest.mark.parametrize("source", sorted(DATASETS))
def test_every_set_says_whose_it_is(source):
    row = DATASETS[source]
    assert row.licence
    assert row.hub or row.source or source in ("wordproblems", "mawps")


def test_kinds_of_rows_that_have_no_answer_are_left_out_and_counted(tmp_path):
    good = AS_ON_THE_HUB["numina_math"][0]
    rows = [good | {"problem": f"Solve {n}."} for n in range(4)]
    rows += [good | {"problem": f"Show {n}.", "question_type": "proof", "answer": "proof"} for n in range(9)]
    rows += [good | {"problem": "Hm.", "problem_is_valid": "Incomplete"}]
    found = load(as_json(tmp_path / "n.json", rows), "numina_math", eval_fraction=0.01)
    assert len(found) == 4
    assert Counter(s.reason for s in found.skipped) == {
        "question_type is 'proof'": 9,
        "problem_is_valid is 'Incomplete'": 1,
    }


def test_dotted_names_are_fields_of_fields(tmp_path):
    rows = [
        {"turns": [{"text": f"What is {n}+1?"}], "gold": {"value": n + 1, "kind": "even" if n % 2 else "odd"}}
        for n in range(20)
    ]
    path = as_json(tmp_path / "deep.json", rows)
    fields = {"question_field": "turns.0.text", "answer_field": "gold.value", "where": "gold.kind=odd"}
    found = [*load(path, **fields).problems, *load(path, role="held_out", **fields).problems]
    assert {(p.question, p.answer) for p in found} == {
        (f"What is {n}+1?", str(n + 1)) for n in range(0, 20, 2)
    }
    with pytest.raises(UserError, match=r"no field 'gold.valu': did you mean 'gold.value'"):
        load(path, question_field="turns.0.text", answer_field="gold.valu")
    with pytest.raises(UserError, match=r"no field 'gold.kin'.*'gold.kind'"):
        load(path, **{**fields, "where": "gold.kin=odd"})


# --- mixes --------------------------------------------------------------------------------------------------


def sums(path, start, n, question="question"):
    rows = [{question: f"What is {k} plus 1?", "answer": str(k + 1)} for k in range(start, start + n)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


@pytest.fixture
def mix(tmp_path):
    """A [data] of two files, 3 : 1, whose questions overlap."""
    sums(tmp_path / "many.jsonl", 0, 90)
    sums(tmp_path / "few.jsonl", 80, 30, question="task")
    path = tmp_path / "mix.toml"
    path.write_text(f"""
[[data.mix]]
path = "{tmp_path}/many.jsonl"
weight = 3
[[data.mix]]
path = "{tmp_path}/few.jsonl"
question_field = "task"
name = "others"
""")
    return load_recipe(str(path))


def test_a_mix_counts_its_parts_and_asks_each_question_once(mix):
    train, held_out = (load_problems(mix.data, role, 0) for role in ("train", "held_out"))
    questions = [p.question for p in (*train.problems, *held_out.problems)]
    assert len(questions) == len(set(questions)) == 110
    counts = Counter(p.meta["part"] for p in train.problems)
    assert (
        f"many {counts['many']} (75% of a step), others {counts['others']} (25% of a step)"
        in train.describe()
    )
    assert len({p.id for p in train.problems}) == len(train)
    asked_before = sum(s.reason == "question asked before" for s in (*train.skipped, *held_out.skipped))
    assert asked_before == 10


def test_every_step_has_its_shares_and_a_resumed_stream_goes_on(mix):
    train = load_problems(mix.data, "train", 0)
    stream = make_stream(train, 0)
    assert isinstance(stream, MixedStream)
    steps = [[(p.meta["part"], p.id) for p in stream.take(6)] for _ in range(12)]
    so_far = Counter()
    for number, step in enumerate(steps, 1):
        assert len({i for _, i in step}) == 6
        so_far += Counter(part for part, _ in step)
        assert abs(so_far["many"] - 4.5 * number) <= 1
    first, second = make_stream(train, 0), make_stream(train, 0)
    for _ in range(5):
        first.take(6)
    second.restore(json.loads(json.dumps(first.state())))
    assert [[(p.meta["part"], p.id) for p in second.take(6)] for _ in range(7)] == steps[5:]
    with pytest.raises(UserError, match="'many' gives 150 of a step's 200 problems and has"):
        stream.take(200)


def test_many_small_parts_give_as_many_problems_as_are_asked_for():
    """Also where a part has just given more than its share, and where it has no more than its share."""
    for shares in (
        {"a": 5.0, "b": 1.0, "c": 1.0, "d": 1.0, "e": 0.34},
        {"a": 0.05, "b": 1.0, "c": 1.0, "d": 1.0},
        {"a": 3.0, "b": 1.0, "c": 0.05},
    ):
        for asked in ([2] * 200, [4, 1, 1] * 70):  # steps; and steps with refills
            total = sum(shares.values())
            sizes = {name: math.ceil(max(asked) * weight / total) for name, weight in shares.items()}
            problems = [
                Problem(f"{name}/{i}", f"{name} {i}", "1", meta={"part": name})
                for name, size in sizes.items()
                for i in range(size)
            ]
            stream, so_far = MixedStream(problems, 0, shares), Counter()
            for n in asked:
                taken = stream.take(n)
                assert len({p.id for p in taken}) == len(taken) == n
                so_far += Counter(p.meta["part"] for p in taken)
            for name, weight in shares.items():
                assert abs(so_far[name] - sum(asked) * weight / total) < 2


def test_a_mix_keeps_one_history(mix):
    train = load_problems(mix.data, "train", 0)
    history = History(mix.data.history)
    stream = make_stream(train, 0, history)
    stream.take(8)
    state = json.loads(json.dumps(stream.state()))
    assert "history" in state
    assert all("history" not in part for part in state["parts"].values())
    again = make_stream(train, 0, History(mix.data.history))
    again.restore(state)
    assert not again.changed
    name = next(iter(state["parts"]))
    state["parts"][name]["problems"] = "others"
    again.restore(state)
    assert again.changed
    assert [part.changed for part in again._parts.values()] == [True] + [False] * (len(state["parts"]) - 1)


def test_a_mix_on_the_command_line_and_in_a_saved_run(mix, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(dump(mix))
    assert load_config(path) == mix
    (tmp_path / "plain.toml").write_text("")
    said = load_recipe(str(tmp_path / "plain.toml"), [("data.mix", "a.jsonl=2, openai/gsm8k ,gsm8k=0.5")])
    assert [(m.path, m.source, m.weight) for m in said.data.mix] == [
        ("a.jsonl", "", 2.0),
        ("", "openai/gsm8k", 1.0),
        ("", "gsm8k", 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[data]\npath = "a.jsonl"\n[[data.mix]]\npath = "b.jsonl"', "data.path and data.mix exclude"),
        ("[[data.mix]]\nweight = 2", "needs path or source"),
        ('[[data.mix]]\npath = "b.jsonl"\nweight = 0', "greater than 0"),
        ('[[data.mix]]\npath = "b.jsonl"\nweigth = 1', "weigth"),
    ],
)
def test_an_impossible_mix_is_refused(text, words, tmp_path):
    (tmp_path / "mix.toml").write_text(text)
    with pytest.raises(UserError, match=words):
        load_recipe(str(tmp_path / "mix.toml"))


def test_two_parts_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        sums(tmp_path / folder / "train.jsonl", 0 if folder == "a" else 50, 50)
    parts = [{"path": str(tmp_path / folder / "train.jsonl")} for folder in ("a", "b")]
    found = load_problems(DataConfig(mix=parts), "train", 0)
    assert list(found.shares) == ["train", "train 2"]
    assert len({p.id for p in found.problems}) == len(found)
    named = [part | {"name": "same"} for part in parts]
    with pytest.raises(UserError, match="two .* are named 'same'"):
        load_problems(DataConfig(mix=named), "train", 0)
