"""Configuration: round trip, overrides, and what a wrong value is told."""

import pytest

from mathrl.cli import main
from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.recipes import (
    all_fields,
    check_named,
    config_of,
    differences,
    dump,
    find_recipe,
    load_config,
    load_recipe,
    recipe_names,
    values_by_name,
)
from mathrl.recipes.kinds_of_run import KINDS_OF_RUN


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_survives_being_saved(name, tmp_path):
    config = load_recipe(name, [("rollout.group_size", "4"), ("run.name", 'a "quoted" näme')])
    for comments in (False, True):
        path = tmp_path / "config.toml"
        path.write_text(dump(config, comments), encoding="utf-8")
        assert load_config(path) == config
    assert config.recipe == name
    assert config.rollout.group_size == 4


def test_reward_functions_are_said_in_one_option_or_in_tables(tmp_path):
    said = load_recipe("quickstart", [("reward.functions", "mine:short=0.25, pkg.mine:right")])
    path = tmp_path / "config.toml"
    path.write_text(
        'extends = "quickstart"\n[[reward.functions]]\npath = "mine:short"\nweight = 0.25\n'
        '[[reward.functions]]\npath = "pkg.mine:right"\n'
    )
    assert said.reward.functions == load_recipe(str(path)).reward.functions
    assert [(f.path, f.weight) for f in said.reward.functions] == [
        ("mine:short", 0.25),
        ("pkg.mine:right", 1),
    ]
    path.write_text(dump(said, comments=True))
    assert load_config(path) == said
    for table, known in (("reward.functions", "weight"), ("data.mix", "weight")):
        path.write_text(f'[[{table}]]\npath = "mine:short"\n[[{table}]]\npath = "a:b"\nwieght = 1\n')
        with pytest.raises(UserError, match=f"unknown key '{table}.1.wieght': did you mean '{known}'"):
            load_recipe(str(path))


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[update]\nlearning_rate = 0.5\nnum_epochs = 2\n")
    config = load_recipe(str(path), [("update.learning_rate", "1e-4"), ("algorithm.kl_coef", "0.25")])
    update = config.update
    assert (update.learning_rate, update.num_epochs, config.algorithm.kl_coef) == (1e-4, 2, 0.25)
    changed = differences(config, Config(recipe="mine"))
    assert changed == {
        "update.learning_rate": (2e-3, 1e-4),
        "update.num_epochs": (1, 2),
        "algorithm.kl_coef": (None, 0.25),
    }


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([("rollout.group_sise", "4")], ["rollout.group_sise", "'rollout.group_size'"]),
        ([("rollout.group_size", "0")], ["rollout.group_size", "'0'", "greater than or equal to 1"]),
        ([("rollout.group_size", "many")], ["rollout.group_size", "'many'", "must be a whole number"]),
        ([("rollout", "4")], ["--rollout is a section", "--rollout.engine"]),
        ([("update.learning_rate", "nan")], ["update.learning_rate", "finite"]),
        ([("sft.skip", "true")], ["sft.skip needs model.path"]),
        ([("reward.functions", "mine.py=0.5")], ["reward.functions.0.path", "'mine.py'", "match pattern"]),
        ([("reward.functions", "mine:f=much")], ["reward.functions.0.weight", "'much'", "number"]),
        ([("algorithm.ratio", "word")], ["algorithm.ratio", "'token'"]),
        ([("model.num_heads", "3")], ["hidden_size 128 must be a multiple of num_heads 3"]),
        ([("model.instruction", "{question}\n{option}")], ["{option} stands for nothing: write {options}"]),
        (
            [("data.path", "a.csv"), ("sft.max_steps", "2")],
            ["for generated problems, and those of a.csv are taken", "sft.max_train_steps"],
        ),
        (
            [("data.mix", "a.csv=1"), ("data.num_train_problems", "9")],
            ["num_train_problems", "those of the mix"],
        ),
        ([("data.source", "gsm8k"), ("data.max_operand", "9")], ["max_operand", "those of gsm8k"]),
        (
            [("sft.path", "b.csv"), ("sft.num_problems", "9")],
            ["sft.num_problems = 9 is for generated problems, and those of b.csv are taken: leave it out"],
        ),
        (
            [("data.eval_path", "b.csv")],
            [
                "data.eval_path = 'b.csv' is for problems of a file",
                "are generated: name yours with --data.path",
            ],
        ),
        ([("sft.path", "b.csv"), ("data.eval_path", "c.csv")], ["data.eval_path", "are generated"]),
        ([("data.where", "level=1")], ["data.where", "are generated"]),
        ([("data.min_steps", "3"), ("data.max_steps", "2")], ["min_steps 3 must be <= max_steps 2"]),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_range(overrides, words, tmp_path):
    path = tmp_path / "plain.toml"
    path.write_text("")
    with pytest.raises(UserError) as error:
        load_recipe(str(path), overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", [r"{question} \boxed{option} {answer}", "{question} {options}", "{question} {x}"]
)
def test_other_braces_of_an_instruction_are_its_own(text):
    assert load_recipe("default", [("model.instruction", text)]).model.instruction == text


