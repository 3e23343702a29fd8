"""The kernels of a decoding step, interpreted on the CPU (Triton's interpreter, in float32)."""

import os

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
