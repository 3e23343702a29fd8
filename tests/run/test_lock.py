"""One process at a time works in a folder; whoever has gone, however, is in nobody's way."""

import errno
import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mathrl.errors import UserError
from mathrl.run import lock as module
from mathrl.run.lock import FolderLock, Holder


def hold(folder: str, ready) -> None:
    with FolderLock(Path(folder), "it"):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(str(tmp_path), ready), daemon=True)
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


def test_the_second_process_is_refused_with_the_first_ones_pid_and_host(tmp_path, holder):
    lock = FolderLock(tmp_path, "the run in here")
    said = rf"the run in here is being worked on by process {holder.pid} on {os.uname().nodename}, since 2"
    with pytest.raises(UserError, match=said), lock:
        pass
    with pytest.raises(UserError, match=said):
        lock.refuse_if_held()
    assert json.loads(lock.file.read_text())["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_stale(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    lock = FolderLock(tmp_path, "it")
    assert lock.file.is_file()
    lock.refuse_if_held()
    with lock:
        assert json.loads(lock.file.read_text())["pid"] == os.getpid()
    assert not lock.file.exists()


def test_a_pid_that_was_given_again_is_another_process(tmp_path):
    lock = FolderLock(tmp_path, "it")
    earlier = replace(Holder.this_process(), started=Holder.this_process().started - 100)
    lock.file.write_text(json.dumps(asdict(earlier)))
    lock.refuse_if_held()
    with lock:
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_file_that_names_nobody_holds_nothing(tmp_path, content):
    (tmp_path / FolderLock.NAME).write_text(content)
    FolderLock(tmp_path, "it").refuse_if_held()
    with FolderLock(tmp_path, "it"):
        pass


def elsewhere(tmp_path) -> FolderLock:
    lock = FolderLock(tmp_path, "it")
    lock.file.write_text(json.dumps(asdict(replace(Holder.this_process(), host="node7", pid=1))))
    return lock


def test_on_another_host_the_holder_lives_as_long_as_it_touches_the_file(tmp_path, monkeypatch):
    """A file system may keep the system's locks to one machine: the file's time then decides."""
    lock = elsewhere(tmp_path)
    touches = iter(range(3))
    monkeypatch.setattr(module.time, "sleep", lambda s: os.utime(lock.file, (9e8, 9e8 + next(touches))))
    monkeypatch.setattr(module.time, "time", lambda: 9e8)
    with pytest.raises(UserError, match="process 1 on node7"), lock:
        pass
    assert json.loads(lock.file.read_text())["host"] == "node7"


def test_on_another_host_a_silent_holder_is_gone(tmp_path, monkeypatch):
    lock = elsewhere(tmp_path)
    now = [0.0]
    monkeypatch.setattr(module.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with lock:
        assert now[0] >= module._SILENT_S
    long_ago = elsewhere(tmp_path)
    os.utime(long_ago.file, (1e9, 1e9))
    now[0] = 0.0
    with long_ago:
        assert now[0] == 0.0, "nothing to wait for"


def test_without_locks_of_the_system_the_pid_decides(tmp_path, holder, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    with pytest.raises(UserError, match=f"process {holder.pid} on"), FolderLock(tmp_path, "it"):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with FolderLock(tmp_path, "it"):
        pass


def test_the_holder_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_S", 0.01)
    lock = FolderLock(tmp_path, "it")
    with lock:
        os.utime(lock.file, (1e9, 1e9))
        deadline = time.monotonic() + 30
        while lock.file.stat().st_mtime == 1e9:
            assert time.monotonic() < deadline
            time.sleep(0.01)
