"""Which of vLLM's calls take the project's kernels, and which stay vLLM's."""

import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from mathrl.rollout.core import kernels_in_vllm
from mathrl.rollout.core.kernels_in_vllm import Drawing, attend_by_rows, fits


class Tensors(NamedTuple):
    ids: torch.Tensor
    logprobs: torch.Tensor
    ranks: torch.Tensor
    counts: object = None


def drawing():
    """Draws token 5 everywhere with log-probability −1; vLLM's own answers are words."""

    def draw(logits, places, temperature, seeds, positions):
        return torch.full((len(logits),), 5), torch.full((len(logits),), -1.0)

    return Drawing(draw, lambda *args, **kwargs: "vLLM's", lambda *args, **kwargs: "scored by vLLM", Tensors)


def arguments(rows=3):
    return torch.randn(rows, 11), torch.arange(rows), torch.ones(rows), torch.zeros(rows), torch.zeros(rows)


def test_drawn_tokens_come_with_the_log_probabilities_of_the_same_pass():
    own = drawing()
    logits, *others = arguments()
    tokens = own.sample(logits, *others, apply_temperature=False, use_fp64=False)
    assert tokens.tolist() == [5, 5, 5]
    scored = own.score(logits, 0, tokens, None, logprob_token_ids_state=object(), max_per_req_token_ids=0)
    assert scored.ids.tolist() == [[5]] * 3
    assert scored.logprobs.tolist() == [[-1.0]] * 3
    assert scored.counts is None


@pytest.mark.parametrize(
    "case",
    [
        {"num_logprobs": 2},
        {"max_per_req_token_ids": 1},
        {"logits_mode": True},
        {"cu_num_logits": [0, 1]},
        {"logits": True},
        {"tokens": True},
    ],
)
def test_other_scores_are_vllms(case):
    own = drawing()
    logits, *others = arguments()
    tokens = own.sample(logits, *others, apply_temperature=False)
    asked = {"num_logprobs": 0, "cu_num_logits": None} | case
    of = logits.clone() if asked.pop("logits", False) else logits
    drawn = tokens.clone() if asked.pop("tokens", False) else tokens
    assert own.score(of, asked.pop("num_logprobs"), drawn, **asked) == "scored by vLLM"


@pytest.mark.parametrize(
    "case",
    [
        {"apply_temperature": True},
        {"apply_temperature": False, "use_fp64": True},
        {"apply_temperature": False, "output_processed_logits": torch.zeros(1)},
    ],
)
def test_other_ways_to_sample_are_vllms(case):
    own = drawing()
    logits, *others = arguments()
    before = own.sample(logits, *others, apply_temperature=False)
    assert own.sample(logits, *others, **case) == "vLLM's"
    assert (
        own.score(logits, 0, before) == "scored by vLLM"
    )  # nothing of an earlier step is taken for this one's


def layer(**changed):
    usual = {
        "sliding_window": (-1, -1), "dcp_world_size": 1, "alibi_slopes": None, "logits_soft_cap": 0,
        "sinks": None, "attn_type": "decoder", "head_size": 64, "num_kv_heads": 2, "num_queries_per_kv": 7,
        "scale": 0.125,
    }  # fmt: skip
    return SimpleNamespace(**usual | changed)


def metadata(n=256, **changed):
    usual = {
        "max_query_len": 1, "num_actual_tokens": n, "seq_lens": torch.ones(n), "causal": True,
        "use_cascade": False, "mm_prefix_range_tensor": None, "rswa_prefix_lens": None,
        "sliding_window": None, "block_table": torch.zeros(n, 4),
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


def test_attention_is_given_keys_and_values_of_vllms_cache():
    given = []

    class Impl:
        def forward(self, *args):
            return "vLLM's"

    attend_by_rows(Impl, lambda *args: given.append(args))
    own = Impl()
    vars(own).update(vars(layer()))
    query, cache = tensors()
    cache.copy_(torch.arange(cache.numel()).view(cache.shape))
    step, out = metadata(), torch.zeros(256, 14, 64)
    assert own.forward(None, query, None, None, cache, step, out) is out
    asked, keys, values, to, table, lengths, scale = given[0]
    assert (asked.shape, to.shape, scale) == ((256, 14, 64), (256, 14, 64), 0.125)
    assert table is step.block_table
    assert lengths is step.seq_lens
    assert torch.equal(keys[3, 5, 1], cache[3, 1, 5, :64])
    assert torch.equal(values[3, 5, 1], cache[3, 1, 5, 64:])
    for others in (
        (cache, None, out),
        (cache, metadata(max_query_len=3), out),
        (cache, step, out, torch.ones(1)),
    ):
        assert own.forward(None, query, None, None, *others) == "vLLM's"
    assert len(given) == 1


@pytest.mark.parametrize(("version", "gpu"), [("0.26.0", True), ("0.26.0", False), ("0.31.0", True)])
def test_vllms_functions_are_changed_where_that_has_been_tried(monkeypatch, version, gpu):
    impl = type("FlashAttentionImpl", (), {"forward": lambda self: None})
    before = impl.forward
    sampler = SimpleNamespace(gumbel_sample=1, compute_topk_scores=2)
    modules = {
        "vllm": SimpleNamespace(__version__=version),
        "vllm.v1.worker.gpu.sample.sampler": sampler,
        "vllm.v1.outputs": SimpleNamespace(LogprobsTensors=Tensors),
        "vllm.v1.attention.backends.flash_attn": SimpleNamespace(FlashAttentionImpl=impl),
        "mathrl.rollout.core.decode_kernels": SimpleNamespace(attend=None, draw=None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    kernels_in_vllm.use_decode_kernels()
    changed = gpu and version == "0.26.0"
    assert (impl.forward is not before) == changed
    assert (sampler.gumbel_sample != 1) == changed
    assert (sampler.compute_topk_scores != 2) == changed
