"""What vLLM's start on a GPU does for others, left out; what it does twice, done once.

With adapters vLLM captures each decoding graph twice, with the adapter and without. A graph without one is
needed only while the engine samples from the bare model, and the graph with it then gives the same numbers
where the adapter's slot holds zeros: ``y + (x 0ᵀ) 0ᵀ`` (dense_adapter.py), and vLLM's own kernels end at
once, for their tables name no adapter. vLLM leaves an adapter's numbers in its slot when it takes it away;
here they are cleared before the first step without one. (To capture a size when it is first met would only
move the time: the completions of an evaluation end one by one, and so it meets them all.)

Before the graphs vLLM compiles and tunes kernels of models with experts, of quantized ones and of such with
other attention than FlashAttention, whichever model it serves (0.26: seventeen CuTe kernels for the routers
of DeepSeek and Inkling, FlashInfer's tuning). After them it compiles all that its sampler can do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from mathrl.rollout.core.process import runs_vllm

TRIED = ("0.26",)  # versions of vLLM whose start this shortens
SWITCH = "MATHRL_SHORT_START"  # in the environment; 0: vLLM starts its own way
_ATTENTION = "FlashAttentionMetadataBuilder"


def capture_once(graphs: Any) -> None:
    """Change vLLM's class ``CudaGraphManager``: a batch without an adapter takes the graph with one."""
    begin, resolve = graphs.__init__, graphs._resolve_effective_loras

    def __init__(self: Any, *args: Any, lora_capture_cases: list[int] | None = None, **kwargs: Any) -> None:
        with_one = [case for case in lora_capture_cases or () if case > 0]
        begin(self, *args, lora_capture_cases=with_one or lora_capture_cases, **kwargs)

    def resolve_effective_loras(self: Any, num_active_loras: int) -> int:
        found: int = resolve(self, num_active_loras or min(self.lora_capture_cases))
        return found

    graphs.__init__, graphs._resolve_effective_loras = __init__, resolve_effective_loras


def clear_unused_slots(manager: Any, worker: Any) -> None:
    """Change vLLM's classes: no step without an adapter meets another's numbers in its slot.

    Args:
        manager: ``LoRAModelManager``; its slots are zeros when they are made.
        worker: ``WorkerLoRAManager``, which every step tells which adapters its requests have.
    """
    activate, set_active = manager.activate_adapter, worker.set_active_adapters

    def activate_adapter(self: Any, lora_id: int) -> bool:
        self.slots_used = True
        found: bool = activate(self, lora_id)
        return found

    def set_active_adapters(self: Any, requests: set[Any], mapping: Any) -> None:
        if not requests and self._adapter_manager.slots_used:
            _clear(self._adapter_manager)
        set_active(self, requests, mapping)

    manager.slots_used = False
    manager.activate_adapter, worker.set_active_adapters = activate_adapter, set_active_adapters


def _clear(manager: Any) -> None:
    for number in list(manager._active_adapters):  # it is copied again when a request has it
        manager.deactivate_adapter(number)
    for module in manager.modules.values():
        for slot in range(manager.lora_slots):
            module.reset_lora(slot)
    manager.slots_used = False


def is_plain(worker: Any) -> bool:
    """Whether this worker's model has nothing of what ``kernel_warmup`` warms up."""
    config, groups = worker.model_config, [g for kind in worker.model_runner.attn_groups for g in kind]
    return bool(
        config.quantization is None
        and not config.is_quantized
        and not config.is_moe
        and not config.is_hybrid
        and not config.use_mla
        and groups
        and all(type(group.get_metadata_builder(0)).__name__ == _ATTENTION for group in groups)
    )


def warm_up_what_is_used(module: Any, parameters: Any) -> None:
    """Change the names by which vLLM's worker calls its warm-ups.

    Args:
        module: ``vllm.v1.worker.gpu_worker``.
        parameters: the class ``SamplingParams``.
    """
    kernels: Callable[[Any], None] = module.kernel_warmup
    steps: Callable[[Any, Any, Any], None] = module.warmup_kernels

    def kernel_warmup(worker: Any) -> None:
        if not is_plain(worker):
            kernels(worker)

    def warmup_kernels(runner: Any, execute: Any, sample: Any) -> None:
        """Steps as a trainer asks for them; a kernel of another setting is compiled when it is first met."""
        of_all, parameters.for_sampler_warmup = parameters.for_sampler_warmup, _usual(parameters)
        try:
            steps(runner, execute, lambda grammar: sample(None))
        finally:
            parameters.for_sampler_warmup = staticmethod(of_all)

    module.kernel_warmup, module.warmup_kernels = kernel_warmup, warmup_kernels


def _usual(parameters: Any) -> Any:
    return staticmethod(lambda: parameters(temperature=0.9, seed=0, logprobs=0))


def use_short_start() -> None:
    """Change vLLM, in the core's process and before its worker is made, where it has been tried."""
    if not runs_vllm(TRIED, SWITCH):
        return

    def of(module: str) -> Any:
        return importlib.import_module(f"vllm.{module}")

    capture_once(of("v1.worker.gpu.cudagraph_utils").CudaGraphManager)
    clear_unused_slots(of("lora.model_manager").LoRAModelManager, of("lora.worker_manager").WorkerLoRAManager)
    warm_up_what_is_used(of("v1.worker.gpu_worker"), of("sampling_params").SamplingParams)
