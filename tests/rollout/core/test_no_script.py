"""A script without a guard is run once, however many processes it starts for an engine."""

import subprocess
import sys

import pytest

FORKED = """
from mathrl.rollout.core.server import CoreServer

server = CoreServer("colorsys")
server.begin()
context = server.context
"""
SPAWNED = """
import multiprocessing
context = multiprocessing.get_context("spawn")
"""
STARTS = """
import os
from mathrl.rollout.core.no_script import script_left_out

print("the script runs", flush=True)
with script_left_out():
    process = context.Process(target=os._exit, args=(7,))
    process.start()
process.join()
print("ended with", process.exitcode, flush=True)
"""
WITHOUT = STARTS.replace("with script_left_out():", "if True:")


def lines(tmp_path, script):
    file = tmp_path / "unguarded.py"
    file.write_text(script)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()


@pytest.mark.parametrize("way", [FORKED, SPAWNED])
def test_the_script_is_not_run_again(tmp_path, way):
    assert lines(tmp_path, way + STARTS) == ["the script runs", "ended with 7"]


def test_it_would_be(tmp_path):
    """What multiprocessing does by itself: the new process runs the script, and fails at starting another."""
    assert lines(tmp_path, SPAWNED + WITHOUT) == ["the script runs", "the script runs", "ended with 1"]


def test_other_threads_tell_their_processes_as_ever(tmp_path):
    script = """
import threading
from multiprocessing import spawn
from mathrl.rollout.core.no_script import script_left_out

def told():
    found.append("init_main_from_path" in spawn.get_preparation_data("x"))

found = []
with script_left_out():
    told()
    with script_left_out():
        told()
    told()
    other = threading.Thread(target=told)
    other.start()
    other.join()
told()
print(found)
"""
    assert lines(tmp_path, script) == ["[False, False, False, True, True]"]
