"""How workers end: with all that they started, and by the kernel's hand where no parent is left to do it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import lives
from test_isolation import MISBEHAVING, eventually, request

from verifiers import Outcome
from verifiers.pool.pool import VerifierPool


@pytest.mark.parametrize("death", ["crash", "exit 1", "say no"])
def test_what_a_worker_started_ends_with_it(tmp_path: Path, death: str) -> None:
    """The worker crashes, leaves, or lives on until the pool is closed."""
    pids = tmp_path / "pids"
    text = f"start {pids} {death}"
    with VerifierPool(num_workers=1, timeout_s=10.0) as pool:
        verdict = pool.map([request(text, "say yes")])[0]
        assert verdict.outcome is (Outcome.WRONG if death == "say no" else Outcome.ERROR)
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == (1 if death == "say no" else 2)  # a crash is forgiven once
    assert eventually(lambda: not any(lives(pid) for pid in started), within_s=5)


ORPHAN = """
from verifiers.pool import worker
worker._die_with_parent = lambda parent_pid: None
worker._CPU_GRACE_S = 0
worker.main()
"""


def test_the_kernel_ends_a_spinning_worker_whose_parent_is_gone() -> None:
    """Without the signal of a parent's death and without a parent that keeps the clock, by the CPU limit."""
    worker = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, "0.2", "512", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert worker.stdin is not None
    chunk = [["spin", "say yes", MISBEHAVING, "bare", [], "", {}]]
    worker.stdin.write(json.dumps(chunk).encode() + b"\n")
    worker.stdin.flush()
    try:
        assert worker.wait(timeout=60) == -signal.SIGXCPU
    finally:
        worker.kill()
        worker.communicate()
