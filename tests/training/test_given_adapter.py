"""A run that starts from an adapter: model + adapter is the reference, or one sentence says why not."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from mathrl.cli import main
from mathrl.commands.export import export_run
from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.loading import load_tokenizer
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.training.given_adapter import check_adapter, make_merged_reference
from mathrl.types import Batch

SIZES = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "intermediate_size": 48}
TEXT = "Ann has 12 apples and buys 3 more. #### 15"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder, and an adapter on it of rank 3, whose B is not zero."""
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = build_base(Config(model=SIZES).model, seed=0)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(folder / "model"), settings
    )
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.2)
    adapted.save_pretrained(folder / "adapter")
    return folder


def config(base, **sections):
    model = {"path": str(base / "model"), "adapter": str(base / "adapter")} | sections.pop("model", {})
    return Config(model=model, sft={"skip": True}, run={"device": "cpu"}, lora={"rank": 2}, **sections)


@torch.no_grad()
def logits(model, tokenizer):
    return model.eval()(input_ids=torch.tensor([tokenizer.encode(TEXT)])).logits.float()


def adapted(base):
    model = transformers.AutoModelForCausalLM.from_pretrained(base / "model")
    return peft.PeftModel.from_pretrained(model, base / "adapter")


def test_the_reference_is_model_and_adapter(base, tmp_path):
    assert make_merged_reference(config(base), tmp_path / "reference") == pytest.approx(1.0, abs=1e-5)
    tokenizer = load_tokenizer(str(tmp_path / "reference"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "reference")
    expected = logits(adapted(base), tokenizer)
    torch.testing.assert_close(logits(reference, tokenizer), expected, atol=1e-5, rtol=1e-4)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base / "model")
    assert not torch.allclose(logits(plain, tokenizer), expected, atol=1e-2), "the adapter does something"


