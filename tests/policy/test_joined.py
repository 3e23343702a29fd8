"""Linears in one product against the same linears one by one."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from mathrl.policy import joined
from mathrl.policy.joined import joined_lora, read_together
from mathrl.policy.lora import fuse, lora_linear

OUT = (5, 3, 4)


class Three(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, out, bias=bias) for out in OUT)


def three(bias: bool = True, **lora) -> nn.Module:
    torch.manual_seed(3)
    settings = {"r": 2, "lora_alpha": 3.0, "target_modules": ["q", "k", "v"]} | lora
    model = get_peft_model(Three(bias), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    fuse(model)
    return model


def modules_of(model: nn.Module) -> list[nn.Module]:
    base = model.get_base_model()
    return [base.q, base.k, base.v]


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """How many linears went into each joined product."""
    made: list[int] = []

    def counted(x, weights, *rest):
        made.append(len(weights))
        return joined_lora(x, weights, *rest)

    monkeypatch.setattr(joined, "joined_lora", counted)
    return made


def gradients(outs: list[Tensor], x: Tensor, model: nn.Module) -> list[Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = sum((out * (1 + i)).sin().sum() for i, out in enumerate(outs))
    return list(torch.autograd.grad(loss, [x, *trained]))


def test_derivatives_and_each_linear_of_its_own():
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    weights, bias = [draw(out, 4) for out in OUT], draw(sum(OUT))
    x, a, b = (draw(*shape).requires_grad_() for shape in ((7, 4), (6, 4), (sum(OUT), 2)))
    call = lambda x, a, b: joined_lora(x, weights, bias, a, b)[0]  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, a, b))
    expected = [
        lora_linear(x, *parts, scaling=1.0)
        for parts in zip(weights, bias.split(OUT), a.split(2), b.split(OUT), strict=True)
    ]
    torch.testing.assert_close(call(x, a, b), torch.cat(expected, 1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_one_product_is_equal_to_the_modules(bias: bool, products: list[int]):
    model = three(bias)
    x = torch.randn(2, 7, 6, requires_grad=True)
    mine, theirs = read_together(x, *modules_of(model)), [module(x) for module in modules_of(model)]
    assert products == [3]
    for got, wanted in zip(mine, theirs, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    found, expected = gradients(mine, x, model), gradients(theirs, x, model)
    assert len(found) == 1 + 2 * len(OUT)
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "lora", [{"target_modules": ["q", "v"]}, {"rank_pattern": {"k": 3}}, {"lora_dropout": 0.5}]
)
def test_what_cannot_be_joined_is_computed_by_the_modules(lora, products: list[int]):
    model = three(**lora).train()
    x = torch.randn(1, 4, 6)
    torch.manual_seed(1)
    mine = read_together(x, *modules_of(model))
    torch.manual_seed(1)
    assert all(torch.equal(got, m(x)) for got, m in zip(mine, modules_of(model), strict=True))
    assert products == []


def test_without_the_adapter_it_is_the_base(products: list[int]):
    model = three()
    x = torch.randn(1, 4, 6)
    with model.disable_adapter():
        outs = read_together(x, *modules_of(model))
    for out, module in zip(outs, modules_of(model), strict=True):
        assert torch.equal(out, module.base_layer(x))
    assert products == []
