"""What the Makefile would install, by a dry run of make: with and without an NVIDIA GPU."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def plan(tmp_path):
    """The commands of a target, nvidia-smi answering as it is told."""

    def plan(*words: str, smi: str) -> str:
        fake = tmp_path / "nvidia-smi"
        fake.write_text(f"#!/bin/sh\n{smi}\n")
        fake.chmod(0o755)
        environment = {k: v for k, v in os.environ.items() if k not in ("VLLM", "MAKEFLAGS", "MFLAGS")}
        environment["PATH"] = f"{tmp_path}{os.pathsep}{environment['PATH']}"
        command = ["make", "-n", f"VENV={tmp_path}/venv", *words]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    return plan


GPU = "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'"
NONE = (
    "echo 'No devices were found'",
    "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
)


@pytest.mark.parametrize("target", ["setup", "train"])
def test_a_gpu_gets_vllm_and_is_told_so(plan, target):
    text = plan(target, smi=GPU)
    assert "--constraint constraints.txt --editable '.[dev,vllm]'" in text
    assert "make setup VLLM=0 leaves it out" in text


@pytest.mark.parametrize("smi", NONE)
def test_no_gpu_gets_none(plan, smi):
    text = plan("setup", smi=smi)
    assert "--constraint constraints.txt --editable '.[dev]'" in text
    assert "vllm" not in text.lower()


def test_it_can_be_left_out_and_asked_for(plan):
    assert "'.[dev]'" in plan("setup", "VLLM=0", smi=GPU)
    assert "'.[dev,vllm]'" in plan("setup", "VLLM=1", smi=NONE[0])


def test_a_gpu_that_comes_later_gets_vllm_beside_what_is_there(plan, tmp_path):
    """What was installed without it does not count as installed with it."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / ".ready").touch()
    assert "pip" not in plan("setup", smi=NONE[0])
    assert "'.[dev,vllm]'" in plan("setup", smi=GPU)
