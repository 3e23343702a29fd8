"""An adapter as an engine reads it: the trainer's own rounded matrices, and nothing left to scale."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mathrl.rollout.adapter_files import write_served
from mathrl.types import Adapter

LAYER = "base_model.model.model.layers.0."


def adapter(alpha: float, **config: object) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    sizes = {"self_attn.q_proj": (6, 10), "mlp.down_proj": (10, 14)}
    tensors = {}
    for name, (out, width) in sizes.items():
        tensors[f"{LAYER}{name}.lora_A.weight"] = torch.randn(4, width, generator=generator)
        tensors[f"{LAYER}{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    return Adapter({"r": 4, "lora_alpha": alpha, "peft_type": "LORA", **config}, tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("alpha", [4.0, 8.0, 6.5])
def test_the_scaling_is_in_b_before_it_is_rounded(tmp_path, dtype, alpha):
    given = adapter(alpha)
    write_served(given, tmp_path / "served", dtype)
    config = json.loads((tmp_path / "served" / "adapter_config.json").read_text())
    assert config == {"r": 4, "lora_alpha": 4, "peft_type": "LORA"}
    found = load_file(tmp_path / "served" / "adapter_model.safetensors")
    assert found.keys() == given.tensors.keys()
    for name, tensor in given.tensors.items():
        want = tensor * (alpha / 4) if "lora_B" in name else tensor
        assert torch.equal(found[name], want.to(dtype))
    again = adapter(alpha)  # what was given is as it was
    assert given.config == again.config
    assert all(torch.equal(given.tensors[name], tensor) for name, tensor in again.tensors.items())


def test_what_is_no_plain_lora_keeps_its_scaling(tmp_path):
    given = adapter(8.0, use_rslora=True)
    write_served(given, tmp_path / "served", torch.float32)
    assert json.loads((tmp_path / "served" / "adapter_config.json").read_text()) == dict(given.config)
    found = load_file(tmp_path / "served" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in given.tensors.items())
