"""The kernels of a decoding step, interpreted on the CPU (Triton's interpreter, in float32), and compiled."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.rollout.core.kernel_checks import (
    Draws,
    check_attend,
    check_draw,
    check_expand,
    check_gate,
    check_seeds,
)

pytest.importorskip("triton", reason="Triton is not installed: it comes with vLLM")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="there is a GPU: tests/gpu/test_decode_kernels_gpu.py"
)


@pytest.fixture
def drawn():
    return Draws("cpu", torch.float32)


@pytest.mark.parametrize("rows", [1, 17, 70])
@pytest.mark.parametrize(("width", "inner"), [(130, 8), (64, 80)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("check", [check_expand, check_gate])
def test_the_adapters_share_is_added(drawn, rows, width, inner, with_bias, check):
    check(drawn, rows, width, inner, with_bias)


@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(14, 2, 64), (6, 1, 128), (4, 4, 64)])
def test_attention_goes_over_the_pages_of_each_sequence(drawn, heads, key_heads, dim):
    check_attend(drawn, 6, 9, heads, key_heads, dim)


def test_tokens_are_drawn_from_the_softmax(drawn):
    check_draw(drawn, 60, 8500)


def test_seeds_and_temperature(drawn):
    check_seeds(drawn)


def test_all_kernels_compile_for_a_gpu(tmp_path):
    """For compute capability 9.0; the interpreter takes more than the compiler does."""
    own = {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | own
    command = [sys.executable, str(Path(__file__).with_name("compiled_kernels.py"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    from mathrl.rollout.core import decode_kernels

    text = Path(decode_kernels.__file__).read_text(encoding="utf-8")
    assert set(found) == set(re.findall(r"^def (\w+_kernel)\(", text, flags=re.MULTILINE))
    for name, sizes in found.items():
        assert sizes["cubin"] > 1000, name
        assert sizes["shared"] <= 227 * 1024, name  # of a multiprocessor, what a program can have
