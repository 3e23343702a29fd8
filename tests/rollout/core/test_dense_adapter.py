"""One adapter in a layer's own product: what vLLM's slices would add, from vLLM's own tensors."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from mathrl.rollout.core import dense_adapter

RANK, WIDTH, OUTS = 4, 10, (6, 3, 5)


class Layer:
    """As vLLM's linear layer with adapters; its own way to apply them is a loop."""

    tp_size = 1

    def __init__(self, outs, base=None):
        self.outs, self.base_layer = outs, base
        flag = torch.tensor([False])
        self.punica_wrapper = SimpleNamespace(token_mapping_meta=SimpleNamespace(no_lora_flag_cpu=flag))

    def create_lora_weights(self, max_loras):
        self.lora_a_stacked = tuple(torch.zeros(max_loras, 1, RANK, WIDTH) for _ in self.outs)
        self.lora_b_stacked = tuple(torch.zeros(max_loras, 1, out, RANK) for out in self.outs)

    def set_lora(self, a, b, rank):
        for slot, part in zip(self.lora_a_stacked, a, strict=True):
            slot[0, 0, :rank].copy_(part)
        for slot, part in zip(self.lora_b_stacked, b, strict=True):
            slot[0, 0, :, :rank].copy_(part)

    def _apply_sync(self, x, bias=None):
        return self._apply_lora_to_output(x, F.linear(x, self.base_layer.weight, bias))

    def _apply_lora_to_output(self, x, output):
        for out, a, b in zip(
            output.split(self.outs, dim=-1), self.lora_a_stacked, self.lora_b_stacked, strict=True
        ):
            out += x @ a[0, 0].t() @ b[0, 0].t()
        return output


@pytest.fixture
def kind(monkeypatch):
    monkeypatch.setattr(dense_adapter, "_on_a_gpu", lambda parts: True)
    changed = type("Changed", (Layer,), {})
    dense_adapter.serve_densely(changed, [changed])
    return changed


def filled(layer, outs, rank=RANK, max_loras=1):
    generator = torch.Generator().manual_seed(0)
    layer.create_lora_weights(max_loras)
    a = [torch.randn(rank, WIDTH, generator=generator) for _ in outs]
    layer.set_lora(a, [torch.randn(out, rank, generator=generator) for out in outs], rank)
    return layer


class UnquantizedLinearMethod:
    """By its name, as vLLM's."""


def base(outs, quantized=False):
    method = SimpleNamespace() if quantized else UnquantizedLinearMethod()
    return SimpleNamespace(
        weight=torch.nn.Parameter(torch.randn(sum(outs), WIDTH), requires_grad=False), quant_method=method
    )


@pytest.mark.parametrize("outs", [OUTS, (7,)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_adapter_is_a_part_of_the_layers_own_product(kind, outs, with_bias):
    plain = base(outs)
    weight, x = plain.weight.detach().clone(), torch.randn(5, WIDTH)
    bias = torch.randn(sum(outs)) if with_bias else None
    own = Layer(outs, base(outs))
    own.base_layer.weight.data = weight
    layer, want = filled(kind(outs, plain), outs), filled(own, outs)._apply_sync(x, bias)
    assert layer.whole.shape == (sum(outs) + RANK * len(outs), WIDTH)
    assert torch.equal(plain.weight, weight)
    assert plain.weight.data_ptr() == layer.whole.data_ptr()  # read and reloaded where it lies
    assert torch.allclose(layer._apply_sync(x, bias), want, atol=1e-5)
    assert torch.allclose(layer._apply_sync(x[None], bias), want[None], atol=1e-5)
    assert not torch.allclose(want, F.linear(x, weight, bias), atol=1e-2)
    layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu[0] = True
    assert torch.equal(layer._apply_sync(x, bias), F.linear(x, weight, bias))
    layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu[0] = False
    for slot in (*layer.lora_a_stacked, *layer.lora_b_stacked):  # as vLLM takes an adapter away
        slot[0] = 0
    assert torch.allclose(layer._apply_sync(x, bias), F.linear(x, weight, bias), atol=1e-6)


class Mlp:
    """As vLLM's: gate and up in one layer, then down."""

    def __init__(self, layer, down):
        self.gate_up_proj, self.down = layer, down

    def down_proj(self, x):
        return x @ self.down.t(), None

    def forward(self, x):
        gate, up = self.gate_up_proj._apply_sync(x, self.gate_up_proj.base_layer.bias).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)[0]


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_gated_layer_ends_gated(kind, with_bias):
    plain = base((6, 6))
    plain.bias = torch.randn(12) if with_bias else None
    gated = type("Gated", (Mlp,), {})
    dense_adapter.gate_at_once(gated)
    x, down = torch.randn(5, WIDTH), torch.randn(WIDTH, 6)
    layer = filled(kind((6, 6), plain), (6, 6))
    for without in (False, True):
        layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu[0] = without
        want = Mlp(layer, down).forward(x)
        assert torch.allclose(gated(layer, down).forward(x), want, atol=1e-5)
        assert torch.allclose(gated(layer, down).forward(x[None]), want[None], atol=1e-5)
    layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu[0] = False
    compiled = torch.compile(gated(layer, down).forward, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), Mlp(layer, down).forward(x), atol=1e-5)
    own = Layer((6, 6), plain)  # without an adapter of ours: vLLM's own way
    assert torch.equal(gated(filled(own, (6, 6)), down).forward(x), Mlp(own, down).forward(x))


