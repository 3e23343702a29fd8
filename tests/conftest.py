"""What several tests need: the folder of real data sets, and a tiny model with its tokenizer."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: test processes stand side by side, a core each
if not any(Path("/dev").glob("nvidia[0-9]*")):  # kernels are interpreted where there is no GPU; before triton
    os.environ.setdefault("TRITON_INTERPRET", "1")


# what takes long begins first, so that no process is left with it at the end
_LONG = (
    "test_launch", "rollout/test_vllm", "test_job", "test_failures", "test_stop_with_vllm", "test_equality",
    "test_hub_end_to_end", "test_learning", "test_algorithm_", "test_smollm2", "test_sharded",
    "test_isolation", "test_statistics", "test_conformance", "test_compiled", "test_dry_run",
)  # fmt: skip
# one process runs them in turn: vLLM is loaded once, and its engine is shared
_TOGETHER = ("test_vllm.py", "test_vllm_public.py", "test_vllm_training.py", "test_steady_decoding.py")


def _long(path: str) -> int:
    """Place in ``_LONG``; what runs together is as long as its first file."""
    path = "rollout/test_vllm.py" if path.endswith(_TOGETHER) else path
    return next((place for place, name in enumerate(_LONG) if name in path), len(_LONG))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in ``_LONG``'s order, then all others as they stand; one file stays in one piece."""
    items.sort(key=lambda item: _long(item.path.as_posix()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile``: a file to a process, and ``_TOGETHER`` to one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return _TOGETHER[0] if file.endswith(_TOGETHER) else file

    return ByFile(config, log)


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
