"""The policy against the plainest computation there is: one completion at a time, the model's own logits."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedTokenizerFast, Qwen2Config

from mathrl.config import Config, LoraSection
from mathrl.errors import UserError
from mathrl.memory.shapes import why_not_packed
from mathrl.policy.loading import adapter_of, add_adapter
from mathrl.policy.logprobs import token_logprobs
from mathrl.policy.model import Policy
from mathrl.policy.trunk import Trunk
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.types import Batch

from .conftest import SHAPE, TOKENIZER, MakeBatch, MakePolicy

ARCHITECTURES = ["qwen2", "qwen3", "llama", "mistral"]


def one_by_one(policy: Policy, batch: Batch, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) log-probabilities and entropies from the full logits of one unpadded sequence at a time."""
    logprobs = torch.zeros(batch.loss_mask.shape)
    entropy = torch.zeros(batch.loss_mask.shape)
    for row, length in enumerate(batch.lengths.tolist()):
        prompt, completion = batch.prompts[int(batch.group_ids[row])], batch.completion_ids[row, :length]
        logits = policy.model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits[0]
        full = torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1)
        logprobs[row, :length] = full.gather(1, completion[:, None])[:, 0]
        entropy[row, :length] = -(full.exp() * full).sum(-1)
    return logprobs, entropy


def weighted_sum(logprobs: torch.Tensor) -> torch.Tensor:
    """A loss whose gradient differs from token to token."""
    return (logprobs * torch.linspace(-1, 2, logprobs.numel()).view(logprobs.shape)).sum()


def gradients(policy: Policy, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, policy.trainable_parameters()))


def assert_gradients_close(got: list[torch.Tensor], expected: list[torch.Tensor], relative: float) -> None:
    for place, (g, e) in enumerate(zip(got, expected, strict=True)):
        assert e.norm() > 0, place
        assert (g - e).norm() / e.norm() < relative, (place, ((g - e).norm() / e.norm()).item())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("share", [True, False])
def test_equal_to_one_by_one(make_policy: MakePolicy, make_batch: MakeBatch, architecture: str, share: bool):
    policy, batch = make_policy(architecture, share_prompts=share), make_batch()
    expected, nats = one_by_one(policy, batch)
    assert expected.min() < -5  # the example is no near-uniform model
    got = policy.logprobs(batch, entropy=True)
    torch.testing.assert_close(got.logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.entropy, nats, rtol=0, atol=1e-5)
    mine, theirs = (gradients(policy, weighted_sum(x)) for x in (got.logprobs, expected))
    assert_gradients_close(mine, theirs, 1e-4)


@pytest.mark.parametrize("update", [{"fused_lora": False}, {"gradient_checkpointing": True}])
def test_ways_to_compute_it_agree(make_policy: MakePolicy, make_batch: MakeBatch, update: dict):
    batch = make_batch()
    plain, other = make_policy(), make_policy(**update)
    mine, theirs = (gradients(p, weighted_sum(p.logprobs(batch).logprobs)) for p in (other, plain))
    assert_gradients_close(mine, theirs, 1e-5)


@pytest.mark.parametrize("share", [True, False])
def test_changing_one_completion_leaves_the_others_bit_equal(make_policy, make_batch, share: bool):
    policy, batch = make_policy(share_prompts=share), make_batch()
    before = policy.logprobs(batch, entropy=True)
    ids = batch.completion_ids.clone()
    ids[2, :9] = (ids[2, :9] + 5) % 50 + 2
    after = policy.logprobs(batch.add(completion_ids=ids), entropy=True)
    others = torch.arange(len(ids)) != 2
    assert torch.equal(after.logprobs[others], before.logprobs[others])
    assert torch.equal(after.entropy[others], before.entropy[others])
    assert not torch.allclose(after.logprobs[2], before.logprobs[2])