@pytest.mark.parametrize("why", ["quantized", "other type", "other shape"])
def test_weights_that_are_not_plain_keep_their_own_product(kind, why):
    odd = base(OUTS, quantized=why == "quantized")
    if why == "other type":
        odd.weight.data = odd.weight.data.double()
    if why == "other shape":
        odd.weight.data = torch.randn(sum(OUTS), 2 * WIDTH)
    layer = filled(kind(OUTS, odd), OUTS)
    assert layer.whole is None
    assert layer.dense is not None
    if why == "quantized":
        x = torch.randn(5, WIDTH)
        own = Layer(OUTS, odd)
        assert torch.allclose(layer._apply_sync(x), filled(own, OUTS)._apply_sync(x), atol=1e-5)


@pytest.mark.parametrize("outs", [OUTS, (7,)])
@pytest.mark.parametrize("rank", [RANK, 2])
def test_it_adds_what_the_slices_add(kind, outs, rank):
    x, y = torch.randn(5, WIDTH), torch.randn(5, sum(outs))
    layer = filled(kind(outs), outs, rank)
    want = filled(Layer(outs), outs, rank)._apply_lora_to_output(x, y.clone())
    assert layer.dense is not None
    assert torch.allclose(layer._apply_lora_to_output(x, y.clone()), want, atol=1e-5)
    folded = layer._apply_lora_to_output(x[None], y.clone()[None])
    assert torch.allclose(folded, want[None], atol=1e-5)
    for slot in layer.lora_b_stacked:  # as vLLM takes an adapter away
        slot[0] = 0
    assert torch.equal(layer._apply_lora_to_output(x, y.clone()), y)


def test_a_step_without_an_adapter_adds_nothing(kind):
    x, y = torch.randn(5, WIDTH), torch.randn(5, sum(OUTS))
    layer = filled(kind(OUTS), OUTS)
    layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu[0] = True
    assert torch.equal(layer._apply_lora_to_output(x, y.clone()), y)


@pytest.mark.parametrize("what", ["several adapters", "a part of the layer"])
def test_what_is_not_one_whole_adapter_is_left_to_vllm(kind, what):
    layer = kind(OUTS)
    layer.tp_size = 2 if what == "a part of the layer" else 1
    filled(layer, OUTS, max_loras=2 if what == "several adapters" else 1)
    x, y = torch.randn(5, WIDTH), torch.randn(5, sum(OUTS))
    assert layer.dense is None
    want = filled(Layer(OUTS), OUTS)._apply_lora_to_output(x, y.clone())
    assert torch.equal(layer._apply_lora_to_output(x, y.clone()), want)


def test_compiled_code_takes_the_whole_layer_as_it_is(kind):
    x = torch.randn(5, WIDTH)
    layer = filled(kind(OUTS, base(OUTS)), OUTS)
    flag = layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu
    compiled = torch.compile(lambda x: layer._apply_sync(x * 2) + 1, backend="aot_eager", fullgraph=True)
    for without in (False, True, False):
        flag[0] = without
        assert torch.allclose(compiled(x), layer._apply_sync(x * 2) + 1, atol=1e-5)


def test_compiled_code_takes_it_as_it_is(kind):
    x, y = torch.randn(5, WIDTH), torch.randn(5, sum(OUTS))
    layer = filled(kind(OUTS), OUTS)
    flag = layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu

    def share(rows):
        out = rows * 2
        torch.ops.mathrl.add_adapter(out, x, *layer.dense, flag)
        return out + 1

    compiled = torch.compile(share, backend="aot_eager", fullgraph=True)
    for without in (False, True, False):  # a flag on the CPU is read at every call
        flag[0] = without
        assert torch.allclose(compiled(y), share(y), atol=1e-5)
    assert not torch.equal(share(y), y * 2 + 1)


