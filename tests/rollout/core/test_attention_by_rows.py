"""Which attention takes the project's kernel, and that it does so only where it agrees with vLLM's."""

from types import SimpleNamespace

import pytest
import torch

from mathrl.rollout.core import attention_by_rows
from mathrl.rollout.core.attention_by_rows import attend_by_rows, fits


def layer(**changed):
    usual = {
        "sliding_window": (-1, -1), "dcp_world_size": 1, "alibi_slopes": None, "logits_soft_cap": 0,
        "sinks": None, "attn_type": "decoder", "head_size": 64, "num_kv_heads": 2, "num_queries_per_kv": 7,
        "scale": 0.125,
    }  # fmt: skip
    return SimpleNamespace(**usual | changed)


def metadata(n=256, **changed):
    usual = {
        "max_query_len": 1, "num_actual_tokens": n, "causal": True,
        "seq_lens": torch.ones(n, dtype=torch.int32),
        "use_cascade": False, "mm_prefix_range_tensor": None, "rswa_prefix_lens": None,
        "sliding_window": None, "block_table": torch.zeros(n, 4, dtype=torch.int32),
    }  # fmt: skip
    return SimpleNamespace(**usual | changed)


def tensors(n=256, dtype=torch.bfloat16):
    return torch.zeros(n, 20, 64, dtype=dtype)[:, :14], torch.zeros(9, 2, 16, 128, dtype=torch.bfloat16)


def test_many_sequences_of_one_token_fit():
    query, cache = tensors()
    assert fits(layer(), query, cache, metadata())
    assert fits(layer(num_kv_heads=4), query[:128], cache, metadata(128))


@pytest.mark.parametrize(
    ("of_layer", "of_step"),
    [
        ({}, {"max_query_len": 2}),
        ({}, {"num_actual_tokens": 300}),  # tokens that are not one a sequence
        ({}, {"causal": False}),
        ({}, {"causal": torch.ones(1)}),
        ({}, {"use_cascade": True}),
        ({}, {"sliding_window": (127, 0)}),
        ({"sliding_window": (127, 0)}, {}),
        ({}, {"mm_prefix_range_tensor": torch.ones(1)}),
        ({}, {"rswa_prefix_lens": torch.ones(1)}),
        ({"dcp_world_size": 2}, {}),
        ({"alibi_slopes": torch.ones(1)}, {}),
        ({"logits_soft_cap": 30.0}, {}),
        ({"sinks": torch.ones(1)}, {}),
        ({"attn_type": "encoder"}, {}),
        ({"head_size": 96}, {}),
        ({"num_queries_per_kv": 32}, {}),
        ({"num_kv_heads": 1}, {}),  # 256 programs
    ],
)
def test_any_other_attention_is_vllms(of_layer, of_step):
    query, cache = tensors()
    assert not fits(layer(**of_layer), query, cache, metadata(**of_step))


def test_other_types_are_vllms():
    query, cache = tensors(dtype=torch.float32)
    assert not fits(layer(), query, cache, metadata())
    assert not fits(layer(), query.bfloat16(), cache.to(torch.float8_e4m3fn), metadata())


class Impl:
    """Attention as vLLM's, in torch; ``calls`` counts its steps."""

    def __init__(self):
        vars(self).update(vars(layer()))
        self.calls = 0

    def forward(self, _, query, key, value, kv_cache, step, output, *scales):
        self.calls += 1
        n = step.num_actual_tokens
        keys, values = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
        plain(query[:n], keys, values, output[:n], step.block_table, step.seq_lens, self.scale)
        return output


def plain(query, keys, values, out, table, lengths, scale):
    for i, length in enumerate(lengths.tolist()):
        own = [
            c[table[i].long()].flatten(0, 1)[:length].float().repeat_interleave(7, 1) for c in (keys, values)
        ]
        scores = torch.einsum("hd,thd->ht", query[i].float(), own[0]) * scale
        out[i] = torch.einsum("ht,thd->hd", scores.softmax(-1), own[1]).to(out.dtype)


@pytest.fixture
def changed(monkeypatch):
    """Impl, changed; what ``attend`` was given; and what it does."""
    kind, given, how = type("Changed", (Impl,), {}), [], {"attend": plain}

    def attend(*args):
        given.append(args)
        how["attend"](*args)

    monkeypatch.setattr(attention_by_rows, "_is_recorded", lambda: how.get("recorded", False))
    attend_by_rows(kind, attend)
    return kind(), given, how


def cache(pages=140):
    made = torch.zeros(pages, 2, 16, 128, dtype=torch.bfloat16)
    return made.copy_(torch.arange(made.numel()).view(made.shape) % 251)


def test_attention_is_given_keys_and_values_of_vllms_cache(changed):
    own, given, _ = changed
    query, kept = torch.zeros(256, 14, 64, dtype=torch.bfloat16), cache()
    step, out = metadata(), torch.zeros(256, 14, 64, dtype=torch.bfloat16)
    assert own.forward(None, query, None, None, kept, step, out) is out
    assert torch.equal(kept, cache())  # the comparison has put back what was there
    assert (own.calls, len(given)) == (1, 2)  # both ways once, then ours
    asked, keys, values, to, table, lengths, scale = given[1]
    assert (asked.shape, to.shape, scale) == ((256, 14, 64), (256, 14, 64), 0.125)
    assert table is step.block_table
    assert lengths is step.seq_lens
    assert torch.equal(keys[3, 5, 1], kept[3, 1, 5, :64])
    assert torch.equal(values[3, 5, 1], kept[3, 1, 5, 64:])
    own.forward(None, query, None, None, kept, step, out)
    assert (own.calls, len(given)) == (1, 3)  # compared once
    for others in (
        (kept, metadata(max_query_len=3), out),
        (kept, step, out, torch.ones(1)),
    ):
        own.forward(None, query, None, None, *others)
    assert (own.calls, len(given)) == (3, 3)


def wrong(query, keys, values, out, table, lengths, scale):
    plain(query, keys, values, out, table, (lengths - 1).clamp(1), scale)  # forgets the newest token


def failing(*args):
    raise RuntimeError("no kernel image")


@pytest.mark.parametrize("attend", [wrong, failing])
def test_attention_that_differs_from_vllms_is_not_used(changed, attend, caplog):
    own, given, how = changed
    how["attend"] = attend
    query, kept = torch.zeros(256, 14, 64, dtype=torch.bfloat16), cache()
    for _ in range(2):
        own.forward(None, query, None, None, kept, metadata(), torch.zeros_like(query))
    assert (own.calls, len(given)) == (3, 1)
    assert torch.equal(kept, cache())
    assert "stays vLLM's" in caplog.text


def test_nothing_is_compared_while_a_graph_is_recorded(changed):
    own, given, how = changed
    how["recorded"] = True
    query, kept = torch.zeros(256, 14, 64, dtype=torch.bfloat16), cache()
    own.forward(None, query, None, None, kept, metadata(), torch.zeros_like(query))
    assert (own.calls, len(given)) == (1, 0)
    how["recorded"] = False
    own.forward(None, query, None, None, kept, metadata(), torch.zeros_like(query))
    how["recorded"] = True
    own.forward(None, query, None, None, kept, metadata(), torch.zeros_like(query))
    assert (own.calls, len(given)) == (2, 3)  # once agreed, it is recorded
