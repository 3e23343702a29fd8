"""In which vLLM the project's kernels take the place of its own."""

import sys
from types import SimpleNamespace

import pytest
import torch

from mathrl.rollout.core import kernels_in_vllm


@pytest.mark.parametrize(("version", "gpu"), [("0.26.0", True), ("0.26.0", False), ("0.31.0", True)])
def test_vllms_functions_are_changed_where_that_has_been_tried(monkeypatch, version, gpu):
    impl = type("FlashAttentionImpl", (), {"forward": lambda self: None})
    before = impl.forward
    sampler = SimpleNamespace(gumbel_sample=1, compute_topk_scores=2)
    modules = {
        "vllm": SimpleNamespace(__version__=version),
        "vllm.v1.worker.gpu.sample.sampler": sampler,
        "vllm.v1.outputs": SimpleNamespace(LogprobsTensors=tuple),
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
