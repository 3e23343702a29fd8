"""An exported run is what transformers and peft load, and computes what the policy computed."""

import errno
import os

import huggingface_hub
import peft
import pytest
import torch
import transformers

from mathrl.cli import main
from mathrl.commands import export
from mathrl.commands.export import export_run
from mathrl.config import CheckpointConfig, Config, ModelConfig, SftConfig
from mathrl.errors import UserError
from mathrl.policy.scratch import build_base
from mathrl.recipes import dump
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.folder import RunFolder
from mathrl.types import Adapter

SIZES = ModelConfig(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48)
TEXT = "Ann has 12 apples and buys 3 more. #### 15"


def make_run(
    tmp_path, dtype: torch.dtype, scales: dict[int, float]
) -> tuple[RunFolder, dict[int, peft.PeftModel]]:
    """A run folder with a checkpoint a step, its adapter's B of that scale, and the policies themselves."""
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(dump(Config(model=SIZES, checkpoint=CheckpointConfig(keep_last=len(scales)))))
    base, tokenizer = build_base(SIZES, seed=0)
    base.to(dtype).save_pretrained(run.reference)
    tokenizer.save_pretrained(run.reference)
    policies = {}
    for step, scale in scales.items():
        model = transformers.AutoModelForCausalLM.from_pretrained(run.reference, dtype=dtype)
        settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        policies[step] = peft.get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(step)
        for name, parameter in policies[step].named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
            if "lora_B" in name:
                parameter.data.normal_(0, scale, generator=generator)
        tensors = peft.get_peft_model_state_dict(policies[step])
        adapter = Adapter(policies[step].peft_config["default"].to_dict(), tensors)
        store = CheckpointStore(run.checkpoints, len(scales))
        store.save(step, {"trainer": {"adapter": adapter}}, best=step == min(scales))
    return run, policies


@torch.no_grad()
def logits(model, ids: torch.Tensor) -> torch.Tensor:
    return model.eval()(input_ids=ids).logits.float()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    run, policies = make_run(folder, torch.float32, {10: 0.2, 20: 0.2})
    return folder, run, policies


@pytest.mark.parametrize(("which", "step"), [("last", 20), ("best", 10)])
def test_adapter_and_merged_model_compute_what_the_policy_computes(exported, which, step, capfd):
    folder, run, policies = exported
    result = export_run(run.path, folder / which, which)
    assert capfd.readouterr() == ("", ""), "bars and reports of transformers"
    assert (result.step, result.dtype, result.kept) == (step, torch.float32, pytest.approx(1.0, abs=1e-5))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / which / "merged")
    ids = torch.tensor([tokenizer.encode(TEXT)])
    beside = transformers.AutoTokenizer.from_pretrained(folder / which / "adapter")
    assert (beside.encode(TEXT), beside.decode(ids[0])) == (ids[0].tolist(), tokenizer.decode(ids[0]))
    assert ids.tolist() == [transformers.AutoTokenizer.from_pretrained(run.reference).encode(TEXT)]
    expected = logits(policies[step], ids)
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / which / "merged")
    torch.testing.assert_close(logits(merged, ids), expected, atol=1e-5, rtol=1e-4)
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(folder / which / "adapter")
    torch.testing.assert_close(logits(adapted, ids), expected, atol=1e-6, rtol=1e-5)
    reference = transformers.AutoModelForCausalLM.from_pretrained(run.reference)
    assert (logits(reference, ids) - expected).abs().max() > 0.01, "the adapter must matter for this test"


def test_half_precision_keeps_its_type_and_says_what_it_lost(tmp_path):
    run, _ = make_run(tmp_path, torch.bfloat16, {1: 1e-4, 2: 0.3})
    fine = export_run(run.path, tmp_path / "last", "last")
    lost = export_run(run.path, tmp_path / "best", "best")
    assert fine.dtype == torch.bfloat16
    assert fine.kept > 0.99
    assert lost.kept < 0.9
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "last" / "merged", dtype="auto")
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


def test_an_adapter_alone_is_replaced_whole(exported, tmp_path):
    _, run, policies = exported
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.reference)
    config = policies[10].peft_config["default"].to_dict()
    tensors = peft.get_peft_model_state_dict(policies[10])
    for factor in (1.0, 2.0):
        adapter = Adapter(config, {name: factor * tensor for name, tensor in tensors.items()})
        export.export_adapter(tmp_path / "adapter", adapter, str(run.reference), tokenizer)
    found = peft.load_peft_weights(str(tmp_path / "adapter"))
    assert all(torch.equal(found[name], 2.0 * tensors[name]) for name in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_what_cannot_be_exported_is_said_and_nothing_written(exported, tmp_path, monkeypatch):
    _, run, _ = exported
    with pytest.raises(UserError, match="is not a run"):
        export_run(tmp_path, tmp_path / "out")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    with pytest.raises(UserError, match="not empty"):
        export_run(run.path, taken)
    empty = RunFolder(tmp_path / "empty")
    empty.path.mkdir()
    empty.config.write_text(dump(Config()))
    for which in ("last", "best"):
        with pytest.raises(UserError, match="nothing to export"):
            export_run(empty.path, tmp_path / "out", which)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(export, "write_adapter", full)
    with pytest.raises(UserError, match="the disk is full"):
        export_run(run.path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "taken"]


def test_a_push_that_does_not_reach_the_hub_says_what_does_it_later(tmp_path, monkeypatch):
    out = tmp_path / "out"
    for part in ("merged", "adapter"):
        (out / part).mkdir(parents=True)
        (out / part / "weights").write_text(part)
    (out / "README.md").write_text("card")

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    with pytest.raises(UserError, match="me/mine could not be pushed.*cannot be reached") as told:
        export.push_export(out, "me/mine", private=True)
    commands = [c.split() for c in str(told.value).split("`")[1].split(" && ")]
    assert [(c[:3], c[4]) for c in commands] == [
        (["hf", "upload", "me/mine"], place) for place in (".", "adapter", "README.md")
    ]
    assert [os.path.exists(c[3]) for c in commands] == [True] * 3


def test_a_name_that_the_hub_cannot_have_is_refused_before_anything_is_written(exported, capsys):
    folder, run, _ = exported
    assert main(["export", str(run.path), str(folder / "never"), "--push", "not a name"]) == 2
    assert "--push 'not a name' is no name on the hub" in capsys.readouterr().err
    assert not (folder / "never").exists()


def test_a_base_model_that_is_elsewhere_is_told_at_once_and_from_where_it_was_named(
    tmp_path, monkeypatch, capsys
):
    run, _ = make_run(tmp_path, torch.float32, {1: 0.1})
    run.reference.rename(tmp_path / "base")
    (tmp_path / "data.jsonl").write_text('{"question": "q", "answer": 1}\n')
    (tmp_path / "run" / "adapter").mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(export, "load_tokenizer", lambda *a, **k: pytest.fail("it was looked for on the hub"))
    for model, told in (
        ("base", "run this command there"),
        (str(tmp_path / "bsae"), "there is no model folder"),
    ):
        run.config.write_text(dump(Config(model=ModelConfig(path=model), sft=SftConfig(skip=True))))
        for words in (
            ["export", str(run.path), str(tmp_path / "out")],
            ["eval", str(run.path), "--reference", "--data", str(tmp_path / "data.jsonl")],
        ):
            assert main(words) == 2
            assert told in capsys.readouterr().err
