"""The kernels of a decoding step beside plain torch, in float64 where it is exact."""

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 8, 33, 512, 3000])
@pytest.mark.parametrize(("width", "inner"), [(1152, 96), (896, 32), (200, 8), (4864, 256)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_expand_is_the_left_columns_and_the_right_ones_times_b(rows, width, inner, with_bias):
    from mathrl.rollout.decode_kernels import expand

    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    joint, b, bias = drawn(rows, width + inner), drawn(width, inner), drawn(width) if with_bias else None
    found = expand(joint, b, bias).double()
    left, right = joint.double().split([width, inner], dim=1)
    want = left + right @ b.double().t() + (bias.double() if with_bias else 0.0)
    assert found.shape == (rows, width)
    assert ((found - want).abs() <= want.abs() * 2**-8 + 1e-3).all()  # rounded once, to bfloat16
