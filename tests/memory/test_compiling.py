"""Whether compiling pays: the rule with its numbers, and what rules it out."""

import pytest
from transformers import Qwen2Config

from mathrl.algorithms.table import ALGORITHMS
from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.memory.compiling import COST_S, compiling, seconds_gained
from mathrl.memory.plan import GIB, make_plan, of_one_rank
from mathrl.memory.shapes import KNOWN_SHAPES, Shape
from mathrl.recipes import config_of, dump, load_config, load_recipe

HALF_B, ONE_HALF_B, SEVEN_B = (KNOWN_SHAPES[f"qwen2.5-{size}b"] for size in ("0.5", "1.5", "7"))


def recipe(steps: int = 1000, **sections) -> Config:
    """64 × 8 completions, of 512 tokens at most after prompts of 256: half as many are those measured."""
    rollout = {
        "problems_per_step": 64, "group_size": 8, "max_prompt_tokens": 256, "max_completion_tokens": 512
    }  # fmt: skip
    table = {"rollout": rollout | sections.pop("rollout", {}), "train": {"num_steps": steps}}
    return Config.model_validate(table | sections)


@pytest.mark.parametrize(
    ("shape", "measured"), [(HALF_B, 2.69 - 1.34), (ONE_HALF_B, 4.52 - 3.09)], ids=["0.5B", "1.5B"]
)
def test_a_step_gains_nearly_what_was_measured_and_not_more(shape, measured):
    gained = seconds_gained(recipe(), shape)
    assert 0.6 * measured < gained < measured


def test_the_gain_is_that_of_values_and_tokens():
    """2.2e-11 s × 139,264 tokens × (24 (896 + 4864) + 151,936) values."""
    gained = seconds_gained(recipe(), HALF_B)
    assert gained == pytest.approx(2.2e-11 * 64 * (128 + 8 * 256) * 290_176)
    assert seconds_gained(recipe(update={"num_epochs": 3}), HALF_B) == pytest.approx(3 * gained)
    own = seconds_gained(recipe(update={"share_prompts": False}), HALF_B)
    assert own == pytest.approx(gained * (128 + 256) / (16 + 256), rel=1e-9)
    assert seconds_gained(of_one_rank(recipe(), 4), HALF_B) == pytest.approx(gained / 4)


def test_it_compiles_where_the_steps_to_come_gain_twice_what_it_costs():
    enough = int(2 * COST_S / seconds_gained(recipe(), HALF_B)) + 1  # 203 steps
    assert not compiling(recipe(enough - 1), HALF_B).on
    assert compiling(recipe(enough), HALF_B).on
    assert compiling(recipe(enough + 50), HALF_B, steps_done=50).on
    assert not compiling(recipe(enough + 50), HALF_B, steps_done=51).on
    assert not compiling(recipe(10), HALF_B, steps_done=20).on
    assert not compiling(of_one_rank(recipe(enough), 2), HALF_B).on
    assert compiling(of_one_rank(recipe(2 * enough), 2), HALF_B).on
    assert compiling(recipe(enough // 2), SEVEN_B).on


def test_with_a_time_limit_no_more_is_gained_than_a_part_of_what_is_left():
    """A fifth of 900 s are the 180 s that are wanted."""

    def on(limit: float, seconds: float = 0.0) -> bool:
        config = recipe(100_000)
        train = config.train.model_copy(update={"max_seconds": limit})
        return compiling(config.model_copy(update={"train": train}), HALF_B, seconds=seconds).on

    assert [on(limit) for limit in (899.0, 901.0, 0.0)] == [False, True, True]
    assert [on(1800.0, seconds) for seconds in (899.0, 901.0)] == [True, False]


def test_it_says_what_it_weighed():
    assert str(compiling(recipe(230), HALF_B)) == (
        "layers compiled, for that gains about 204 s over 230 steps and takes about 90"
    )
    assert str(compiling(recipe(230), HALF_B, steps_done=130)) == (
        "layers not compiled, for that would gain about 89 s over 100 steps, "
        "less than 2 times the 90 that it takes"
    )


def test_the_packaged_recipes():
    """The large models compile, on one GPU; what is small or short does not."""
    chosen = {"gsm8k": HALF_B, "math": ONE_HALF_B}
    for name, shape in chosen.items():
        config = load_recipe(name)
        assert config.update.compile == "auto"
        assert compiling(config, shape).on
    small = Shape(4096, 512, 12, 8, 4, 1408, True, True, 64)
    assert not compiling(load_recipe("wordproblems_gpu"), small).on
    assert not compiling(load_recipe("wordproblems_gpu", [("train.num_steps", "5000")]), small).on


def test_what_differentiates_twice_is_not_compiled():
    twice = {
        name for name in ALGORITHMS if "twice" in compiling(recipe(algorithm={"name": name}), HALF_B).why
    }
    assert twice == {name for name, row in ALGORITHMS.items() if row.update_rule == "trust_region"}


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"update": {"gradient_checkpointing": True}}, "gradient_checkpointing"),
        ({"update": {"fused_lora": False}}, "fused_lora"),
        ({"lora": {"dropout": 0.1}}, "dropout"),
    ],
)
def test_another_way_than_the_measured_one_is_not_compiled(sections, word):
    assert compiling(recipe(), HALF_B).on
    chosen = compiling(recipe(**sections), HALF_B)
    assert not chosen.on
    assert word in chosen.why


def test_padded_rows_unknown_sizes_and_other_devices_are_not_compiled():
    windows = Qwen2Config(
        num_hidden_layers=2, use_sliding_window=True, sliding_window=16, max_window_layers=0, vocab_size=10**6
    )
    assert "sliding" in compiling(recipe(), Shape.of(windows)).why
    assert not compiling(recipe(), Shape.of(windows)).on
    assert not compiling(recipe(), None).on
    assert not compiling(recipe(), HALF_B, cuda=False).on


def test_a_recipe_that_says_so_is_followed():
    for told in (True, False):
        config = recipe(1 if told else 10**6, update={"compile": told})
        assert compiling(config, HALF_B).on is told
        assert not compiling(config, HALF_B, cuda=False).on


@pytest.mark.parametrize("steps", [1, 1000])
def test_the_plan_of_memory_decides_in_the_same_way(steps):
    config = recipe(steps)
    plan = make_plan(config, HALF_B, 80 * GIB)
    ways = {on: make_plan(config, HALF_B, 80 * GIB, compiled=on) for on in (True, False)}
    assert plan == ways[steps == 1000]
    assert ways[True].total < ways[False].total


def test_old_words_and_the_new_one_are_read_and_written(tmp_path):
    for told in (True, False, "auto"):
        file = tmp_path / "config.toml"
        file.write_text(dump(recipe(update={"compile": told})))
        assert load_config(file).update.compile == told
        assert type(load_config(file).update.compile) is type(told)
    assert Config().update.compile == "auto"
    for text, value in (("true", True), ("no", False), ("auto", "auto")):
        assert config_of({}, "test", [("update.compile", text)]).update.compile == value
    with pytest.raises(UserError, match="^test: update.compile: must be true, false or auto, not 'maybe'"):
        config_of({"update": {"compile": "maybe"}}, "test")
