"""The command line: words and fields come apart, wrong ones are told in a sentence, nothing heavy loads."""

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mathrl import cli
from mathrl.cli import COMMANDS, QUIET, main
from mathrl.commands.recipe_fields import takes_fields
from mathrl.recipes import all_fields, dump, load_recipe


@pytest.fixture
def given(monkeypatch):
    """What ``mathrl train`` was given: recipe, switches, fields."""
    seen = {}

    def load(recipe, overrides):
        seen.update(recipe=recipe, fields=dict(overrides))
        return recipe

    class Job:
        @staticmethod
        def train(config, *, resume, overwrite):
            seen.update(resume=resume, overwrite=overwrite)
            return 0

    monkeypatch.setattr("mathrl.commands.entries.find_recipe", load)
    for check in ("check_named", "refuse_early", "begin_early"):
        monkeypatch.setattr(f"mathrl.commands.entries.{check}", lambda config, **_: None)
    monkeypatch.setitem(sys.modules, "mathrl.commands.train", Job)
    return seen


def test_words_switches_and_fields_come_apart(given):
    words = ["train", "--sft.skip", "gsm8k", "--model.path", "m", "--update.learning_rate=1e-5", "--resume"]
    words += ["--tracking.wandb", "false", "--reward.wrong", "-1", "--reward.length", "-1e-3"]
    assert main(words) == 0
    assert given == {
        "recipe": "gsm8k",
        "resume": True,
        "overwrite": False,
        "fields": {
            "sft.skip": "true",
            "model.path": "m",
            "update.learning_rate": "1e-5",
            "tracking.wandb": "false",
            "reward.wrong": "-1",
            "reward.length": "-1e-3",
        },
    }


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        (["--rollout.group_size", "4", "--rollout.group_size", "5"], {"rollout.group_size": "5"}),
        (["--rollout.group-size", "4"], {"rollout.group_size": "4"}),
        (["--sft.skip", "TRUE"], {"sft.skip": "true"}),
        (["--sft.skip=off", "--sft.compile"], {"sft.skip": "false", "sft.compile": "true"}),
        (["--model.system_prompt", "two words, -- and = signs"], None),
        (["--model.system_prompt="], {"model.system_prompt": ""}),
        (
            ["--model.chat_template_kwargs.enable_thinking", "false", "--model.chat_template_kwargs.n=2"],
            {"model.chat_template_kwargs.enable_thinking": "false", "model.chat_template_kwargs.n": "2"},
        ),
        (["--run.name", "true"], {"run.name": "true"}),
        (
            ["--update.compile", "false", "--sft.skip", "--run.seed", "1"],
            {"update.compile": "false", "sft.skip": "true", "run.seed": "1"},
        ),
        (["--update.compile", "true", "--update.compile=auto"], {"update.compile": "auto"}),
        (["--run.name", "on", "--sft.skip", "On"], {"run.name": "on", "sft.skip": "true"}),
    ],
)
def test_the_last_value_counts_and_any_text_is_a_value(words, fields, given):
    assert main(["train", "quickstart", *words]) == 0
    assert given["fields"] == (fields or {"model.system_prompt": words[1]})


@pytest.mark.parametrize("word", ["false", "No", "off"])
def test_a_command_s_own_flags_take_their_value_in_a_word_of_its_own(word, given):
    assert main(["train", "--overwrite", "ON", "quickstart", "--resume", word]) == 0
    assert (given["recipe"], given["resume"], given["overwrite"]) == ("quickstart", False, True)


