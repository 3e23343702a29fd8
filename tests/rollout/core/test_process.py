"""A process that belongs to its trainer: deaf to signals of the job, and gone when the trainer is."""

import multiprocessing
import os
import signal
import time

from processes import ends_soon

from mathrl.rollout.core.process import END, belong_to_trainer
from mathrl.rollout.vllm_client import ask_to_end


def work(ready, ended) -> None:
    """As a core does: it belongs to its trainer, then vLLM sets a handler of its own."""
    belong_to_trainer()
    belong_to_trainer()  # twice is once

    def end(signum, frame):
        ended.set()
        raise SystemExit(0)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    ready.set()
    while True:
        time.sleep(0.05)


def trainer(ready, ended, pids) -> None:
    core = context.Process(target=work, args=(ready, ended))
    core.start()
    pids.put(core.pid)
    time.sleep(60)


context = multiprocessing.get_context("fork")


def test_it_hears_its_trainer_alone():
    ready, ended = context.Event(), context.Event()
    core = context.Process(target=work, args=(ready, ended))
    core.start()
    try:
        assert ready.wait(30)
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(core.pid, signum)
        time.sleep(0.3)
        assert core.is_alive()
        assert not ended.is_set()
        ask_to_end([core])
        core.join(30)
        assert core.exitcode == 0
        assert ended.is_set(), "by the handler that was set for SIGTERM"
        ask_to_end([core])  # it is gone: nothing happens
    finally:
        core.kill()
    assert END not in (signal.SIGINT, signal.SIGTERM)


def test_it_ends_when_its_trainer_is_killed():
    ready, ended, pids = context.Event(), context.Event(), context.Queue()
    parent = context.Process(target=trainer, args=(ready, ended, pids))
    parent.start()
    pid = pids.get(timeout=30)
    assert ready.wait(30)
    os.kill(parent.pid, signal.SIGKILL)
    parent.join(30)
    ends_soon(pid)


def test_the_trainer_itself_belongs_to_nobody():
    before = signal.getsignal(signal.SIGTERM)
    belong_to_trainer()
    assert signal.getsignal(signal.SIGTERM) == before
