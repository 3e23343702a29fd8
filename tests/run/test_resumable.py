"""What a run may go on with: every field is decided on, and a refusal names all that hinder."""

import pytest

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.recipes import all_fields, config_of
from mathrl.run.folder import RunFolder
from mathrl.run.resumable import MAY_CHANGE, MUST_STAY, decided, hindrances

FIELDS = [name for name, _ in all_fields()]


def test_every_field_is_decided_on_once():
    for name in FIELDS:
        assert decided(MAY_CHANGE, name) != decided(MUST_STAY, name), name
    known = {*FIELDS, *(name.partition(".")[0] for name in FIELDS)}
    for groups in (MAY_CHANGE, MUST_STAY):
        listed = [name for names in groups.values() for name in names]
        assert set(listed) <= known
        assert len(listed) == len(set(listed))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("evaluate.every_steps", "3"),
        ("evaluate.every_num_problems", "7"),
        ("evaluate.num_samples", "0"),
        ("evaluate.num_problems", "9"),
        ("reward.num_workers", "5"),
        ("checkpoint.every_steps", "1"),
        ("tracking.samples_per_step", "0"),
        ("tracking.num_watched", "1"),
        ("update.micro_batch_tokens", "512"),
        ("rollout.gpu_memory_fraction", "0.3"),
        ("train.overlap", "off"),
        ("description", "again"),
    ],
)
def test_what_changes_no_step_may_change(field, value):
    assert hindrances(config_of({}, "test", [(field, value)]), Config()) == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run.seed", "1"),
        ("rollout.temperature", "0.5"),
        ("reward.timeout_s", "1"),
        ("sft.skip", "true"),
        ("update.learning_rate", "1"),
        ("evaluate.max_completion_tokens", "5"),
        ("data.history.enabled", "true"),
        ("model.stop_tokens", "7"),
    ],
)
def test_what_numbers_rest_on_may_not(field, value):
    config = config_of({}, "test", [("model.path", "m"), (field, value)])
    assert list(hindrances(config, config_of({}, "test", [("model.path", "m")]))) == [field]


def test_a_refusal_is_one_sentence_and_names_every_field(tmp_path):
    changes: dict = {"lora": {"rank": 8}, "run": {"seed": 1}, "model": {"system_prompt": "x" * 500}}
    changes |= {"rollout": {"top_k": 3, "temperature": 0.5}, "evaluate": {"every_steps": 2}}
    out = {"recipe": "mine", "run": {"output_dir": str(tmp_path)}}
    folder = RunFolder.of(before := Config.model_validate(out))
    with folder.open(before, overwrite=False):
        pass
    config = Config.model_validate(out | changes | {"run": out["run"] | changes["run"]})
    with pytest.raises(UserError) as error:
        folder.check(config, resume=True, overwrite=False)
    said = str(error.value)
    assert "run.seed is 0 there and 1 here" in said
    assert "lora.rank is 16 there and 8 here" in said
    assert "rollout.temperature, rollout.top_k differ" in said
    assert "evaluate" not in said
    assert "\n" not in said
    assert len(said) < 600