def test_policy_and_reference_both_start_as_model_and_adapter(base, tmp_path):
    make_merged_reference(config(base), tmp_path / "reference")
    policy = Policy.from_pretrained(str(tmp_path / "reference"), config(base))
    ids = torch.tensor(policy.tokenizer.encode(TEXT))
    prompt, completion = ids[:4], ids[4:]
    batch = Batch(
        prompts=(prompt,),
        group_ids=torch.zeros(1, dtype=torch.long),
        completion_ids=completion[None],
        loss_mask=torch.ones(1, len(completion), dtype=torch.bool),
        rewards=torch.zeros(1),
        truncated=torch.zeros(1, dtype=torch.bool),
    )
    scores = logits(adapted(base), policy.tokenizer)[0].log_softmax(-1)
    expected = scores[3:-1].gather(1, completion[:, None])[:, 0]
    for reference in (False, True):
        with torch.no_grad():
            found = policy.logprobs(batch, reference=reference).logprobs[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_half_precision_rounds_the_sum_once_and_says_what_it_kept(base, tmp_path):
    small = tmp_path / "small"
    shutil.copytree(base / "adapter", small)
    tensors = load_file(small / "adapter_model.safetensors")
    save_file(
        {n: t * 1e-4 if "lora_B" in n else t for n, t in tensors.items()}, small / "adapter_model.safetensors"
    )
    model = {"adapter": str(small), "dtype": "bfloat16"}
    kept = make_merged_reference(config(base, model=model), tmp_path / "reference")
    assert 0.0 < kept < 0.9
    merged = load_file(tmp_path / "reference" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    plain = load_file(base / "model" / "model.safetensors")[name]
    a, b = (tensors[f"base_model.model.{name[:-7]}.lora_{k}.weight"] for k in "AB")
    assert torch.equal(merged[name], (plain.bfloat16().float() + 2.0 * 1e-4 * (b @ a)).bfloat16())


def broken(base, tmp_path, change):
    """A copy of the adapter whose configuration and tensors ``change`` has been at."""
    folder = tmp_path / "broken"
    shutil.copytree(base / "adapter", folder)
    file = folder / "adapter_config.json"
    settings, tensors = json.loads(file.read_text()), load_file(folder / "adapter_model.safetensors")
    change(settings, tensors)
    file.write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: s.update(r=8), "have rank 3 and 3, and its adapter_config.json says 8"),
        (lambda s, t: s.update(use_dora=True), "uses use_dora, which is not served here"),
        (lambda s, t: s.update(peft_type="IA3"), "uses IA3, which is not served here"),
        (lambda s, t: t.pop(FIRST.format("B")), "not made of pairs lora_A and lora_B"),
        (
            lambda s, t: t.update({FIRST.format("A"): torch.zeros(3, 40)}),
            "0.self_attn.q_proj.weight as a matrix of 32 × 40, and the model's is 32 × 32; it was made for",
        ),
        (
            lambda s, t: t.update(
                {FIRST.replace("q_proj", "qkv_proj").format(k): t.pop(FIRST.format(k)) for k in "AB"}
            ),
            "changes model.layers.0.self_attn.qkv_proj.weight, which the model has not; it was made for",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_loaded(base, tmp_path, change, words):
    folder = broken(base, tmp_path, change)
    with pytest.raises(UserError) as refused:
        check_adapter(config(base, model={"adapter": str(folder)}))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_adapter_is_refused(base, tmp_path, capsys):
    for adapter, words in (
        (base / "model", "is a model, not an adapter: name it as model.path"),
        (tmp_path / "nowhere", "there is no adapter folder"),
        (tmp_path, "is no adapter: it has no adapter_config.json"),
    ):
        with pytest.raises(UserError, match=words):
            check_adapter(config(base, model={"adapter": str(adapter)}))
    assert main(["train", "quickstart", "--model.adapter", str(base / "adapter")]) == 2
    assert (
        "model.adapter needs model.path: the model that the adapter was made for" in capsys.readouterr().err
    )


def test_a_run_starts_there_and_its_results_stand_on_it(base, tmp_path, capsys):
    """Two steps: the run's adapter adapts model + given adapter, in evaluations and in what is exported."""
    words = [
        "train",
        "tests/tiny.toml",
        "--sft.skip",
        "--train.num_steps",
        "2",
        "--evaluate.every_steps",
        "0",
    ]
    words += ["--model.path", str(base / "model"), "--model.adapter", str(base / "adapter")]
    words += [
        "--run.output_dir",
        str(tmp_path),
        "--evaluate.num_problems",
        "4",
        "--evaluate.num_samples",
        "0",
    ]
    assert main(words) == 0
    assert "model with adapter merged into it" in capsys.readouterr().out
    run = tmp_path / "tiny"
    tokenizer = load_tokenizer(str(run / "reference"))
    own = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(run / "reference"), run / "adapter"
    )
    expected = logits(own, tokenizer)
    assert not torch.equal(expected, logits(adapted(base), tokenizer)), "two steps moved the policy"
    export_run(run, tmp_path / "out")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged, tokenizer), expected, atol=1e-5, rtol=1e-4)

    rows = [{"question": f"{i} + 3 = ?", "answer": str(i + 3)} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["--data", str(tmp_path / "rows.jsonl"), "--max-completion-tokens", "8"]
    for name, model in (
        ("reference", [str(run), "--reference"]),
        ("given", [str(base / "model"), "--adapter", str(base / "adapter")]),
    ):
        assert main(["eval", *model, *common, "--out", str(tmp_path / name)]) == 0
    said = [
        [json.loads(line).get("greedy", {}).get("text") for line in file.open()][1:]
        for name in ("reference", "given")
        for file in (tmp_path / name).glob("*/completions.jsonl")
    ]
    assert len(said) == 2
    assert said[0] == said[1]


def test_an_adapter_to_evaluate_is_named_otherwise(base, capsys):
    words = ["eval", str(base / "model"), "--model.adapter", str(base / "adapter"), "--data", "x.jsonl"]
    assert main(words) == 2
    assert "the adapter to evaluate is named with --adapter" in capsys.readouterr().err
