"""The Python door: runs from lists and functions, twice in one process, and what its examples say."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import mathrl
from mathrl import api
from mathrl.commands.compare import compare_results
from mathrl.commands.python_words import in_python
from mathrl.config import Config
from mathrl.data.in_memory import write_rows
from mathrl.evaluation.completions import write_evaluation
from mathrl.evaluation.result import Evaluation, Judged, Record
from mathrl.recipes import all_fields
from mathrl.types import Problem

TINY = str(Path(__file__).with_name("tiny.toml"))
ROWS = [
    {"question": f"What is {a} plus {b}?", "answer": a + b, "hint": a} for a in range(9) for b in range(9)
]


TYPED = [{"question": "q", "answer": "1", "kind": kind} for kind in ("boom:X", "nubmer")]


def even(problem, completion, verdict):
    return float(problem.row["hint"] % 2 == 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs in this process: rows and a function of Python's own, then the same again, cut short."""
    folder, seen = tmp_path_factory.mktemp("api"), []

    def run(name, after_step=None):
        return mathrl.train(
            TINY,
            problems=ROWS[:60],
            held_out=ROWS[60:],
            rewards=[mathrl.RewardFunction(even, weight=0.5)],
            after_step=after_step,
            run={"name": name, "output_dir": str(folder)},
            data={"source": "wordproblems"},
            sft={"path": str(folder / "solved.jsonl"), "max_train_steps": 2},
            evaluate={"every_steps": 0, "num_samples": 0, "num_problems": 8},
            train={"num_steps": 3},
        )

    solved = [
        {"question": r["question"], "answer": r["answer"], "solution": f"#### {r['answer']}"} for r in ROWS
    ]
    (folder / "solved.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in solved))
    first = run(
        "first", lambda done, metrics, groups: seen.append((done, metrics["reward/even"], len(groups)))
    )
    second = run("second", lambda done, metrics, groups: np.float64(done) < 2)  # its False is not Python's
    return first, second, seen


def test_a_run_of_rows_and_functions(runs):
    first, _, seen = runs
    assert [done for done, *_ in seen] == [1, 2, 3]
    assert [row["reward/even"] for row in first.metrics] == [value for _, value, _ in seen]
    assert all(0 < value < 0.5 for _, value, _ in seen)  # some problems of a step have an even hint
    assert 0 <= first.accuracy <= 1
    assert first.accuracy_before == first.summary["before"]["accuracy"]
    assert first.adapter.is_dir()
    assert first.report.is_file()
    assert first.summary["before"]["n"] == 8


def test_equal_rows_and_seed_give_equal_steps_twice_in_one_process(runs):
    first, second, _ = runs
    rewards = [row["reward/mean"] for row in first.metrics]
    assert [row["reward/mean"] for row in second.metrics] == rewards[:2]  # its callback ended it there


def test_runs_are_compared(runs):
    first, second, _ = runs
    difference = mathrl.compare(first, second)
    assert difference.value == pytest.approx(second.accuracy - first.accuracy)


def test_rows_are_judged(tmp_path):
    rows = [
        {"id": 1, "question": "2+2?", "answer": "4", "completions": ["#### 4", "#### 5"]},
        {"id": 2, "question": "half?", "answer": "1/2", "completion": "It is \\boxed{0.5}"},
    ]
    judged = mathrl.judge(rows, jobs=1)
    assert [r.greedy.outcome for r in judged.records] == ["correct", "correct"]
    assert [s.outcome for s in judged.records[0].samples] == ["wrong"]
    with pytest.raises(mathrl.UserError, match="^completions, line 1: no text in the field 'completion'"):
        mathrl.judge([{"question": "2+2?", "answer": "4"}])


def test_a_model_is_evaluated_on_rows(runs, tmp_path):
    first, *_ = runs
    out = tmp_path / "out"
    evaluation = mathrl.evaluate(
        first,
        data=ROWS[:6],
        samples=2,
        out=out,
        options={"max_completion_tokens": 8},
        model={"prompt": "plain"},
    )
    assert (evaluation.n, evaluation.k) == (6, 2)
    assert (out / "eval.html").is_file()
    assert mathrl.compare(out, evaluation).value == 0
    with pytest.raises(mathrl.UserError, match="named twice"):
        compare_results([out, out / ".." / "out"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"problems": []}, "problems is empty"),
        ({"problems": "train.jsonl"}, "must be a list of rows.*not a str"),
        ({"problems": ["2+2?"]}, "row 1: a str, not a dictionary"),
        ({"model": {"adapter": "nowhere"}}, "model.adapter needs model.path"),
        ({"rollout": 4}, "rollout must be a dictionary of fields"),
        ({"rollout": {"group_sise": 4}}, "rollout.group_sise.*rollout.group_size"),
        ({"problems": {"question": ["q"], "answer": ["1"]}}, "must be a list of rows.*not a dict"),
        ({"rewards": [lambda text: 0]}, r"takes \(text\)"),
        ({"rewards": even}, "rewards must be a list of functions, not a function"),
        ({"rewards": ["my_rewards:even"]}, "reward function 'my_rewards:even' is a str, not a function"),
        ({"after_step": lambda metrics: True}, r"after_step must take \(steps done, metrics, groups\)"),
        ({"rewards": "my_rewards:even"}, "rewards must be a list of functions, not a str"),
        ({"after_step": 3}, "after_step must take"),
        ({"reward": {"model_path": "nowhere", "model_weight": 1.0}}, "model_path 'nowhere' holds no seq"),
        ({"problems": TYPED, "data": {"answer_type_field": "kind"}}, "row 1, .*'boom:X' names a module"),
        ({"problems": TYPED[1:], "data": {"answer_type_field": "kind"}}, "row 1, .*'nubmer'.*'number'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_trained(arguments, words, tmp_path):
    given = {"run": {"output_dir": str(tmp_path / "runs")}} | arguments
    with pytest.raises(mathrl.UserError, match=words):
        mathrl.train(TINY, **given)
    assert not (tmp_path / "runs" / "tiny").exists()


def test_errors_and_advice_name_what_a_call_takes(runs, tmp_path, capsys):
    first, *_ = runs
    recipe = str(first.path / "config.toml")
    with pytest.raises(mathrl.UserError) as told:
        mathrl.train(recipe)
    assert str(told.value) == (
        f'the run folder {first.path} exists: go on with resume=True, or choose another run={{"name": …}} '
        "(overwrite=True deletes it and starts anew)"
    )
    assert mathrl.train(recipe, resume=True).summary == first.summary
    assert (
        'a larger train={"num_steps": …} goes on, another run={"name": …} trains' in capsys.readouterr().out
    )
    with pytest.raises(mathrl.UserError, match=r"^jobs must lie between 1 and 64, got 0"):
        mathrl.judge([{"question": "2+2?", "answer": "4", "completion": "4"}], jobs=0)
    (tmp_path / "eval.json").write_text("mine")
    for given, sentence in (
        ({"out": tmp_path}, r"/eval.json exists: choose another out, or replace it with overwrite=True$"),
        (
            {"options": {"shots_data": "train.jsonl"}},
            r'options=\{"shots_data": …\} gives examples and options=\{"shots": …\} says how many',
        ),
        ({"options": {"shot": 4}}, r"options has no 'shot': did you mean 'shots'"),
        ({"options": {"samples": 4}}, r"options has no 'samples'"),
        ({"options": {"against": str(tmp_path)}}, rf"cannot read {tmp_path}/problems-\w+: No such"),
        ({"options": {"reference": True}, "adapter": "a"}, r'options=\{"reference": True\} and adapter excl'),
    ):
        with pytest.raises(mathrl.UserError, match=sentence):
            mathrl.evaluate(first, data=ROWS[:6], **given)


def test_an_interrupted_call_says_how_it_goes_on(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt, match="resume=True goes on"):
        mathrl.train(
            TINY,
            problems=ROWS,
            after_step=lambda *_: os.kill(os.getpid(), signal.SIGINT),
            data={"source": "wordproblems"},
            sft={"path": str(write_rows([{**r, "solution": f"#### {r['answer']}"} for r in ROWS], tmp_path))},
            run={"output_dir": str(tmp_path)},
            evaluate={"every_steps": 0, "num_samples": 0, "num_problems": 8},
        )
    assert "is saved. The same call goes on with resume=True" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sentence", "told"),
    [
        ("take --rollout.engine transformers", 'take rollout={"engine": "transformers"}'),
        ("with --rollout.engine if it", 'with rollout={"engine": …} if it'),
        ("use --run.device cpu or auto", 'use run={"device": "cpu"} or auto'),
        ("set --update.gradient_checkpointing true, or", 'set update={"gradient_checkpointing": True}, or'),
        ("--sft.skip --model.path DIR.", 'sft={"skip": True} model={"path": "DIR"}.'),
        ("name one with --model.path. Or", 'name one with model={"path": …}. Or'),
        ("more than --shots 4: lower it", 'more than options={"shots": 4}: lower it'),
        ("--top-p must lie in (0, 1]", 'options={"top_p": …} must lie in (0, 1]'),
        ("give a file with --data gsm8k=FILE", 'give a file with data="gsm8k=FILE"'),
        ("(--data.where and --data.shots 2)", '(data={"where": …} and data={"shots": 2})'),
        ("--resume then goes on", "resume=True then goes on"),
        ("no field --data.nothing here", "no field data.nothing here"),
        ("start the ranks with --gpus N", "start the ranks with --gpus N"),
        ("name it: mathrl eval MODEL --data FILE, --data", "name it: mathrl eval MODEL --data FILE, data"),
        ("/tmp/--data/x-- and a--data stay", "/tmp/--data/x-- and a--data stay"),
    ],
)
def test_a_sentence_in_the_words_of_a_call(sentence, told):
    assert in_python(sentence, {"resume": False, "data": None}, {"shots": 0, "top_p": 1.0}) == told


def test_what_both_doors_say_names_no_command_and_logs_name_no_option():
    """Errors are told anew for a call, by their options; a log is not, and no word of a command is."""
    package = Path(mathrl.__file__).parent
    files = [
        f for f in package.rglob("*.py") if f.relative_to(package).parts[0] not in ("commands", "cli.py")
    ]
    assert len(files) > 100
    logged = 0
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone:
                assert not re.search(r"(same|this|repeat the) command\b", node.value), (file, node.value)
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in ("debug", "info", "warning", "error"):
                logged += 1
                assert not re.search(r"--[a-z]", ast.unparse(node)), (file, ast.unparse(node))
    assert logged >= 2


def test_fields_that_sentences_name_are_there():
    named = {
        name
        for file in sorted(Path(mathrl.__file__).parent.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in re.findall(r"--([a-z_]+\.[a-z_0-9]+)", node.value)
    } - {"section.key"}
    assert len(named) > 20
    assert named <= {name for name, _ in all_fields()}


def made(right: str, name: str = "made") -> Evaluation:
    """A greedy completion a letter: ``x`` is right."""
    greedy = [Judged("so", "correct" if letter == "x" else "wrong", "1") for letter in right]
    return Evaluation(name, tuple(Record(Problem(f"p{i}", "q", "1"), g) for i, g in enumerate(greedy)), {})


def test_a_run_says_what_stands_in_its_summary(tmp_path):
    summary = {"before": {"accuracy": 0.25}, "after": {"accuracy": 0.75}, "difference": {"value": 0.5}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    run = mathrl.Run(tmp_path)
    assert (run.accuracy_before, run.accuracy, run.difference["value"]) == (0.25, 0.75, 0.5)


def test_a_comparison_is_the_second_minus_the_first():
    assert mathrl.compare(made("x..."), made("xxx.")).value == 0.5
    assert mathrl.compare(made("xxx."), made("x...")).newly_wrong == ("p1", "p2")


def test_results_of_several_benchmarks_are_no_evaluation(tmp_path):
    for name in ("gsm8k", "svamp"):
        (tmp_path / name).mkdir()
        write_evaluation(made("x.", name), tmp_path / name / "completions.jsonl", {"resume_key": "made"})
    with pytest.raises(mathrl.UserError, match=r"one benchmark \(it holds: gsm8k, svamp\)"):
        mathrl.compare(tmp_path, made("x."))
    assert mathrl.compare(tmp_path / "gsm8k", made("xx")).value == 0.5


def test_a_dictionary_within_a_section_is_a_section_of_its_own(tmp_path, monkeypatch):
    asked: list[Config] = []
    monkeypatch.setattr("mathrl.commands.train.train", lambda config, **more: asked.append(config))
    mathrl.train(
        TINY,
        problems=[Problem("a", "q", "1", "number"), Problem("b", "q2", "2", "expression")],
        run={"output_dir": str(tmp_path)},
        data={"history": {"enabled": True, "window": 9}},
    )
    (config,) = asked
    assert (config.data.history.enabled, config.data.history.window) == (True, 9)
    assert config.data.answer_type_field == "answer_type", "records name their own"
    assert api._fields({"a": {"b": {"c": 1}, "d": {}}}) == {"a.b.c": 1, "a.d": {}}
    assert api._fields({"run": {"output_dir": Path("a")}}) == {"run.output_dir": "a"}


def test_problem_records_and_data_sets_are_rows(tmp_path):
    import datasets
    import pandas

    from mathrl.data.in_memory import write_rows

    rows = [{"question": "q", "answer": "1", "level": 3}]
    path = write_rows(rows, tmp_path)
    assert write_rows(datasets.Dataset.from_list(rows), tmp_path) == path  # equal rows, one file
    assert write_rows(pandas.DataFrame(rows), tmp_path) == path
    records = write_rows([Problem("x", "q", "1", "number", meta={"level": 3})], tmp_path)
    assert (
        json.dumps({"level": 3, "question": "q", "answer": "1", "answer_type": "number"})
        in records.read_text()
    )


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, mathrl, verifiers; dir(mathrl); "
        "print([m for m in ('torch', 'transformers', 'pydantic', 'numpy', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mathrl.trian