def test_every_field_is_an_option():
    """Of both kinds: flags that may stand alone, and values."""
    seen = {}

    @takes_fields()
    def command(*, overrides):
        seen["fields"] = overrides

    names = [name for name, _ in all_fields() if "." in name]
    command(**{name.replace(".", "__"): "x" for name in names})
    assert seen["fields"] == [(name, "x") for name in names]
    assert len(names) > 120


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--seed", "3"], ["unknown option --seed", "did you mean --run.seed?"]),
        (["train", "--model-path", "m"], ["did you mean --model.path?"]),
        (
            ["train", "--rollout.group_sise", "4"],
            ["unknown option --rollout.group_sise", "'--rollout.group_size'"],
        ),
        (["train", "quikstart"], ["unknown recipe 'quikstart'", "'quickstart'"]),
        (["train", "one", "two"], ["train has no use for 'two'"]),
        (["train", "quickstart", "--run.seed"], ["--run.seed needs a value"]),
        (["train", "quickstart", "--run.seed", "--resume"], ["--run.seed needs a value"]),
        (["train", "quickstart", "--sft.skip=maybe"], ["--sft.skip must be true or false, not 'maybe'"]),
        (["train", "default", "--sft.skip", "maybe"], ["--sft.skip must be true or false, not 'maybe'"]),
        (["train", "--sft.skip", "maybe"], ["--sft.skip must be true or false, not 'maybe'"]),
        (["train", "--sft.skip", "1", "gsm8k"], ["--sft.skip must be true or false, not '1'"]),
        (["train", "--resume", "quikstart"], ["unknown recipe 'quikstart'", "'quickstart'"]),
        (["config", "gsm8k", "--plain", "maybe"], ["--plain must be true or false, not 'maybe'"]),
        (["plan", "--algorithm.correction", "so"], ["--algorithm.correction must be true or false"]),
        (["eval", "m", "--reference", "maybe"], ["--reference must be true or false, not 'maybe'"]),
        (["pairs", "--trained", "ja", "runs/x", "--out", "o"], ["--trained must be true or false, not 'ja'"]),
        (["export", "a", "b", "--public", "so"], ["--public must be true or false, not 'so'"]),
        (["train", "--model.chat_template_kwargs=3"], ["--model.chat_template_kwargs.NAME VALUE"]),
        (["train", "--model.chat_template_kwargs"], ["--model.chat_template_kwargs.NAME VALUE"]),
        (["train", "--lora.rank=2.5"], ["lora.rank = '2.5': must be a whole number"]),
        (["train", "quickstart", "--run.seed", "x"], ["run.seed = 'x': must be a whole number"]),
        (["report"], ["report needs RUN"]),
        (["report", "runs/x", "--run.seed", "1"], ["report takes no --run.seed"]),
        (["export", "a", "b", "--which", "first"], ["--which must be one of last, best, not 'first'"]),
        (["judge", "f", "--jobs", "few"], ["--jobs must be a whole number, not 'few'"]),
        (["eval", "m", "--sample", "8"], ["unknown option --sample", "'--samples'"]),
        (["train", "--data.path", "x.jsonl"], ["no model is named", "--model.path"]),
        (["train", "--model.path", "m"], ["no problems are named", "--data.path"]),
        (["sft", "--data.source", "gsm8k"], ["no model is named"]),
        (["trian"], ["unknown command 'trian'", "'train'"]),
        (["--verbose"], ["unknown option '--verbose'"]),
    ],
)
def test_a_wrong_word_is_told_in_one_sentence(argv, words, capsys):
    assert main(argv) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    for word in words:
        assert word in text


def test_help_says_what_a_person_asks_for(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("\n  mathrl ") == 3  # examples
    for name in COMMANDS:
        assert name in text
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("quickstart", "gsm8k", "wordproblems_gpu", "Without a recipe", "--run.name", "--model.path"):
        assert word in text
    assert sum(line.startswith("│ --") and "." in line.split()[1] for line in text.splitlines()) == 5
    assert main(["plan", "--help"]) == 0
    text = capsys.readouterr().out
    assert "Any field of the recipe can be set" in text
    assert "--update.micro_batch_tokens" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"Usage: mathrl {name}" in capsys.readouterr().out


HEAVY = ("torch", "transformers", "datasets", "peft", "scipy", "pandas", "vllm", "sympy", "numpy")
WATCH = """
import json, sys
from mathrl.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit:
        pass
    found[" ".join(words)] = [m for m in (*json.loads(sys.argv[2]), "pydantic") if m in sys.modules]
print(json.dumps(found), file=sys.stderr)
"""


def test_help_and_refusals_load_nothing_heavy(tmp_path):
    """In one process, in this order: what a later line may load must not be there in an earlier one."""
    light = [["--help"], ["--version"], ["trian"]]
    recipes = [["train", "--help"], ["train", "quikstart"], ["sft", "quikstart"], ["config", "quickstart"]]
    recipes += [["plan", "quickstart", "--gpu-memory-gib", "-1"], ["train", "--run.seed", "x"], ["export"]]
    recipes += [["replay"], ["report"]]
    began = ["quickstart", f"--run.output_dir={tmp_path}"]
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "config.toml").write_text(dump(load_recipe("quickstart")))
    recipes += [[command, *began] for command in ("train", "sft")]
    recipes += [["train", *began, "--resume", "--lora.rank=3"], ["train", *began, "--ranks=2"]]
    ran = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps([*light, *recipes]), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(ran.stderr.splitlines()[-1])
    assert found == {" ".join(w): [] for w in light} | {" ".join(w): ["pydantic"] for w in recipes}


def test_libraries_below_are_told_to_be_quiet_unless_the_user_wants_to_hear_them(monkeypatch, capsys):
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    assert main(["config", "quickstart"]) == 0
    assert {name: os.environ[name] for name in QUIET} == QUIET | {"TRANSFORMERS_VERBOSITY": "info"}
    for heard, options in ((0, []), (1, ["default"])):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("default")
            monkeypatch.setattr(sys, "warnoptions", options)
            assert main(["config", "quickstart"]) == 0
            for module in ("transformers.modeling_utils", "mine"):
                warnings.warn_explicit("will be removed", FutureWarning, "file.py", 1, module)
        assert len(seen) == 1 + heard


def test_a_disk_that_is_full_is_a_sentence_wherever_it_is_met(monkeypatch, capsys):
    def full(words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x/report.html")

    monkeypatch.setattr(cli, "make_app", lambda **kwargs: full)
    assert main(["report!"]) == 2
    told = capsys.readouterr().err
    assert told == "mathrl: runs/x/report.html cannot be written: the disk is full; make room\n"
    monkeypatch.setattr(cli, "make_app", lambda **kwargs: lambda words: Path(words[0]).read_text())
    with pytest.raises(FileNotFoundError):  # any other error of the system is as it was
        main(["train!"])