def test_a_token_does_not_see_its_future_or_another_group(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    before = policy.logprobs(batch).logprobs
    ids = batch.completion_ids.clone()
    ids[4, 6] = (ids[4, 6] + 1) % 50 + 2  # row 4, token 6 of 12
    after = policy.logprobs(batch.add(completion_ids=ids)).logprobs
    assert torch.equal(after[4, :6], before[4, :6])
    assert (after[4, 6:12] != before[4, 6:12]).all()
    prompts = (batch.prompts[0], batch.prompts[1].flip(0), batch.prompts[2])
    other = policy.logprobs(
        Batch(**{n: getattr(batch, n) for n in Batch.__slots__} | {"prompts": prompts})
    ).logprobs
    changed = (other != before).any(dim=1)
    assert changed.tolist() == (batch.group_ids == 1).tolist()


def test_order_padding_and_packing_do_not_matter(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    expected = policy.logprobs(batch).logprobs
    order = torch.tensor([8, 3, 0, 5, 7, 1, 4, 2, 6])
    torch.testing.assert_close(
        policy.logprobs(batch.rows(order)).logprobs, expected[order], rtol=0, atol=1e-5
    )
    wide = batch.add(
        completion_ids=torch.nn.functional.pad(batch.completion_ids, (0, 9), value=5),
        loss_mask=torch.nn.functional.pad(batch.loss_mask, (0, 9)),
    )
    got = policy.logprobs(wide).logprobs
    assert torch.equal(got[:, :12], expected)
    assert torch.count_nonzero(got[:, 12:]) == 0
    for tokens in (1, 20, 40, 10_000):  # 1: every row alone
        split = annotate(policy, batch, MicroBatches(tokens), old=True).old_logprobs
        torch.testing.assert_close(split, expected, rtol=0, atol=1e-5)


def test_masked_tokens_are_read_but_not_scored(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    expected = policy.logprobs(batch).logprobs
    mask = batch.loss_mask.clone()
    mask[2, 3], mask[5] = False, False
    torch.testing.assert_close(
        policy.logprobs(batch.add(loss_mask=mask)).logprobs, expected * mask, rtol=0, atol=1e-5
    )
    nothing = policy.logprobs(batch.add(loss_mask=torch.zeros_like(mask)), entropy=True)
    assert torch.count_nonzero(nothing.logprobs) == 0


def test_temperature_scales_the_logits(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    expected, nats = one_by_one(policy, batch, temperature=1.7)
    got = policy.logprobs(batch, entropy=True, temperature=1.7)
    torch.testing.assert_close(got.logprobs, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.entropy, nats, rtol=0, atol=1e-5)
    policy.temperature = 1.7  # the recipe's, where a call says nothing
    assert torch.equal(policy.logprobs(batch).logprobs, got.logprobs)


def test_reference_is_the_base_bit_for_bit_and_training_leaves_it_alone(make_policy, make_batch):
    policy, batch = make_policy(), make_batch()
    torch.manual_seed(7)
    base = make_policy().model.unload()  # the same weights without adapter layers
    hidden, layout = Trunk(base)(batch)
    expected = token_logprobs(hidden, base.get_output_embeddings().weight, layout.target)[0]

    def reference() -> torch.Tensor:
        return policy.logprobs(batch, reference=True).logprobs

    def checksum() -> str:
        state = policy.model.get_base_model().state_dict()
        return hashlib.sha256(
            b"".join(v.numpy().tobytes() for n, v in state.items() if "lora_" not in n)
        ).hexdigest()

    assert torch.equal(reference()[batch.loss_mask], expected)
    before, sum_before, old = reference(), checksum(), policy.logprobs(batch).logprobs.detach()
    assert not torch.allclose(before, old)
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=1e-2)
    for _ in range(3):
        weighted_sum(policy.logprobs(batch).logprobs).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.allclose(policy.logprobs(batch).logprobs, old)
    assert torch.equal(reference(), before)
    assert checksum() == sum_before
    assert not reference().requires_grad


def test_hidden_states_predict_the_tokens_and_have_second_derivatives(make_policy, make_batch):
    policy, batch = make_policy(), make_batch(lengths=(3, 1, 4), prompt_lengths=(3, 2))
    parameters = policy.trainable_parameters()
    hidden = policy.hidden_states(batch)
    full = torch.log_softmax(hidden @ policy.head_weight().t(), dim=-1)
    logprobs = full.gather(2, batch.completion_ids[..., None])[..., 0] * batch.loss_mask
    torch.testing.assert_close(logprobs, policy.logprobs(batch).logprobs, rtol=0, atol=1e-5)
    assert torch.count_nonzero(hidden[~batch.loss_mask]) == 0

    policy.model.double()
    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in parameters]

    def gradient() -> list[torch.Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            loss = policy.hidden_states(batch).square().sum()
            return list(torch.autograd.grad(loss, parameters, create_graph=True))

    product = torch.autograd.grad(gradient(), parameters, grad_outputs=direction)
    step = 1e-3  # transformers computes norms in float32 whatever the type: a smaller step measures rounding
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * step)
        ends.append(gradient())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=sign * step)
    numeric = [(a - b).detach() / (2 * step) for a, b in zip(*ends, strict=True)]
    assert_gradients_close(list(product), numeric, 1e-3)


def test_dropout_acts_in_training_only(make_policy, make_batch):
    policy, batch = make_policy(lora=LoraSection(rank=4, dropout=0.5)), make_batch()
    with torch.no_grad():
        assert torch.equal(policy.logprobs(batch).logprobs, policy.logprobs(batch).logprobs)
    assert not torch.equal(policy.logprobs(batch).logprobs, policy.logprobs(batch).logprobs)
    assert not policy.model.training


def test_adapter_round_trips(make_policy, make_batch, tmp_path: Path):
    policy, batch = make_policy(), make_batch()
    expected = policy.logprobs(batch).logprobs.detach()
    saved = policy.adapter()
    policy.save_adapter(tmp_path / "a" / "adapter")
    policy.save_adapter(tmp_path / "a" / "adapter")  # replacing is fine
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["adapter"]
    assert json.loads((tmp_path / "a" / "adapter" / "adapter_config.json").read_text())["r"] == 4
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.zero_()
    assert all(t.abs().sum() > 0 for t in saved.tensors.values())  # a copy, not a view
    policy.load_adapter(saved)
    assert torch.equal(policy.logprobs(batch).logprobs, expected)
    # peft itself reads the folder, and computes the same
    fresh = make_policy().model.unload()
    theirs = PeftModel.from_pretrained(fresh, tmp_path / "a" / "adapter")
    ids = torch.cat([batch.prompts[0], batch.completion_ids[0, :5]])[None]
    torch.testing.assert_close(theirs(ids).logits, policy.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_what_peft_says_it_is(make_policy):
    """Also after the weights have moved, or lie in other tensors; and it does not move with them."""
    policy = make_policy()
    before = policy.adapter()
    kept = {name: tensor.clone() for name, tensor in before.tensors.items()}
    policy.model.double()
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.5)
    now, expected = policy.adapter(), adapter_of(policy.model)
    assert now.config == expected.config
    assert list(now.tensors) == list(expected.tensors)
    for name, tensor in now.tensors.items():
        assert tensor.dtype == torch.float64
        assert torch.equal(tensor, expected.tensors[name])
        assert torch.equal(before.tensors[name], kept[name])
        assert not torch.equal(tensor, kept[name].double())


def test_an_adapter_that_does_not_fit_is_refused(make_policy):
    policy = make_policy()
    with pytest.raises(UserError, match=r"lora\.rank"):
        policy.load_adapter(make_policy(lora=LoraSection(rank=2)).adapter())
    with pytest.raises(UserError, match=r"lora\.targets"):
        policy.load_adapter(make_policy(lora=LoraSection(rank=4, targets="q_proj")).adapter())


def test_masters_are_float32_over_a_bfloat16_base_and_depend_on_the_seed_alone(make_policy, make_batch):
    made = []
    for seed in (0, 0, 1):
        base = make_policy().model.unload().bfloat16()
        made.append(Policy(add_adapter(base, LoraSection(rank=4), seed), TOKENIZER, Config().update))
    first, second, third = (torch.cat([p.flatten() for p in x.trainable_parameters()]) for x in made)
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    exact = make_policy()
    exact.load_adapter(made[0].adapter())
    gap = made[0].logprobs(make_batch()).logprobs - exact.logprobs(make_batch()).logprobs
    assert 0 < gap.abs().max() < 0.5  # rounding of a bfloat16 forward, logits up to some tens


def test_architectures_without_packed_forward_say_why(caplog, make_policy):
    make_policy("mistral")
    assert "'mistral' has no packed forward" in caplog.text
    assert why_not_packed(Qwen2Config(**SHAPE)) == ""
    windows = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    assert "sliding" in why_not_packed(windows)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert "dynamic" in why_not_packed(Qwen2Config(**SHAPE, rope_parameters=rope))


def test_capped_logits_are_refused():
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=1e-2))
    model = add_adapter(base.requires_grad_(False), LoraSection(rank=2), 0)
    with pytest.raises(UserError, match="gemma2"):
        Policy(model, TOKENIZER, Config().update)


