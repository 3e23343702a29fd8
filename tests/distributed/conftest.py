"""What the tests of ranks share: a reference, the run that they disturb, and what it gives undisturbed."""

from pathlib import Path

import pytest
from launched import RECIPE

from mathrl.cli import main


@pytest.fixture(scope="session")
def five_steps() -> list[str]:
    """Arguments of a supervised stage, but for its folder."""
    return ["sft", RECIPE, "--sft.max_train_steps", "5", "--tracking.tensorboard", "false"]


@pytest.fixture(scope="session")
def supervised(five_steps, tmp_path_factory) -> Path:
    """The folder of a supervised stage of one process."""
    made = tmp_path_factory.mktemp("supervised")
    assert main([*five_steps, "--run.output_dir", str(made)]) == 0
    return made / "tiny"


@pytest.fixture(scope="session")
def arguments(supervised) -> list[str]:
    """A run of six steps from a reference that is there; its only look and checkpoint are of step 5.

    Its reward function adds nothing and can be told to do harm.
    """
    return [
        "train", RECIPE, "--sft.skip", "--model.path", str(supervised / "reference"),
        "--run.output_dir", "runs", "--train.num_steps", "6", "--checkpoint.every_steps", "0",
        "--evaluate.every_steps", "5", "--evaluate.every_num_problems", "4",
        "--evaluate.num_problems", "4", "--evaluate.num_samples", "1", "--tracking.tensorboard", "false",
        "--reward.functions", "planted_rewards:planted",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def whole(arguments, tmp_path_factory) -> Path:
    """The run that nothing disturbed, of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        assert main(arguments) == 0
        return Path("runs/tiny").resolve()
