"""Decoding by graphs (decode_graphs.py) in vLLM's own runner: where it fits, and how it is put there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from mathrl.rollout.core.decode_graphs import DecodeGraphs
from mathrl.rollout.core.process import runs_vllm

TRIED = ("0.26",)  # versions of vLLM whose runner this has driven on a GPU
SWITCH = "MATHRL_DECODE_GRAPHS"  # in the environment; 0: all steps go vLLM's way
_MODEL_STATE = "DefaultModelState"
_ATTENTION = "FlashAttentionMetadataBuilder"  # its metadata is made on the GPU alone


class Recorder:
    """Makes CUDA graphs, on a stream of its own."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # one: cuBLAS keeps a workspace for each

    def __call__(self, run: Callable[[], None], pool: Any) -> Callable[[], None]:
        """A graph of what ``run`` launches, which is not run; what is returned replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                graph.capture_end()
        return graph.replay


def _fits(runner: Any) -> bool:
    """Whether this runner has nothing that the graphs do not know."""
    manager = runner.cudagraph_manager
    groups = [group for kind in runner.attn_groups for group in kind]
    return bool(
        runner.parallel_config.world_size == 1
        and runner.dp_size == 1
        and not runner.use_pp
        and not runner.use_dcp
        and runner.pcp_manager is None
        and not runner.parallel_config.enable_eplb
        and runner.speculator is None
        and runner.num_speculative_steps == 0
        and not runner.supports_mm_inputs
        and not runner.is_encoder_decoder
        and not runner.is_pooling_model
        and runner.model_config.rswa_window is None
        and type(runner.kv_connector).__name__ == "KVConnector"
        and type(runner.model_state).__name__ == _MODEL_STATE
        and runner.model_state.rope_state is None
        and len(runner.kv_cache_config.kv_cache_groups) == 1
        and all(type(group.get_metadata_builder(0)).__name__ == _ATTENTION for group in groups)
        and manager is not None
        and manager.graphs
        and manager.hidden_states is not None
        and not manager.use_aux_hidden_state_outputs
    )


def _graphs_for(runner: Any) -> DecodeGraphs | None:
    """The runner's graphs, made when they are first asked for; None where they do not fit it."""
    if "decode_graphs" not in vars(runner):
        try:
            fits = _fits(runner)
        except AttributeError:
            fits = False
        runner.decode_graphs = DecodeGraphs(runner, _library(), Recorder()) if fits else None
    found: DecodeGraphs | None = runner.decode_graphs
    return found


def _library() -> Any:
    parts = {
        "vllm.v1.worker.gpu.input_batch": ("prepare_pos_seq_lens", "combine_sampled_and_draft_tokens"),
        "vllm.v1.worker.gpu.async_utils": ("AsyncOutput",),
        "vllm.v1.worker.gpu.sample.output": ("SamplerOutput",),
        "vllm.v1.outputs": ("ModelRunnerOutput", "LogprobsTensors"),
    }
    return SimpleNamespace(
        **{
            name: getattr(importlib.import_module(module), name)
            for module, own in parts.items()
            for name in own
        }
    )


def use_decode_graphs() -> None:
    """Change vLLM's class ``GPUModelRunner``, in the core's process, where it is one that has been tried."""
    if not runs_vllm(TRIED, SWITCH):
        return
    runner: Any = importlib.import_module("vllm.v1.worker.gpu.model_runner").GPUModelRunner
    execute, sample = runner.execute_model, runner.sample_tokens

    @torch.inference_mode()
    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        own = getattr(scheduler_output, "steady", None) is not None and not kwargs and set(args) <= {None}
        graphs = _graphs_for(self) if own else vars(self).get("decode_graphs")
        if graphs is not None:
            if own and graphs.execute(scheduler_output):
                return None
            graphs.forget()
        return execute(self, scheduler_output, *args, **kwargs)

    @torch.inference_mode()
    def sample_tokens(self: Any, grammar_output: Any) -> Any:
        graphs = vars(self).get("decode_graphs")
        answer = None if graphs is None else graphs.sample()
        return sample(self, grammar_output) if answer is None else answer

    runner.execute_model, runner.sample_tokens = execute_model, sample_tokens
