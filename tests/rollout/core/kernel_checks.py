"""What decode_kernels.py must compute, beside plain torch in float64: on a GPU, and interpreted on a CPU."""

import torch


class Draws:
    """Random tensors of a device and type, the same at every run."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape):
        return torch.randn(*shape, device=self.device, generator=self.generator).to(self.dtype)

    def ints(self, low, high, *shape):
        return torch.randint(low, high, shape, device=self.device, generator=self.generator)

    @property
    def unit(self):
        """Of the last place, relative."""
        return torch.finfo(self.dtype).eps


def check_expand(drawn, rows, width, inner, with_bias):
    from mathrl.rollout.core.decode_kernels import expand

    joint, b, bias = drawn(rows, width + inner), drawn(width, inner), drawn(width) if with_bias else None
    found = expand(joint, b, bias).double()
    left, right = joint.double().split([width, inner], dim=1)
    want = left + right @ b.double().t() + (bias.double() if with_bias else 0.0)
    assert found.shape == (rows, width)
    assert ((found - want).abs() <= want.abs() * drawn.unit + 1e-3).all()  # rounded once


def check_gate(drawn, rows, width, inner, with_bias):
    from mathrl.rollout.core.decode_kernels import expand, expand_and_gate

    joint, b, bias = drawn(rows, width + inner), drawn(width, inner), drawn(width) if with_bias else None
    gate, up = expand(joint, b, bias).double().chunk(2, dim=1)
    want = torch.nn.functional.silu(gate) * up
    found = expand_and_gate(joint, b, bias).double()
    assert found.shape == (rows, width // 2)
    assert ((found - want).abs() <= want.abs() * 4 * drawn.unit + 1e-3).all()  # rounded twice, as vLLM's own


def check_attend(drawn, sequences, pages, heads, key_heads, dim):
    from mathrl.rollout.core.decode_kernels import attend

    page = 16
    cache = drawn(sequences * pages + 1, key_heads, page, 2 * dim)  # as vLLM lays keys and values out
    keys, values = cache.transpose(1, 2).split(dim, dim=-1)
    order = torch.randperm(sequences * pages, device=drawn.device, generator=drawn.generator) + 1
    table = order.view(sequences, pages).int()
    lengths = drawn.ints(1, page * pages + 1, sequences).int()
    lengths[:3] = torch.tensor([0, 1, page * pages], dtype=torch.int32)
    query = drawn(sequences, (heads + 3) * dim)[:, : heads * dim].view(sequences, heads, dim)  # strided rows
    out = torch.full_like(query.contiguous(), 7.0)
    attend(query, keys, values, out, table, lengths, dim**-0.5)
    assert torch.equal(out[0], torch.zeros_like(out[0]))  # nothing to attend to
    for i, length in enumerate(lengths.tolist()[1:], start=1):
        own = [
            c[table[i].long()].flatten(0, 1)[:length].double().repeat_interleave(heads // key_heads, dim=1)
            for c in (keys, values)
        ]
        scores = torch.einsum("hd,thd->ht", query[i].double(), own[0]) * dim**-0.5
        want = torch.einsum("ht,thd->hd", scores.softmax(-1), own[1])
        assert torch.allclose(out[i].double(), want, atol=4 * drawn.unit, rtol=4 * drawn.unit)


def sampled(logits, temperature, seeds, positions, places=None):
    from mathrl.rollout.core.decode_kernels import draw

    places = torch.arange(len(logits), device=logits.device) if places is None else places
    return draw(logits, places, temperature, seeds, positions)


def check_draw(drawn, rows, size):
    """Frequencies, log-probabilities, and what is never drawn; ``size`` is more than two blocks of 4,096."""
    device = drawn.device
    one = 2 * drawn(size)
    one[4096:8192] -= 3.0
    one[::7] = float("-inf")
    one[size // 2] += 9.0  # about half of all
    seeds, zeros = drawn.ints(0, 1 << 62, rows), torch.zeros(rows, dtype=torch.int64, device=device)
    tokens, logprobs = sampled(one.expand(rows, size), torch.ones(rows, device=device), seeds, zeros)
    exact = torch.log_softmax(one.double(), -1)
    assert ((tokens >= 0) & (tokens < size)).all()
    assert torch.allclose(logprobs.double(), exact[tokens], atol=1e-5)
    p = exact.exp()
    counts = torch.bincount(tokens, minlength=size)
    assert int(counts[p == 0].sum()) == 0
    for part in (slice(0, 4096), slice(4096, 8192), slice(8192, size), slice(size // 2, size // 2 + 1)):
        share = float(p[part].sum())
        assert abs(float(counts[part].sum()) / rows - share) < 5 * (share * (1 - share) / rows) ** 0.5
    enough = p * rows >= 5
    chi2 = ((counts - p * rows) ** 2 / (p * rows))[enough].sum() / enough.sum()
    assert abs(float(chi2) - 1.0) < 5 * (2 / float(enough.sum())) ** 0.5


def check_seeds(drawn):
    """The seed and the position decide, and not the batch; a temperature of 0 takes the highest."""
    device = drawn.device
    logits = drawn(8, 5000).float()
    heat, seeds = torch.ones(8, device=device), torch.arange(8, device=device)
    positions = torch.arange(8, device=device) + 3
    tokens, _ = sampled(logits, heat, seeds, positions)
    places = torch.arange(3, 6, device=device)
    again, _ = sampled(logits[3:6].clone(), heat, seeds, positions[3:6], places)
    assert torch.equal(tokens[3:6], again)
    assert (sampled(logits, heat, seeds, positions + 1)[0] != tokens).float().mean() > 0.8
    assert (sampled(logits, heat, seeds + 8, positions)[0] != tokens).float().mean() > 0.8
    rounded, _ = sampled(logits + 0.01 * drawn(8, 5000).float(), heat, seeds, positions)
    assert (rounded == tokens).sum() >= 7  # as bfloat16 sums in another order may give them
    outside, _ = sampled(logits, heat, seeds * 0, positions, places=torch.full_like(seeds, -1))
    assert torch.equal(outside, sampled(logits, heat, seeds * 0, positions)[0])  # as temperature 1 and seed 0
    greedy, logprobs = sampled(logits, heat * 0, seeds, positions)
    assert torch.equal(greedy, logits.argmax(-1))
    assert torch.allclose(logprobs, logits.log_softmax(-1).amax(-1), atol=1e-5)
