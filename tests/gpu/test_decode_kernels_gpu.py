"""The kernels of a decoding step as they are compiled, in bfloat16 and at a step's sizes."""

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

pytestmark = pytest.mark.gpu


@pytest.fixture
def drawn():
    return Draws("cuda", torch.bfloat16)


@pytest.mark.parametrize("rows", [1, 8, 33, 512, 3000])
@pytest.mark.parametrize(("width", "inner"), [(1152, 96), (896, 32), (200, 8), (4864, 256)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_expand_is_the_left_columns_and_the_right_ones_times_b(drawn, rows, width, inner, with_bias):
    check_expand(drawn, rows, width, inner, with_bias)


@pytest.mark.parametrize("rows", [8, 64, 3000])
@pytest.mark.parametrize(("width", "inner"), [(9728, 64), (200, 8)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_expand_and_gate_is_both_one_after_the_other(drawn, rows, width, inner, with_bias):
    check_gate(drawn, rows, width, inner, with_bias)


@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(14, 2, 64), (12, 2, 128), (4, 4, 64)])
def test_attend_is_attention_over_the_pages_of_each_sequence(drawn, heads, key_heads, dim):
    check_attend(drawn, 65, 9, heads, key_heads, dim)


def test_draw_follows_the_softmax_and_tells_its_log_probability(drawn):
    check_draw(drawn, 400_000, 9000)


def test_draw_hangs_on_seed_and_position_and_not_on_the_batch(drawn):
    check_seeds(drawn)