class Manager:
    """As vLLM's; it remembers the mappings that its tables are made of."""

    def __init__(self, **modules):
        self.modules, self.told = modules, []

    def _set_adapter_mapping(self, mapping):
        self.told.append(mapping)

    def _match_target_modules(self, module_name):
        return module_name != "model.rotary"


@pytest.mark.parametrize("of_model", [{"embed_tokens": "in", "lm_head": "out"}, {}, None])
def test_the_embedding_and_the_head_have_no_adapter(of_model):
    manager = type("Changed", (Manager,), {})
    dense_adapter.leave_embeddings(manager)
    own = manager()
    own.model = SimpleNamespace() if of_model is None else SimpleNamespace(embedding_modules=of_model)
    names = ["model.embed_tokens", "lm_head", "model.layers.0.q_proj", "model.rotary"]
    assert [own._match_target_modules(name) for name in names] == [not of_model, not of_model, True, False]


def test_dense_layers_need_no_tables_of_tokens(kind):
    manager = type("Changed", (Manager,), {})
    dense_adapter.map_densely(manager)
    first, second = filled(kind(OUTS), OUTS), filled(kind((7,)), (7,))
    flags = [layer.punica_wrapper.token_mapping_meta.no_lora_flag_cpu for layer in (first, second)]
    whole = manager(first=first, second=second)
    for tokens, nobody in (((0, 0, 0), True), ((3, 3, 3), False), ((), True), ((0, 3), False)):
        whole._set_adapter_mapping(SimpleNamespace(index_mapping=tokens))
        assert [bool(flag) for flag in flags] == [nobody, nobody]
    assert whole.told == []
    mixed = manager(first=first, embedding=SimpleNamespace())
    mapping = SimpleNamespace(index_mapping=(0,))
    mixed._set_adapter_mapping(mapping)
    assert mixed.told == [mapping]
    assert not bool(flags[0])
    empty = manager()
    empty._set_adapter_mapping(mapping)
    assert empty.told == [mapping]


@pytest.mark.parametrize("version", ["0.26.0", "0.31.0"])
def test_vllms_layers_are_changed_where_that_has_been_tried(monkeypatch, version):
    layer = type("BaseLinearLayerWithLoRA", (Layer,), {})
    merged = type("MergedColumnParallelLinearWithLoRA", (layer,), {"create_lora_weights": create_merged})
    state = type("LoraState", (), {})
    modules = {
        "vllm": SimpleNamespace(__version__=version),
        "vllm.lora.layers.base_linear": SimpleNamespace(BaseLinearLayerWithLoRA=layer),
        "vllm.lora.layers.column_parallel_linear": SimpleNamespace(MergedColumnParallelLinearWithLoRA=merged),
        "vllm.v1.worker.gpu.lora_utils": SimpleNamespace(LoraState=state),
        "vllm.lora.model_manager": SimpleNamespace(LoRAModelManager=type("LoRAModelManager", (Manager,), {})),
        "vllm.model_executor.models.llama": SimpleNamespace(LlamaMLP=type("LlamaMLP", (Mlp,), {})),
        "vllm.model_executor.models.qwen2": SimpleNamespace(Qwen2MLP=type("Qwen2MLP", (Mlp,), {})),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(dense_adapter, "_on_a_gpu", lambda parts: True)
    dense_adapter.use_dense_adapter()
    tried = version in {f"{known}.0" for known in dense_adapter.TRIED}
    for kind in (layer, merged):
        made = filled(kind(OUTS), OUTS)
        assert (getattr(made, "dense", None) is not None) == tried
    manager = modules["vllm.lora.model_manager"].LoRAModelManager
    for name in ("_set_adapter_mapping", "_match_target_modules"):
        assert (getattr(manager, name) is not getattr(Manager, name)) == tried
    for name in ("LlamaMLP", "Qwen2MLP"):
        mlp = getattr(modules[f"vllm.model_executor.models.{name[:-3].lower()}"], name)
        assert (mlp.forward is not Mlp.forward) == tried
    assert getattr(state, "one_for_all", False) == tried  # a step of several adapters is refused then


def create_merged(self, max_loras):
    Layer.create_lora_weights(self, max_loras)
