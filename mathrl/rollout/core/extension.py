"""Imported by vLLM in its core's process, before it makes the model, and nowhere else."""

from mathrl.rollout.core.dense_adapter import use_dense_adapter
from mathrl.rollout.core.graphs_in_vllm import use_decode_graphs
from mathrl.rollout.core.kernels_in_vllm import use_decode_kernels
from mathrl.rollout.core.process import belong_to_trainer
from mathrl.rollout.core.short_start import use_short_start

belong_to_trainer()
use_dense_adapter()
use_decode_graphs()
use_decode_kernels()
use_short_start()


class WorkerExtension:
    """What vLLM mixes into its workers."""

    def num_decode_graphs(self) -> int:
        """Kinds of decoding steps that are replayed as graphs (decode_graphs.py); 0: none is."""
        graphs = getattr(getattr(self, "model_runner", None), "decode_graphs", None)
        return 0 if graphs is None else graphs.num_kinds

    def num_model_graphs(self) -> int:
        """Sizes of a decoding step that vLLM has captured the model for, times the kinds it has of each."""
        manager = getattr(getattr(self, "model_runner", None), "cudagraph_manager", None)
        return len(getattr(manager, "graphs", ()))
