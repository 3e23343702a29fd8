"""The kernels of a decoding step beside plain torch, in float64 where it is exact."""

import pytest
import torch

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 8, 33, 512, 3000])
@pytest.mark.parametrize(("width", "inner"), [(1152, 96), (896, 32), (200, 8), (4864, 256)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_expand_is_the_left_columns_and_the_right_ones_times_b(rows, width, inner, with_bias):
    from mathrl.rollout.core.decode_kernels import expand

    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    joint, b, bias = drawn(rows, width + inner), drawn(width, inner), drawn(width) if with_bias else None
    found = expand(joint, b, bias).double()
    left, right = joint.double().split([width, inner], dim=1)
    want = left + right @ b.double().t() + (bias.double() if with_bias else 0.0)
    assert found.shape == (rows, width)
    assert ((found - want).abs() <= want.abs() * 2**-8 + 1e-3).all()  # rounded once, to bfloat16


@pytest.mark.parametrize("rows", [8, 64, 3000])
@pytest.mark.parametrize(("width", "inner"), [(9728, 64), (200, 8)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_expand_and_gate_is_both_one_after_the_other(rows, width, inner, with_bias):
    from mathrl.rollout.core.decode_kernels import expand, expand_and_gate

    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    joint, b, bias = drawn(rows, width + inner), drawn(width, inner), drawn(width) if with_bias else None
    gate, up = expand(joint, b, bias).double().chunk(2, dim=1)
    want = torch.nn.functional.silu(gate) * up
    found = expand_and_gate(joint, b, bias).double()
    assert found.shape == (rows, width // 2)
    assert ((found - want).abs() <= want.abs() * 2**-6 + 1e-3).all()  # rounded twice, as vLLM's own


@pytest.mark.parametrize(("heads", "key_heads", "dim"), [(14, 2, 64), (12, 2, 128), (4, 4, 64)])
def test_attend_is_attention_over_the_pages_of_each_sequence(heads, key_heads, dim):
    from mathrl.rollout.core.decode_kernels import attend

    sequences, page, pages = 65, 16, 9
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    cache = drawn(sequences * pages + 1, key_heads, page, 2 * dim)  # as vLLM lays keys and values out
    keys, values = cache.transpose(1, 2).split(dim, dim=-1)
    order = torch.randperm(sequences * pages, device="cuda", generator=generator) + 1
    table = order.view(sequences, pages).int()
    lengths = torch.randint(1, page * pages + 1, (sequences,), device="cuda", generator=generator).int()
    lengths[:3] = torch.tensor([0, 1, page * pages], dtype=torch.int32)
    query = drawn(sequences, (heads + 3) * dim)[:, : heads * dim].view(sequences, heads, dim)  # strided rows
    out = torch.full((sequences, heads, dim), 7.0, device="cuda", dtype=torch.bfloat16)
    attend(query, keys, values, out, table, lengths, dim**-0.5)
    assert torch.equal(out[0], torch.zeros_like(out[0]))
    for i, length in enumerate(lengths.tolist()[1:], start=1):
        own = [
            c[table[i].long()].flatten(0, 1)[:length].double().repeat_interleave(heads // key_heads, dim=1)
            for c in (keys, values)
        ]
        scores = torch.einsum("hd,thd->ht", query[i].double(), own[0]) * dim**-0.5
        want = torch.einsum("ht,thd->hd", scores.softmax(-1), own[1])
        assert torch.allclose(out[i].double(), want, atol=2e-2, rtol=2e-2)


def sampled(logits, temperature, seeds, positions, places=None):
    from mathrl.rollout.core.decode_kernels import draw

    rows = len(logits)
    places = torch.arange(rows, device="cuda", dtype=torch.int32) if places is None else places
    return draw(logits, places, temperature, seeds, positions)


def test_draw_follows_the_softmax_and_tells_its_log_probability():
    rows, size = 400_000, 9000  # three blocks, the last one not full
    generator = torch.Generator("cuda").manual_seed(0)
    one = (2 * torch.randn(size, device="cuda", generator=generator)).bfloat16()
    one[4096:8192] -= 3.0
    one[::7] = float("-inf")
    seeds = torch.randint(0, 1 << 62, (rows,), device="cuda", generator=generator)
    zeros = torch.zeros(rows, dtype=torch.int64, device="cuda")
    tokens, logprobs = sampled(one.expand(rows, size), torch.ones(rows, device="cuda"), seeds, zeros)
    exact = torch.log_softmax(one.double(), -1)
    assert ((tokens >= 0) & (tokens < size)).all()
    assert torch.allclose(logprobs.double(), exact[tokens], atol=1e-5)
    p = exact.exp()
    counts = torch.bincount(tokens, minlength=size)
    assert int(counts[p == 0].sum()) == 0
    enough = p * rows >= 5
    chi2 = ((counts - p * rows) ** 2 / (p * rows))[enough].sum() / enough.sum()
    assert abs(float(chi2) - 1.0) < 5 * (2 / float(enough.sum())) ** 0.5


def test_draw_hangs_on_seed_and_position_and_not_on_the_batch():
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(64, 5000, device="cuda", generator=generator)
    heat = torch.ones(64, device="cuda")
    seeds = torch.arange(64, device="cuda")
    places = torch.arange(64, device="cuda", dtype=torch.int64) + 3
    tokens, _ = sampled(logits, heat, seeds, places)
    again, _ = sampled(logits[10:20].clone(), heat, seeds, places[10:20], torch.arange(10, 20, device="cuda"))
    assert torch.equal(tokens[10:20], again)
    assert (sampled(logits, heat, seeds, places + 1)[0] != tokens).float().mean() > 0.9
    assert (sampled(logits, heat, seeds + 64, places)[0] != tokens).float().mean() > 0.9
    greedy, logprobs = sampled(logits, heat * 0, seeds, places)
    assert torch.equal(greedy, logits.argmax(-1))
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1), atol=1e-5)
