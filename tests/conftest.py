"""What several tests need: the folder of real data sets, and a tiny model with its tokenizer."""

import os
import shutil
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes stand side by side, a core each


# what takes a minute and more begins first, so that no process is left with it at the end
_LONG = (
    "distributed/", "test_vllm", "test_stop_with_vllm", "test_hub_end_to_end", "test_algorithm_",
    "test_smollm2", "test_job", "test_learning", "test_compiled", "test_dry_run",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in ``_LONG``'s order, then all others as they stand; one file stays in one piece."""
    place = {name: i for i, name in enumerate(_LONG)}
    items.sort(
        key=lambda item: min((place[n] for n in _LONG if n in item.path.as_posix()), default=len(_LONG))
    )


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with gsm8k/, svamp/, mawps/, gsm_hard/ and aqua/ as their authors publish them."""
    folder = os.environ.get("MATHRL_DATA_DIR")
    if not folder or not Path(folder, "gsm8k").is_dir():
        pytest.skip(
            "real data sets: set MATHRL_DATA_DIR to a folder that holds gsm8k/train.jsonl and the like"
        )
    return Path(folder)


@pytest.fixture(scope="session")
def made_run_once(tmp_path_factory):
    """A finished run folder with made numbers; for tests that leave it as it is."""
    from made_run import make_run

    return make_run(tmp_path_factory.mktemp("made") / "made")


@pytest.fixture
def made_run(made_run_once, tmp_path):
    """A finished run folder with made numbers, of the test's own."""
    return Path(shutil.copytree(made_run_once, tmp_path / "made"))
