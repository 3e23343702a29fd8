"""The one adapter of all requests as a part of each layer's own product (CUDA).

vLLM serves many adapters at once: for each linear layer a kernel looks up every token's adapter, shrinks it
to the rank, and a second one expands it again; at a decoding step's sizes the two take a third of the GPU's
time and more. A trainer serves one adapter to everybody. Its ``A`` of all slices of a layer (queries, keys,
values) stand in one matrix here, below the layer's own weights, and its ``B`` as blocks of another: one
product x [W; A]ᵀ of cuBLAS, and one kernel that adds the right columns times Bᵀ to the left ones. Where a
layer's weights are not plain it is ``y += (x Aᵀ) Bᵀ`` instead. Weights arrive as before: vLLM's own tensors
are views.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from mathrl.rollout.core.adapter_products import as_called, below, gated_with_adapter, joined, with_adapter
from mathrl.rollout.core.process import runs_vllm

TRIED = ("0.26",)  # versions of vLLM whose layers this has changed on a GPU
_GATED = (("llama", "LlamaMLP"), ("qwen2", "Qwen2MLP"))  # of vLLM's models, and of those that borrow them
SWITCH = "MATHRL_DENSE_ADAPTER"  # in the environment; 0: vLLM's own kernels


def serve_densely(layer: Any, kinds: Sequence[Any]) -> None:
    """Change vLLM's classes of linear layers with adapters.

    Args:
        layer: the class whose ``_apply_lora_to_output`` the others inherit.
        kinds: the classes with a ``create_lora_weights`` of their own.
    """
    apply, whole_layer = layer._apply_lora_to_output, layer._apply_sync

    def apply_lora_to_output(self: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if self.dense is None:
            found: torch.Tensor = apply(self, x, output)
            return found
        rows = output.view(-1, output.shape[-1])
        torch.ops.mathrl.add_adapter(rows, x.reshape(-1, x.shape[-1]), *self.dense, _nobody(self))
        return output

    def apply_sync(self: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self.whole is None:
            found: torch.Tensor = whole_layer(self, x, bias)
            return found
        out = as_called(with_adapter)(
            x.reshape(-1, x.shape[-1]), self.whole, bias, self.dense[1], _nobody(self)
        )
        return out.unflatten(0, x.shape[:-1])

    def created(create: Any) -> Any:
        def create_lora_weights(self: Any, *args: Any, **kwargs: Any) -> None:
            create(self, *args, **kwargs)
            if self.dense is None and _alone(self):
                a, b = self.lora_a_stacked, self.lora_b_stacked
                rows = sum(part.shape[2] for part in a)
                if _plain(self.base_layer, a[0]):
                    self.whole = below(self.base_layer.weight, rows)
                    inner = self.whole[-rows:]
                else:
                    inner = a[0].new_zeros(rows, a[0].shape[3])
                *dense, self.lora_a_stacked, self.lora_b_stacked = joined(a, b, inner)
                self.dense = tuple(dense)

        return create_lora_weights

    layer.dense = layer.whole = None
    layer._apply_lora_to_output, layer._apply_sync = apply_lora_to_output, apply_sync
    for kind in kinds:
        kind.create_lora_weights = created(kind.create_lora_weights)


def gate_at_once(kind: Any) -> None:
    """Change a class of vLLM's whose forward is down(silu(gate x) · up x): the first product ends gated."""
    forward = kind.forward

    def gated(self: Any, x: torch.Tensor) -> torch.Tensor:
        layer = self.gate_up_proj
        if getattr(layer, "whole", None) is None:
            found: torch.Tensor = forward(self, x)
            return found
        rows = x.reshape(-1, x.shape[-1])
        compute = as_called(gated_with_adapter)
        inner = compute(rows, layer.whole, layer.base_layer.bias, layer.dense[1], _nobody(layer))
        out: torch.Tensor = self.down_proj(inner.unflatten(0, x.shape[:-1]))[0]
        return out

    kind.forward = gated


def leave_embeddings(manager: Any) -> None:
    """Change vLLM's class ``LoRAModelManager``: the embedding and the head have no adapter (lora_targets.py).

    Where a model allows one, vLLM adds its zeros to all logits at every step.
    """
    matches = manager._match_target_modules

    def match_target_modules(self: Any, module_name: str) -> bool:
        frozen = getattr(self.model, "embedding_modules", None) or ()
        found: bool = module_name.split(".")[-1] not in frozen and matches(self, module_name)
        return found

    manager._match_target_modules = match_target_modules


def map_densely(manager: Any) -> None:
    """Change vLLM's class ``LoRAModelManager``: where all layers are dense, a step's tokens need no tables.

    vLLM lists the adapter of every token, sorts and counts them on the GPU, and waits for that, at each step
    whose tokens are not those of the step before. The layers here ask for one thing: is there an adapter?
    """
    tell = manager._set_adapter_mapping

    def set_adapter_mapping(self: Any, mapping: Any) -> None:
        layers = list(self.modules.values())
        if layers and all(getattr(layer, "dense", None) is not None for layer in layers):
            nobody = not any(mapping.index_mapping)  # numbers begin at 1
            for flag in {id(found): found for found in map(_nobody, layers)}.values():
                flag[0] = nobody
        else:
            tell(self, mapping)

    manager._set_adapter_mapping = set_adapter_mapping


def _nobody(layer: Any) -> torch.Tensor:
    flag: torch.Tensor = layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu
    return flag


def _plain(base: Any, a: torch.Tensor) -> bool:
    """Whether the layer is x Wᵀ + bias with weights of the adapter's type, and nothing else."""
    weight = getattr(base, "weight", None)
    return bool(
        type(getattr(base, "quant_method", None)).__name__ == "UnquantizedLinearMethod"
        and isinstance(weight, torch.nn.Parameter)
        and weight.dtype == a.dtype
        and weight.dim() == 2
        and weight.shape[1] == a.shape[3]
        and weight.is_contiguous()
        and not os.environ.get("VLLM_BATCH_INVARIANT", "0").strip("0")
    )


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
    manager: Any = importlib.import_module("vllm.lora.model_manager").LoRAModelManager
    leave_embeddings(manager)
    map_densely(manager)
    for module, name in _GATED:
        gate_at_once(getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name))
    state.one_for_all = True
