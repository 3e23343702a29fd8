"""The fused LoRA linear against finite differences and against peft's own forward."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mathrl.policy.lora import FusedLoraLinear, fuse, lora_linear


class Two(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5, bias=bias), nn.Linear(5, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


def pair(bias: bool = True, dtype: torch.dtype = torch.float32, **lora) -> tuple[nn.Module, nn.Module]:
    """The same peft model twice, the second one fused."""
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        settings = {"r": 2, "lora_alpha": 3.0, "target_modules": ["first", "second"]} | lora
        model = get_peft_model(Two(bias).to(dtype), LoraConfig(**settings))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_()
        models.append(model)
    assert fuse(models[1]) == 2
    return models[0], models[1]


def test_first_and_second_derivatives():
    torch.manual_seed(0)
    x, w, bias, a, b = (
        torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 4), (5, 4), (5,), (2, 4), (5, 2))
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()
    call = lambda x, a, b: lora_linear(x, w, bias, a, b, 0.5)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, a, b))
    assert torch.autograd.gradgradcheck(call, (x, a, b))


@pytest.mark.parametrize("bias", [True, False])
def test_equals_peft_within_rounding(bias: bool):
    theirs, ours = pair(bias)
    x = torch.randn(4, 7, 6)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outs = [model(given) for model, given in zip((theirs, ours), inputs, strict=True)]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-6, atol=1e-6)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-5, atol=1e-5)
    for (name, p), (_, q) in zip(theirs.named_parameters(), ours.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None) == ("lora_" not in name), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-5, atol=1e-5, msg=name)


def test_bfloat16_base_keeps_float32_masters_and_gradients():
    theirs, ours = pair(dtype=torch.bfloat16)
    x = torch.randn(64, 6)
    exact = pair(dtype=torch.float64)[0]
    for p, q in zip(exact.parameters(), ours.parameters(), strict=True):
        p.data.copy_(q.data)
    grads = {}
    for name, model in (("peft", theirs), ("ours", ours), ("exact", exact)):
        dtype = torch.float64 if name == "exact" else torch.bfloat16
        model(x.to(torch.bfloat16).to(dtype)).double().square().mean().backward()
        grads[name] = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    for name, exact_grad in grads["exact"].items():
        error = {
            who: ((grads[who][name] - exact_grad).norm() / exact_grad.norm()).item()
            for who in ("peft", "ours")
        }
        assert error["ours"] < 2e-2, (name, error)
    assert {p.dtype for p in ours.parameters() if p.requires_grad} == {torch.float32}
    assert {p.grad.dtype for p in ours.parameters() if p.requires_grad} == {torch.float32}


def test_adapter_off_is_the_base_bit_for_bit():
    _, ours = pair()
    x = torch.randn(3, 6)
    base = Two()
    state = ours.get_base_model().state_dict()
    base.load_state_dict({k.replace(".base_layer", ""): v for k, v in state.items() if "lora_" not in k})
    assert not torch.equal(ours(x), base(x))
    with ours.disable_adapter():
        assert torch.equal(ours(x), base(x))


def test_dropout_and_a_second_adapter_follow_peft():
    theirs, ours = pair(lora_dropout=0.5)
    x = torch.randn(5, 6)
    other = LoraConfig(r=3, lora_alpha=6, target_modules=["first"], init_lora_weights=False)
    for model in (theirs.eval(), ours.eval()):
        torch.manual_seed(11)
        model.add_adapter("other", other)
    for name in ("default", "other"):
        for model in (theirs, ours):
            model.set_adapter(name)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    outs = []
    for model in (theirs.train(), ours.train()):
        model.set_adapter("default")
        torch.manual_seed(5)
        outs.append(model(x))
    assert torch.equal(outs[0], outs[1])  # with dropout the fused forward steps aside


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"lora_bias": True}])
def test_variants_keep_pefts_forward(settings: dict):
    model = get_peft_model(Two(), LoraConfig(r=2, target_modules=["first", "second"], **settings))
    assert fuse(model) == 0
    assert not any(isinstance(m, FusedLoraLinear) for m in model.modules())