def test_unknown_recipe_and_unknown_key_suggest_near_names(tmp_path):
    with pytest.raises(UserError, match="unknown recipe 'quikstart'.*'quickstart'"):
        load_recipe("quikstart")
    with pytest.raises(UserError, match="does not exist"):
        load_recipe(str(tmp_path / "none.toml"))
    with pytest.raises(UserError, match=r"unknown key 'updat'"):
        config_of({"updat": {}}, where="here")
    broken = tmp_path / "broken.toml"
    broken.write_text("[update\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_recipe(str(broken))


def test_config_command_prints_every_field(capsys, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("")
    assert main(["config", str(path), "--rollout.group_size", "3"]) == 0
    text = capsys.readouterr().out
    assert "group_size = 3" in text
    for key in values_by_name(Config()):
        assert f"{key.split('.')[-1]} =" in text


def test_a_recipe_extends_another_and_says_only_what_it_changes(tmp_path):
    (tmp_path / "base.toml").write_text('extends = "quickstart"\n[update]\nlearning_rate = 0.5\n')
    (tmp_path / "mine.toml").write_text('extends = "base.toml"\n[update]\nnum_epochs = 2\n[run]\nseed = 4\n')
    config = load_recipe(str(tmp_path / "mine.toml"), [("run.seed", "5")])
    changed = differences(config, load_recipe("quickstart"))
    assert {k: new for k, (_, new) in changed.items()} == {
        "recipe": "mine", "update.learning_rate": 0.5, "update.num_epochs": 2, "run.seed": 5,
    }  # fmt: skip
    assert load_recipe("ppo").sft == load_recipe("quickstart").sft
    (tmp_path / "round.toml").write_text('extends = "round.toml"\n')
    with pytest.raises(UserError, match="extends itself"):
        load_recipe(str(tmp_path / "round.toml"))
    (tmp_path / "lost.toml").write_text('extends = "quikstart"\n')
    with pytest.raises(UserError, match="'quickstart'"):
        load_recipe(str(tmp_path / "lost.toml"))


@pytest.mark.parametrize(
    ("fields", "recipe"),
    [
        ({}, "quickstart"),
        ({"train.num_steps": "2", "algorithm.name": "ppo"}, "quickstart"),
        ({"model.path": "m"}, "default"),
        ({"data.path": "f.jsonl"}, "default"),
        ({"data.source": "gsm8k"}, "default"),
        ({"data.mix": "a.jsonl,b.jsonl"}, "default"),
        ({"model.path": ""}, "quickstart"),
    ],
)
def test_without_a_name_the_recipe_is_made_for_what_is_given(fields, recipe):
    assert find_recipe("", list(fields.items())).recipe == recipe
    assert find_recipe("default", list(fields.items())).recipe == "default"


def test_the_default_recipe_is_for_pretrained_models():
    config = load_recipe("default")
    assert (config.rollout.max_prompt_tokens, config.rollout.max_completion_tokens) == (0, 0)
    assert config.update.learning_rate == 3e-5
    assert config.sft.lora
    assert config.sft.keep_best
    assert config.sft.direct_answer_fraction == 0
    with pytest.raises(UserError, match="no model is named"):
        check_named(config)


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        (
            "quickstart",
            {"model.path": "m"},
            "sft.direct_answer_fraction = 0.7 is for a model built",
        ),
        ("quickstart", {"model.path": "m", "sft.skip": "true"}, ""),
        (
            "wordproblems_gpu",
            {"model.path": "m"},
            "model.hidden_size = 512 is for a model built",
        ),
        ("wordproblems_gpu", {"model.path": "m", "sft.skip": "true"}, ""),
        ("default", {"model.path": "m", "model.num_layers": "2", "sft.skip": "true"}, "model.num_layers = 2"),
        ("default", {"model.path": "m", "model.num_layers": "3"}, "model.num_layers = 3"),  # the usual, said
        ("quickstart", {"model.num_layers": "2"}, ""),
    ],
)
def test_what_only_a_model_from_nothing_has_is_refused_beside_a_model(recipe, fields, message):
    if message:
        with pytest.raises(UserError) as error:
            load_recipe(recipe, list(fields.items()))
        assert message in str(error.value)
        assert "model.path names m" in str(error.value)
    else:
        assert load_recipe(recipe, list(fields.items())).recipe == recipe


@pytest.mark.parametrize(
    "fields",
    [
        {"sft.path": "b.csv", "data.max_operand": "9"},  # the problems of reinforcement are generated
        {"data.path": "a.csv", "sft.epochs": "2"},
        {"data.path": "a.csv", "data.eval_path": "b.csv", "data.where": "level=1"},
        {"data.source": "gsm8k", "data.eval_fraction": "0.2"},
        {"sft.path": "b.csv", "data.question_field": "q"},  # which stands there
        {"data.shots": "2", "data.shots_path": "b.csv", "data.question_field": "q"},
    ],
)
def test_what_counts_beside_problems_of_ones_own_is_taken(fields):
    assert load_recipe("quickstart", list(fields.items())).recipe == "quickstart"


def test_every_field_of_one_kind_of_run_is_a_field_and_stands_in_one_kind():
    names = [name for kind in KINDS_OF_RUN for name in kind.fields]
    assert set(names) <= {name for name, _ in all_fields()}
    assert len(set(names)) == len(names) == 31


def test_a_saved_run_loads_whatever_its_recipe_said(tmp_path):
    """A model's own reference is its path then, beside the sizes that it was built with."""
    config = load_recipe("wordproblems_gpu", [("model.path", "runs/x/reference"), ("sft.skip", "true")])
    path = tmp_path / "config.toml"
    path.write_text(dump(config))
    assert load_config(path) == load_recipe(str(path)) == config
