"""Whether a core can use CUDA where it is forked, by its driver's own word, and what is loaded early."""

import ctypes
from importlib.util import find_spec

import pytest

from mathrl.rollout.core import preload
from mathrl.rollout.core.preload import _OF_A_CORE
from mathrl.rollout.core.server import CoreServer

STARTED = "CUDA has been started in the process to fork it from"
SERVER = """
import os
from mathrl.rollout.core import preload

class Driver:
    '''As CUDA's own: of use to the process that has begun with it, and to none that is forked from that.'''

    by = None

    def cuInit(self, flags):
        self.by = self.by or os.getpid()
        return {refused} if self.by == os.getpid() else 3

    def cuDeviceGetCount(self, count):
        return 0 if self.by == os.getpid() else 3

driver = Driver() if {loaded} else None
preload._driver = lambda: driver
preload._OF_A_CORE = {modules}
preload._WORKERS = {{"cuda": ("ends_without",)}}
os.environ[preload.DEVICE] = "cuda"
preload.load()
"""
MODULES = {
    "asks_for_a_number": "import ctypes, server_of_a_test as s\ns.driver.cuDeviceGetCount(ctypes.c_int())",
    "starts": "import leaf_before, time, server_of_a_test as s\ns.driver.cuInit(0)\ntime.sleep(0.02)\n"
    "import leaf_after",
    "leaf_before": "",
    "leaf_after": "",
    "ends_without": "",
}


def problem(folder, monkeypatch, *modules: str, refused: int = 0, loaded: bool = True, last: str = "") -> str:
    """Of a server that loads these, with a driver that answers so to who begins with it."""
    server = SERVER.format(refused=refused, loaded=loaded, modules=modules)
    for name, text in (MODULES | {"server_of_a_test": server, "ends_without": last}).items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    made = CoreServer("server_of_a_test")
    made.begin()
    try:
        return made.problem()
    finally:
        made._stop()


def test_who_has_not_begun_with_the_driver_may_fork_whatever_else_it_asked(tmp_path, monkeypatch):
    assert problem(tmp_path, monkeypatch, "asks_for_a_number", "leaf_before") == ""


def test_where_the_driver_is_not_loaded_nobody_has_begun_with_it(tmp_path, monkeypatch):
    assert problem(tmp_path, monkeypatch, "leaf_before", refused=3, loaded=False) == ""


def test_who_started_cuda_is_told(tmp_path, monkeypatch):
    when = "between the imports of leaf_before and leaf_after"
    assert problem(tmp_path, monkeypatch, "starts") == f"{STARTED}, {when}"


def test_the_last_that_is_loaded_is_looked_at_too(tmp_path, monkeypatch):
    last = "import server_of_a_test as s\ns.driver.cuInit(0)"
    when = "after the import of ends_without"
    assert problem(tmp_path, monkeypatch, "leaf_before", last=last) == f"{STARTED}, {when}"


@pytest.mark.parametrize(
    ("answer", "told"),
    [(999, "CUDA's driver answers a process forked for a trial with error 999"), (100, "")],
    ids=["unknown error", "no device"],
)
def test_a_driver_that_refuses_for_another_reason(tmp_path, monkeypatch, answer, told):
    """Without any device there is nothing to lose, and a core for a CPU is forked."""
    assert problem(tmp_path, monkeypatch, "leaf_before", refused=answer) == told


def test_the_driver_is_asked_where_it_is_loaded_and_not_loaded_for_that(monkeypatch):
    usual = ctypes.CDLL
    # a library of every glibc that nothing here loads
    monkeypatch.setattr(ctypes, "CDLL", lambda name, **how: usual("libBrokenLocale.so.1", **how))
    assert preload._driver() is None
    assert not preload.cuda_has_started()
    usual("libBrokenLocale.so.1")
    assert preload._driver() is not None


def test_what_is_loaded_of_this_house_is_there():
    """A name that is not there would be passed over, and every core would load it anew."""
    own = [name for name in _OF_A_CORE if name.startswith("mathrl.")]
    assert own
    assert all(map(find_spec, own))
