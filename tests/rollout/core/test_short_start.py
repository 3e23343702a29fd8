"""What vLLM's start becomes: graphs of one kind, slots that are zeros, no kernels of other models."""

import sys
from types import SimpleNamespace

import pytest
import torch

from mathrl.rollout.core import short_start
from mathrl.rollout.core.dense_adapter import joined

WIDTH, OUTS, RANK = 6, (4, 3), 2


def manager_class():
    """As vLLM's CudaGraphManager: what is captured, and what a number of adapters is looked up by."""

    class CudaGraphManager:
        def __init__(self, config, mode, lora_capture_cases=None):
            self.lora_capture_cases = lora_capture_cases or [0]
            self.graphs = {(size, case) for size in config for case in self.lora_capture_cases}
            self.most = max(self.lora_capture_cases)

        def _resolve_effective_loras(self, num_active_loras):
            return min(2, self.most) if num_active_loras > 0 and self.most else num_active_loras

    short_start.capture_once(CudaGraphManager)
    return CudaGraphManager


@pytest.mark.parametrize("cases", [[0, 2], [2]])
def test_a_batch_without_an_adapter_takes_the_graph_with_one(cases):
    manager = manager_class()((1, 8), "full", lora_capture_cases=cases)
    assert manager.graphs == {(1, 2), (8, 2)}
    assert {manager._resolve_effective_loras(n) for n in (0, 1, 2)} == {2}


@pytest.mark.parametrize("cases", [None, [0]])
def test_an_engine_without_adapters_keeps_its_graphs(cases):
    manager = manager_class()((1, 8), "full", lora_capture_cases=cases)
    assert manager.graphs == {(1, 0), (8, 0)}
    assert manager._resolve_effective_loras(0) == 0


class Module:
    def __init__(self):
        a = tuple(torch.zeros(1, 1, RANK, WIDTH) for _ in OUTS)
        b = tuple(torch.zeros(1, 1, out, RANK) for out in OUTS)
        *self.whole, self.a, self.b = joined(a, b, torch.zeros(RANK * len(OUTS), WIDTH))
        self.cleared = 0

    def set_lora(self, index, value):
        for part in (*self.a, *self.b):
            part[index] = value

    def reset_lora(self, index):
        self.cleared += 1
        for part in (*self.a, *self.b):
            part[index] = 0

    def share(self, x):
        """As the captured graph: the products are always there."""
        return x @ self.whole[0].t() @ self.whole[1].t()


class Active(dict):
    """As vLLM's cache of adapters in slots."""


def lora_classes():
    """As vLLM's: a slot keeps what it holds when an adapter is taken away."""

    class LoRAModelManager:
        lora_slots = 1

        def __init__(self):
            self.modules, self._active_adapters, self.weights = {"q": Module(), "o": Module()}, Active(), {}

        def activate_adapter(self, lora_id):
            if lora_id in self._active_adapters:
                return False
            self._active_adapters.clear()
            self._active_adapters[lora_id] = None
            for module in self.modules.values():
                module.set_lora(0, self.weights[lora_id])
            return True

        def deactivate_adapter(self, lora_id):
            return self._active_adapters.pop(lora_id, 1) is None

    class WorkerLoRAManager:
        def __init__(self, manager):
            self._adapter_manager, self.mapping = manager, None

        def set_active_adapters(self, requests, mapping):
            for number in requests:
                self._adapter_manager.activate_adapter(number)
            self.mapping = mapping

    short_start.clear_unused_slots(LoRAModelManager, WorkerLoRAManager)
    return LoRAModelManager, WorkerLoRAManager


@pytest.mark.parametrize("removed", [True, False])
def test_a_step_without_an_adapter_adds_nothing_and_the_adapter_comes_back(removed):
    manager_of, worker_of = lora_classes()
    manager, x = manager_of(), torch.ones(3, WIDTH)
    worker, modules = worker_of(manager), manager.modules.values()
    worker.set_active_adapters(set(), "none")
    assert not any(module.cleared for module in modules)  # slots are made of zeros
    manager.weights = {7: 0.5, 8: -2.0}
    worker.set_active_adapters({7}, "seven")
    seven = [module.share(x) for module in modules]
    assert all(bool((share != 0).all()) for share in seven)
    if removed:
        manager.deactivate_adapter(7)
        assert all(torch.equal(m.share(x), old) for m, old in zip(modules, seven, strict=True))  # vLLM's way
    for _ in range(2):
        worker.set_active_adapters(set(), "none")
        assert worker.mapping == "none"
        assert all(bool((module.share(x) == 0).all()) for module in modules)
    assert [module.cleared for module in modules] == [1, 1]  # once, not at every step
    worker.set_active_adapters({7}, "seven")
    assert all(torch.equal(m.share(x), old) for m, old in zip(modules, seven, strict=True))
    worker.set_active_adapters({8}, "eight")
    worker.set_active_adapters(set(), "none")
    assert all(bool((module.share(x) == 0).all()) for module in modules)