@pytest.mark.parametrize(
    ("path", "settings", "words"),
    [
        ("", {}, "model.path is empty"),
        ("./not-there", {}, "no folder"),
        ("{empty}", {}, "no causal LM"),
        ("{model}", {}, "no tokenizer"),
        ("{whole}", {"lora": {"targets": "attention"}}, "'attention', which fits no linear layer: .*q_proj"),
        ("{whole}", {"lora": {"targets": "q_proj,v_porj"}}, "'v_porj', which fits no .* mean 'v_proj'"),
        ("{whole}", {"lora": {"targets": "all-linear,q_proj"}}, "'all-linear', which fits no linear layer"),
        ("{whole}", {"lora": {"targets": "q_proj,lm_head"}}, "'lm_head'.*stay frozen"),
        ("{whole}", {"lora": {"targets": " , "}}, "lora.targets is empty"),
        ("{large}", {}, "tokenizer of .* has 99 tokens but the model embeds 61"),
        pytest.param(
            "{model}", {"run": {"device": "cuda"}}, "no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_is_one_sentence(make_policy, tmp_path, path, settings, words):
    folders = {name: tmp_path / name for name in ("empty", "model", "whole", "large")}
    folders["empty"].mkdir()
    for name, size in (("model", 0), ("whole", 50), ("large", 99)):
        make_policy().model.unload().save_pretrained(folders[name])
        if size:
            save_tokenizer(folders[name], size)
    with pytest.raises(UserError, match=words) as caught:
        Policy.from_pretrained(path.format(**folders), Config(**settings))
    assert "\n" not in str(caught.value)


def save_tokenizer(folder: Path, size: int) -> None:
    words = Tokenizer(WordLevel({str(n): n for n in range(size)}, unk_token="0"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="1", unk_token="0", pad_token="2"
    ).save_pretrained(folder)


def test_from_pretrained_reads_a_folder(make_policy, make_batch, tmp_path):
    made = make_policy()
    save_tokenizer(tmp_path, 50)
    made.model.unload().save_pretrained(tmp_path)
    policy = Policy.from_pretrained(tmp_path, Config(rollout={"temperature": 0.5}))
    assert (policy.eos_id, policy.pad_id, policy.temperature, policy.version) == (1, 2, 0.5, 0)
    batch = make_batch()
    expected = make_policy().logprobs(batch, reference=True, temperature=0.5).logprobs
    assert torch.equal(policy.logprobs(batch, reference=True).logprobs, expected)
    assert torch.equal(policy.logprobs(batch).logprobs, expected)  # B of a fresh adapter is zero
