"""Models that bring Python code: refused unless model.trust_remote_code, and nobody is asked."""

import json

import pytest
import torch
import transformers

from mathrl.cli import main
from mathrl.config import Config, ModelConfig
from mathrl.errors import UserError
from mathrl.memory.plan import Limits
from mathrl.policy.loading import context_of, load_base, load_shapes, load_tokenizer
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.recipes import load_recipe
from mathrl.rollout.vllm_settings import engine_arguments

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-for-this-test"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path):
    """A model whose configuration, layers and tokenizer are classes of its own folder."""
    folder = tmp_path / "own"
    sizes = ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=48)
    tokenizer = build_base(sizes, 0)[1]
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=128, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "own_model.py").write_text(CODE)
    (folder / "own_tokenizer.py").write_text(TOKENIZER)
    names = {"AutoConfig": "own_model.OwnConfig", "AutoModelForCausalLM": "own_model.OwnForCausalLM"}
    change(folder / "config.json", model_type="own-for-this-test", auto_map=names)
    own = {"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]}
    change(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
    return folder


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_they_are_refused_in_one_sentence_and_nothing_is_asked(folder, monkeypatch, capsys):
    def asked(*_):
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", asked)
    for load in (
        lambda: load_base(str(folder), torch.device("cpu"), torch.float32),
        lambda: load_tokenizer(str(folder)),
        lambda: context_of(ModelConfig(path=str(folder))),
        lambda: load_shapes(ModelConfig(path=str(folder))),
    ):
        with pytest.raises(UserError) as refused:
            load()
        assert str(refused.value) == (
            f"the model at {str(folder)!r} brings Python code of its own, which is run only with "
            "--model.trust_remote_code: read that code first"
        )
    assert capsys.readouterr().out == ""


def test_with_the_field_they_are_loaded(folder):
    config = Config(
        model={"path": str(folder), "trust_remote_code": True}, sft={"skip": True}, run={"device": "cpu"}
    )
    policy = Policy.from_pretrained(str(folder), config)
    assert type(policy.model.get_base_model()).__name__ == "OwnForCausalLM"
    assert type(policy.tokenizer).__name__ == "OwnTokenizer"
    assert context_of(config.model) == 128
    assert load_shapes(config.model)["model.embed_tokens.weight"][1] == 32


@pytest.mark.parametrize("trusted", [False, True])
def test_vllm_is_told_the_same(trusted):
    limits = Limits(max_model_len=64, max_num_seqs=4, lora_rank=0)
    arguments = engine_arguments("m", limits, "cpu", torch.float32, 0, False, trusted=trusted)
    assert arguments["trust_remote_code"] is trusted


def test_init_has_an_option_for_it(folder, tmp_path, capsys):
    rows = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(80)]
    data, out = tmp_path / "rows.jsonl", tmp_path / "made.toml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["init", "--model", str(folder), "--data", str(data), "--out", str(out)]
    assert main(words) == 2
    assert "is run only with --trust-remote-code: read that code first" in capsys.readouterr().err
    assert main([*words, "--trust-remote-code"]) == 0
    assert load_recipe(str(out)).model.trust_remote_code
