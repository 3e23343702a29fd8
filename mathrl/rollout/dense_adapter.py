"""The one adapter of all requests as two plain matrix products a layer (CUDA).

vLLM serves many adapters at once: for each linear layer a kernel looks up every token's adapter, shrinks it
to the rank, and a second one expands it again; at a decoding step's sizes the two take a third of the GPU's
time and more. A trainer serves one adapter to everybody. Its ``A`` of all slices of a layer (queries, keys,
values) stand in one matrix here, its ``B`` as blocks of another, and a layer's share is ``y += (x Aᵀ) Bᵀ``:
two products of cuBLAS, whichever tokens there are. Weights arrive as before: vLLM's own tensors are views.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from mathrl.rollout.core_process import runs_vllm

TRIED = ("0.26",)  # versions of vLLM whose layers this has changed on a GPU
SWITCH = "MATHRL_DENSE_ADAPTER"  # in the environment; 0: vLLM's own kernels


@torch.library.custom_op("mathrl::add_adapter", mutates_args=("y",))
def add_adapter(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, none: torch.Tensor
) -> None:
    """Add the adapter's share to a layer's output; compiled code takes it as it is.

    Args:
        y: (tokens, out), changed in place.
        x: (tokens, in).
        a: (slices · rank, in).
        b: (out, slices · rank); of a slice's outputs only that slice's columns are not 0.
        none: (1,) bool on the CPU: nobody in this step has an adapter.
    """
    if not none.item():
        y.addmm_(x @ a.t(), b.t())


def joined(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """One matrix each for the slices' ``A`` and ``B``, and the slices again, as views of them.

    Args:
        a: a slice's (1, 1, rank, in).
        b: a slice's (1, 1, out, rank).

    Returns:
        (slices · rank, in); (sum of out, slices · rank); the views, shaped as they came.
    """
    whole_a = a[0].new_zeros(sum(part.shape[2] for part in a), a[0].shape[3])
    whole_b = b[0].new_zeros(sum(part.shape[2] for part in b), len(whole_a))
    views_a, views_b, row, out = [], [], 0, 0
    for part_a, part_b in zip(a, b, strict=True):
        rank, width = part_a.shape[2], part_b.shape[2]
        views_a.append(whole_a[row : row + rank][None, None])
        views_b.append(whole_b[out : out + width, row : row + rank][None, None])
        views_a[-1].copy_(part_a)
        views_b[-1].copy_(part_b)
        row, out = row + rank, out + width
    return whole_a, whole_b, tuple(views_a), tuple(views_b)


def serve_densely(layer: Any, kinds: Sequence[Any]) -> None:
    """Change vLLM's classes of linear layers with adapters.

    Args:
        layer: the class whose ``_apply_lora_to_output`` the others inherit.
        kinds: the classes with a ``create_lora_weights`` of their own.
    """
    apply = layer._apply_lora_to_output

    def apply_lora_to_output(self: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.dense is None:
            found: torch.Tensor = apply(self, x, output)
            return found
        flag = self.punica_wrapper.token_mapping_meta.no_lora_flag_cpu
        rows = output.view(-1, output.shape[-1])
        torch.ops.mathrl.add_adapter(rows, x.reshape(-1, x.shape[-1]), *self.dense, flag)
        return output

    def created(create: Any) -> Any:
        def create_lora_weights(self: Any, *args: Any, **kwargs: Any) -> None:
            create(self, *args, **kwargs)
            if self.dense is None and _alone(self):
                *whole, self.lora_a_stacked, self.lora_b_stacked = joined(
                    self.lora_a_stacked, self.lora_b_stacked
                )
                self.dense = tuple(whole)

        return create_lora_weights

    layer.dense = None
    layer._apply_lora_to_output = apply_lora_to_output
    for kind in kinds:
        kind.create_lora_weights = created(kind.create_lora_weights)


def _alone(layer: Any) -> bool:
    """Whether the layer holds one adapter, whole, on a GPU."""
    parts = (*layer.lora_a_stacked, *layer.lora_b_stacked)
    return bool(
        all(part.ndim == 4 and part.shape[:2] == (1, 1) for part in parts)
        and _on_a_gpu(parts)
        and layer.tp_size == 1
        and not getattr(layer, "_enable_aux_cuda_stream", False)
        and len({part.shape[3] for part in layer.lora_a_stacked}) == 1
    )


def _on_a_gpu(parts: Sequence[torch.Tensor]) -> bool:
    return all(part.is_cuda for part in parts)


def use_dense_adapter() -> None:
    """Change vLLM's layers, in the core's process and before they are made, where they have been tried."""
    if not runs_vllm(TRIED, SWITCH):
        return
    base: Any = importlib.import_module("vllm.lora.layers.base_linear")
    columns: Any = importlib.import_module("vllm.lora.layers.column_parallel_linear")
    state: Any = importlib.import_module("vllm.v1.worker.gpu.lora_utils").LoraState
    layer, merged = base.BaseLinearLayerWithLoRA, columns.MergedColumnParallelLinearWithLoRA
    serve_densely(layer, (layer, merged))
    state.one_for_all = True
