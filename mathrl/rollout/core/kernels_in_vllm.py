"""The kernels of a decoding step (decode_kernels.py) in place of vLLM's, where they are the faster ones."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from mathrl.rollout.core.attention_by_rows import attend_by_rows
from mathrl.rollout.core.drawing import Drawing
from mathrl.rollout.core.process import runs_vllm

TRIED = ("0.26",)  # versions of vLLM in which this has run on a GPU
SWITCH = "MATHRL_DECODE_KERNELS"  # in the environment; 0: vLLM's own kernels


def use_decode_kernels() -> None:
    """Change vLLM's sampler and attention, in the core's process, where that has been tried."""
    if not runs_vllm(TRIED, SWITCH) or not torch.cuda.is_available():
        return
    from mathrl.rollout.core.decode_kernels import attend, draw

    sampler: Any = importlib.import_module("vllm.v1.worker.gpu.sample.sampler")
    outputs: Any = importlib.import_module("vllm.v1.outputs")
    drawing = Drawing(draw, sampler.gumbel_sample, sampler.compute_topk_scores, outputs.LogprobsTensors)
    sampler.gumbel_sample, sampler.compute_topk_scores = drawing.sample, drawing.score
    attention: Any = importlib.import_module("vllm.v1.attention.backends.flash_attn")
    attend_by_rows(attention.FlashAttentionImpl, attend)
