"""Processes forked from one that has loaded: whose they are, what they know, and when they end."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from processes import ends_soon, lives

from mathrl.rollout.core.process import belong_to_trainer
from mathrl.rollout.core.server import CoreServer

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
