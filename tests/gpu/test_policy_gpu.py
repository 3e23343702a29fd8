"""The training forward on CUDA: FlashAttention over packed segments, fused LoRA, compiled layers, memory."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from mathrl.algorithms.table import resolve_algorithm
from mathrl.config import Config, LoraSection, UpdateConfig
from mathrl.policy.attention import IMPLEMENTATION
from mathrl.policy.loading import add_adapter
from mathrl.policy.model import Policy
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.training.sft_loss import Example, SftLoss
from mathrl.types import Batch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

VOCABULARY = 1000
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
CONFIGS = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig}
LENGTHS = (50, 1, 90, 40, 120, 30, 7, 70, 80, 33, 64, 65)
PROMPTS = (60, 30, 110)


def make_policy(architecture: str = "qwen2", dtype: torch.dtype = torch.bfloat16, **update) -> Policy:
    torch.manual_seed(7)
    settings = SHAPE | ({"head_dim": 64} if architecture == "qwen3" else {})
    base = AutoModelForCausalLM.from_config(
        CONFIGS[architecture](**settings), attn_implementation=IMPLEMENTATION
    )
    base.requires_grad_(False)
    for parameter in base.parameters():
        if parameter.dim() == 2:
            parameter.mul_(3)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = add_adapter(base.to("cuda", dtype), LoraSection(rank=8, alpha=16), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape).to("cuda")
        assert "lora_" not in name or parameter.dtype == torch.float32
    return Policy(model, SimpleNamespace(pad_token_id=0, eos_token_id=1), UpdateConfig(**update))


def make_batch(lengths=LENGTHS, prompts=PROMPTS, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return Batch(
        prompts=tuple(torch.randint(2, VOCABULARY, (n,), generator=generator) for n in prompts),
        group_ids=torch.arange(rows) * len(prompts) // rows,
        completion_ids=torch.randint(2, VOCABULARY, (rows, width), generator=generator),
        loss_mask=mask,
        rewards=torch.zeros(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
    ).to("cuda")


def results(policy: Policy, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    logprobs = policy.logprobs(batch, entropy=True).logprobs
    weights = torch.linspace(-1, 2, logprobs.numel(), device="cuda").view(logprobs.shape)
    return logprobs.detach(), list(
        torch.autograd.grad((logprobs * weights).sum(), policy.trainable_parameters())
    )


def distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("update", [{}, {"share_prompts": False}, {"compile": True}])
def test_bfloat16_paths_are_the_float32_computation_up_to_rounding(architecture: str, update: dict):
    """What rounding alone does is measured beside it: plain peft layers and padded attention in bfloat16."""
    batch = make_batch()
    exact, exact_gradients = results(make_policy(architecture, torch.float32), batch)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        rounded, rounded_gradients = results(make_policy(architecture, fused_lora=False), batch)
    got, gradients = results(make_policy(architecture, **update), batch)
    assert distance(got, exact) < 2 * distance(rounded, exact) < 0.1
    for g, r, e in zip(gradients, rounded_gradients, exact_gradients, strict=True):
        assert distance(g, e) < max(2 * distance(r, e), 0.01)


@pytest.mark.parametrize("compile", [False, True])
def test_changing_one_completion_leaves_the_others_bit_equal(compile: bool):
    policy, batch = make_policy(compile=compile), make_batch()
    before = policy.logprobs(batch).logprobs
    ids = batch.completion_ids.clone()
    ids[2, :9] = (ids[2, :9] + 5) % 900 + 2
    after = policy.logprobs(batch.add(completion_ids=ids)).logprobs
    others = torch.arange(len(ids)) != 2
    assert torch.equal(after[others], before[others])
    assert not torch.equal(after[2], before[2])


def test_other_lengths_do_not_compile_again():
    policy = make_policy(compile=True)
    torch._dynamo.utils.counters.clear()
    for seed, (lengths, prompts) in enumerate(
        [(LENGTHS, PROMPTS), ((20, 30, 90), (90, 20)), ((200, 7, 80, 40, 50, 100), (33, 77)), ((9, 9), (40,))]
    ):
        batch = make_batch(lengths, prompts, seed)
        policy.logprobs(batch).logprobs.sum().backward()
        with torch.no_grad():
            policy.logprobs(batch, reference=True)
        if seed == 1:
            compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compiled
    assert not torch._dynamo.utils.counters["graph_break"]


def test_full_logits_never_exist():
    policy = make_policy()
    policy.model.get_base_model().lm_head = head = torch.nn.Linear(256, 400_000, bias=False).to(
        "cuda", torch.bfloat16
    )
    head.requires_grad_(False)
    batch = make_batch((500,) * 16, (20, 20))
    torch.cuda.reset_peak_memory_stats()
    start = torch.cuda.memory_allocated()
    policy.logprobs(batch, entropy=True).logprobs.sum().backward()
    full = 16 * 500 * 400_000 * 4
    assert torch.cuda.max_memory_allocated() - start < full  # chunks: scores, their exponentials, a copy


def test_an_update_that_runs_out_of_memory_is_halved_with_the_same_result():
    policy = make_policy()
    config = Config.model_validate({"update": {"micro_batch_tokens": 60_000}})
    batch = make_batch((300,) * 96, (64,) * 12)
    batch = annotate(policy, batch, MicroBatches(60_000), reference=True)
    batch = batch.add(advantages=torch.randn(96, 1, device="cuda") * batch.loss_mask)

    def update() -> tuple[float, list[torch.Tensor], int]:
        loss = PolicyLoss(
            config, resolve_algorithm(config.algorithm, config.rollout, config.update), correct=False
        )
        for parameter in policy.trainable_parameters():
            parameter.grad = None
        total = float(loss.backward(policy, batch, Meter()))
        return total, [p.grad.clone() for p in policy.trainable_parameters()], loss.micro_batches.max_tokens

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    loss, gradients, tokens = update()
    assert tokens == 60_000
    room = (
        torch.cuda.memory_allocated()
        + (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) // 2
    )
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
    try:
        again, regained, tokens = update()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert tokens < 60_000
    assert again == pytest.approx(loss, abs=1e-5)
    for g, r in zip(gradients, regained, strict=True):
        assert distance(r, g) < 1e-2  # sums of bfloat16 products in another order


def test_compiled_supervised_training_is_the_eager_one_up_to_rounding():
    """In bfloat16: compiled gradients are as near to float32's as eager ones."""
    generator = torch.Generator().manual_seed(3)
    draw = partial(torch.randint, 2, VOCABULARY, generator=generator)
    examples = [
        Example(tuple(draw((20 + n,)).tolist()), tuple(draw((30 + 7 * n,)).tolist())) for n in range(6)
    ]
    found = []
    for dtype, compiled in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        model = make_policy(dtype=dtype, fused_lora=False).model.get_base_model()  # fused: frozen bases
        weights = [w for n, w in model.named_parameters() if "lora_" not in n and w.dim() == 2]
        for weight in weights:
            weight.requires_grad_(True)
        loss = SftLoss(model, 0.3, compile_layers=compiled)(examples)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        found.append((loss, [g for g in gradients if g is not None]))
    (exact, exact_gradients), (eager, eager_gradients), (got, got_gradients) = found
    assert abs(float(got - exact)) < max(2 * abs(float(eager - exact)), 0.01)
    assert len(got_gradients) == len(exact_gradients) > 15
    for g, r, e in zip(got_gradients, eager_gradients, exact_gradients, strict=True):
        assert distance(g, e) < max(2 * distance(r, e), 0.01)
