"""The environment that vLLM's processes start in."""

import logging
import os
import subprocess
import sys

import pytest

from mathrl.rollout.vllm_settings import engine_environment, graph_sizes, quieten

BAR = "from tqdm.auto import tqdm; from tqdm import tqdm as plain; list(tqdm([1])); list(plain([1]))"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_core_draws_no_bars_and_the_environment_is_as_before(device, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")  # the user's own
    before = dict(os.environ)
    with engine_environment(device):
        child = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
        assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert child.stdout + child.stderr == ""
    assert dict(os.environ) == before


def test_a_core_knows_nothing_of_the_ranks_and_compiles_into_a_cache_of_its_own(monkeypatch):
    """What torchrun says of a rank would let the core wait for others; ranks spoil each other's caches."""
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    told |= {"MASTER_ADDR": "here", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with engine_environment("cuda"):
        assert not told.keys() & os.environ.keys()
        assert os.environ["VLLM_CACHE_ROOT"].endswith("rank-1")
    assert told.items() <= os.environ.items()
    assert "VLLM_CACHE_ROOT" not in os.environ


@pytest.mark.parametrize("most", [1, 7, 8, 33, 500, 512, 1024])
def test_graphs_are_few_and_pad_little(most):
    sizes = graph_sizes(most)
    assert len(sizes) <= 26
    assert sizes[-1] == most
    filled = {n: next(size for size in sizes if size >= n) for n in range(1, most + 1)}
    assert all(size - n < max(32, n / 8) for n, size in filled.items())


@pytest.mark.parametrize(("said", "level"), [(None, "ERROR"), ("DEBUG", "DEBUG")])
def test_vllm_is_quiet_from_its_import_on_unless_the_user_says_otherwise(monkeypatch, said, level):
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", said or "")  # put back afterwards
    if said is None:
        del os.environ["VLLM_LOGGING_LEVEL"]
    quieten()
    assert logging.getLevelName(logger.level) == level
    assert os.environ["VLLM_LOGGING_LEVEL"] == level  # for the processes that it starts