class FlashAttentionMetadataBuilder:
    pass


class OtherBuilder:
    pass


def worker_with(builders=(FlashAttentionMetadataBuilder,), **config):
    plain = {
        "quantization": None,
        "is_quantized": False,
        "is_moe": False,
        "is_hybrid": False,
        "use_mla": False,
    }
    groups = [[SimpleNamespace(get_metadata_builder=lambda i, kind=kind: kind()) for kind in builders]]
    runner = SimpleNamespace(attn_groups=groups)
    return SimpleNamespace(model_config=SimpleNamespace(**plain | config), model_runner=runner)


class SamplingParams(SimpleNamespace):
    @staticmethod
    def for_sampler_warmup():
        return SamplingParams(temperature=0.9, repetition_penalty=1.2, logprobs=5)


def warm_ups():
    """As vLLM's worker module, and what its warm-ups have done."""
    done = []

    def warmup_kernels(runner, execute, sample):
        execute(SamplingParams.for_sampler_warmup())
        sample("bitmask")

    module = SimpleNamespace(kernel_warmup=done.append, warmup_kernels=warmup_kernels)
    short_start.warm_up_what_is_used(module, SamplingParams)
    return module, done


@pytest.mark.parametrize(
    ("worker", "warmed"),
    [
        (worker_with(), False),
        (worker_with(quantization="fp8"), True),
        (worker_with(is_quantized=True), True),
        (worker_with(is_moe=True), True),
        (worker_with(is_hybrid=True), True),
        (worker_with(use_mla=True), True),
        (worker_with((FlashAttentionMetadataBuilder, OtherBuilder)), True),
        (worker_with(()), True),
    ],
)
def test_kernels_of_other_models_are_left_out(worker, warmed):
    module, done = warm_ups()
    module.kernel_warmup(worker)
    assert done == [worker] * warmed


def test_the_first_steps_are_a_trainers():
    module, _ = warm_ups()
    seen = []
    module.warmup_kernels("runner", seen.append, seen.append)
    assert seen == [SamplingParams(temperature=0.9, seed=0, logprobs=0), None]
    assert SamplingParams.for_sampler_warmup().logprobs == 5  # vLLM's own again


@pytest.mark.parametrize(("version", "switch"), [("0.26.0", "1"), ("0.26.0", "0"), ("0.31.0", "1")])
def test_vllm_is_changed_where_that_has_been_tried(monkeypatch, version, switch):
    class CudaGraphManager:
        def __init__(self, lora_capture_cases=None):
            self.lora_capture_cases = lora_capture_cases

        def _resolve_effective_loras(self, num_active_loras):
            return num_active_loras

    manager = type("LoRAModelManager", (), {"activate_adapter": lambda self, lora_id: True})
    worker = type("WorkerLoRAManager", (), {"set_active_adapters": lambda self, requests, mapping: None})
    gpu_worker = SimpleNamespace(kernel_warmup=max, warmup_kernels=max)
    modules = {
        "vllm": SimpleNamespace(__version__=version),
        "vllm.v1.worker.gpu.cudagraph_utils": SimpleNamespace(CudaGraphManager=CudaGraphManager),
        "vllm.lora.model_manager": SimpleNamespace(LoRAModelManager=manager),
        "vllm.lora.worker_manager": SimpleNamespace(WorkerLoRAManager=worker),
        "vllm.v1.worker.gpu_worker": gpu_worker,
        "vllm.sampling_params": SimpleNamespace(SamplingParams=SamplingParams),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv(short_start.SWITCH, switch)
    short_start.use_short_start()
    changed = version.startswith(short_start.TRIED) and switch != "0"
    assert (CudaGraphManager(lora_capture_cases=[0, 2]).lora_capture_cases == [2]) == changed
    assert hasattr(manager, "slots_used") == changed
    assert (gpu_worker.kernel_warmup is not max) == (gpu_worker.warmup_kernels is not max) == changed
