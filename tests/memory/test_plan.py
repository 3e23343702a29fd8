"""The memory plan: its formulas against real models and real autograd graphs, and its picks."""

import math

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mathrl.cli import main
from mathrl.config import Config, LoraSection, UpdateConfig
from mathrl.errors import UserError
from mathrl.memory.plan import GIB, KV_BLOCK, asked_at_once, engine_limits, kv_tokens, make_plan, replicas_of
from mathrl.memory.shapes import KNOWN_SHAPES, Shape, load_shape
from mathrl.policy import trunk
from mathrl.policy.attention import IMPLEMENTATION
from mathrl.policy.loading import add_adapter
from mathrl.policy.model import Policy
from mathrl.types import Batch

SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def recipe(**sections) -> Config:
    rollout = {
        "problems_per_step": 64, "group_size": 8, "max_prompt_tokens": 128, "max_completion_tokens": 256
    } | sections.pop("rollout", {})  # fmt: skip
    base = {"model": {"path": "Qwen/Qwen2.5-0.5B-Instruct"}, "lora": {"rank": 32, "alpha": 64.0}}
    return Config.model_validate(base | sections | {"rollout": rollout})


class Tokens:
    pad_token_id, eos_token_id = 0, 1


def test_the_cache_has_room_for_a_problem_with_fewer_completions():
    """Nine completions in groups of eight are of two problems: two prompts, and nine completions."""
    assert kv_tokens(recipe(), 9) == 2 * 128 + 9 * (256 + KV_BLOCK)
    assert kv_tokens(recipe(), 8) == 128 + 8 * (256 + KV_BLOCK)


def test_a_minibatch_is_a_part_of_the_step_rounded_up():
    """Three problems in two minibatches: two of them in the larger, each of 128 + 8 · 256 tokens."""
    update = {"num_minibatches": 2, "micro_batch_tokens": 10**6}
    config = recipe(rollout={"problems_per_step": 3}, update=update)
    rows = make_plan(config, KNOWN_SHAPES["qwen2.5-0.5b"], 80 * GIB).rows
    assert f"trainer: activations of {2 * (128 + 8 * 256)} tokens" in rows


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_parameters_are_counted_exactly(kind, tied):
    make_config, make_model = MODELS[kind]
    model = make_model(make_config(**SIZES, tie_word_embeddings=tied, head_dim=16))
    shape = Shape.of(model.config)
    norms = 2 * 16 * SIZES["num_hidden_layers"] if kind == "qwen3" else 0  # of queries and keys
    assert shape.num_parameters + norms == sum(p.numel() for p in model.parameters())
    policy = Policy(add_adapter(model, LoraSection(rank=4), 0), Tokens(), UpdateConfig())
    adapter = sum(p.numel() for p in policy.trainable_parameters())
    assert shape.adapter_parameters(4, "all-linear") == adapter


def test_known_shapes_have_the_published_sizes():
    published = {"qwen2.5-0.5b": 494.0, "qwen2.5-1.5b": 1543.7, "qwen2.5-3b": 3085.9, "qwen2.5-7b": 7615.6}
    for name in KNOWN_SHAPES:
        shape = load_shape(recipe(model={"path": f"Qwen/{name}"}))
        assert shape.num_parameters / 1e6 == pytest.approx(published[name], abs=0.05)


def kept_bytes(dtype: torch.dtype, hidden: int, mlp: int, layers: int) -> tuple[float, Shape]:
    """Bytes a stream token that autograd keeps for the backward of a real forward, parameters left out."""
    sizes = SIZES | {"hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, head_dim=16, tie_word_embeddings=True)).to(dtype)
    model.config._attn_implementation = IMPLEMENTATION
    policy = Policy(
        add_adapter(model.requires_grad_(False), LoraSection(rank=4), 0), Tokens(), UpdateConfig()
    )
    rows, length, prompt = 8, 65, 32
    batch = Batch(
        prompts=(torch.randint(2, 300, (prompt,)),),
        group_ids=torch.zeros(rows, dtype=torch.long),
        completion_ids=torch.randint(2, 300, (rows, length)),
        loss_mask=torch.ones(rows, length, dtype=torch.bool),
        rewards=torch.zeros(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )
    parameters = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    held: list[torch.Tensor] = []  # alive, so that no two storages share an address
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy.logprobs(batch)
    return sum(kept.values()) / (prompt + rows * (length - 1)), Shape.of(model.config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_activations_grow_with_the_sizes_as_autograd_keeps_them(monkeypatch, dtype):
    """Slopes in F, D and L; the attention's own tensors are the device's business and cancel in F and D.

    Of the layers as a GPU runs them: those that a CPU computes in blocks keep less.
    """
    monkeypatch.setattr(trunk, "short_cuts_of", lambda base: None)

    def predicted(shape: Shape) -> float:
        return shape.activation_bytes(dtype.itemsize, rank=4, keys=1.0, compiled=False, checkpointing=False)

    base, base_shape = kept_bytes(dtype, 64, 96, 2)
    for hidden, mlp in ((64, 352), (320, 96)):
        more, shape = kept_bytes(dtype, hidden, mlp, 2)
        assert more - base == pytest.approx(predicted(shape) - predicted(base_shape), rel=0.05)
    deep, deep_shape = kept_bytes(dtype, 256, 512, 3)
    flat, flat_shape = kept_bytes(dtype, 256, 512, 2)
    assert deep - flat == pytest.approx(predicted(deep_shape) - predicted(flat_shape), rel=0.10)


def test_checkpointing_keeps_a_layers_input_only():
    shape = load_shape(recipe())
    how = {"rank": 32, "keys": 1.0, "compiled": False}
    assert shape.activation_bytes(2, **how, checkpointing=True) == 2 * 896 * 24
    assert shape.activation_bytes(2, **how, checkpointing=False) > 20 * 2 * 896 * 24


def test_kv_cache_holds_every_completion_at_its_longest():
    """Prompt 100 fills 7 blocks of 16, once for its group; each completion 2 blocks and the partial one."""
    config = recipe(rollout={"group_size": 4, "max_prompt_tokens": 100, "max_completion_tokens": 20})
    assert kv_tokens(config, 8) == 2 * 7 * KV_BLOCK + 8 * (2 + 1) * KV_BLOCK
    assert load_shape(config).kv_bytes(2) == 2 * 24 * 2 * 64 * 2


def test_rows_add_up_and_follow_the_knobs():
    config, shape = recipe(), load_shape(recipe())
    plan = make_plan(config, shape, 80 * GIB)
    assert plan.total == sum(plan.rows.values())
    assert plan.rows["trainer: weights"] == 2 * shape.num_parameters
    adapter = shape.adapter_parameters(32, "all-linear")
    assert plan.rows["trainer: adapter, gradient, AdamW"] == 16 * adapter
    assert plan.engine_bytes == sum(size for name, size in plan.rows.items() if name.startswith("engine"))
    embedded = make_plan(recipe(rollout={"engine": "transformers"}), shape, 80 * GIB)
    assert "engine: weights" not in embedded.rows
    less = make_plan(recipe(update={"gradient_checkpointing": True}), shape, 80 * GIB)
    assert less.total < plan.total


@pytest.mark.parametrize("gib", [8, 16, 24, 48, 80])
def test_the_picked_micro_batch_fits_and_the_next_does_not(gib):
    shape = load_shape(recipe())
    pick = make_plan(recipe(), shape, gib * GIB).micro_batch_tokens
    assert pick % 1024 == 0

    def plan_with(tokens: int):
        return make_plan(recipe(update={"micro_batch_tokens": tokens}), shape, gib * GIB)

    if pick:
        assert plan_with(pick).fits
    if pick < 65536:
        assert not plan_with(pick + 1024).fits


def test_a_short_step_is_one_micro_batch():
    config = recipe(rollout={"problems_per_step": 2, "group_size": 4, "max_prompt_tokens": 100})
    assert make_plan(config, load_shape(config), 80 * GIB).micro_batch_tokens == 2 * (100 + 4 * 256)


def test_engine_limits():
    shape = load_shape(recipe())
    plan = make_plan(recipe(), shape, 80 * GIB)
    limits = engine_limits(recipe(), shape, 80 * GIB, itemsize=2, context=32768)
    assert (limits.max_model_len, limits.max_num_seqs, limits.lora_rank) == (384, 512, 32)
    assert limits.kv_cache_bytes == plan.kv_cache_wanted == kv_tokens(recipe(), 512) * shape.kv_bytes(2)
    assert limits.memory_fraction == pytest.approx(plan.engine_bytes / (80 * GIB))
    longer = recipe(evaluate={"max_completion_tokens": 500})
    assert engine_limits(longer, shape, 80 * GIB, itemsize=2, context=32768).max_model_len == 628
    assert engine_limits(longer, shape, 80 * GIB, itemsize=2, context=512).max_model_len == 512
    merged = recipe(rollout={"merge_adapter": True})
    assert engine_limits(merged, shape, 80 * GIB, itemsize=2, context=512).lora_rank == 0
    own = engine_limits(
        recipe(rollout={"gpu_memory_fraction": 0.3}), shape, 80 * GIB, itemsize=2, context=512
    )
    assert (own.kv_cache_bytes, own.memory_fraction) == (0, 0.3)
    assert limits.batched_tokens == own.batched_tokens == 16_384
    assert plan.rows["engine: activations"] == 16_384 * 2 * 2 * (4864 + 896)
    large = KNOWN_SHAPES["qwen2.5-7b"]
    assert engine_limits(recipe(), large, 80 * GIB, itemsize=2, context=512).batched_tokens == 8192
    with pytest.raises(UserError, match="no room for vLLM's cache"):
        engine_limits(recipe(), shape, 4 * GIB, itemsize=2, context=512)


def test_replicas_share_the_cache_and_have_a_copy_of_the_rest_each():
    shape = load_shape(recipe())
    three = recipe(rollout={"num_replicas": 3})
    one, plan = make_plan(recipe(), shape, 80 * GIB), make_plan(three, shape, 80 * GIB)
    same = {"engine: logits", "engine: KV cache"}
    engine = [row for row in plan.rows if row.startswith("engine")]
    assert {row for row in engine if plan.rows[row] == one.rows[row]} == same
    assert all(plan.rows[row] == 3 * one.rows[row] for row in engine if row not in same)
    limits = engine_limits(three, shape, 80 * GIB, itemsize=2, context=32768)
    assert limits.max_num_seqs == 22 * 8  # 64 problems: one replica has 22
    assert limits.kv_cache_bytes == plan.kv_cache_bytes // 3
    assert limits.memory_fraction == pytest.approx(plan.engine_bytes / 3 / (80 * GIB))


def test_small_models_get_replicas_where_the_recipe_names_no_number():
    large = KNOWN_SHAPES["qwen2.5-0.5b"]
    small = Shape(4096, 512, 12, 8, 4, 1408, True, True, 64)
    between = Shape(49152, 576, 30, 9, 3, 1536, True, True, 64)
    many = recipe(rollout={"problems_per_step": 64, "group_size": 16})
    assert [replicas_of(many, shape) for shape in (large, between, small)] == [1, 1, 2]
    few = recipe(rollout={"problems_per_step": 8, "group_size": 8})
    assert [replicas_of(few, shape) for shape in (large, between, small)] == [1, 1, 1]
    told = recipe(rollout={"num_replicas": 3})
    assert [replicas_of(told, shape) for shape in (large, between, small)] == [3, 3, 3]
    assert make_plan(many, small, 80 * GIB).rows["engine: weights"] == 2 * small.num_parameters * 2


def test_an_evaluation_asks_as_many_at_once_as_memory_holds():
    shape = KNOWN_SHAPES["qwen2.5-0.5b"]
    step = recipe(rollout={"problems_per_step": 2, "group_size": 8, "max_completion_tokens": 2048})

    def at_once(completions: int, gib: float, config=step) -> int:
        found = asked_at_once(config, completions, shape, int(gib * GIB), itemsize=2)
        return engine_limits(found, shape, int(gib * GIB), itemsize=2, context=32768).max_num_seqs

    assert at_once(13_500, 80) == 1024
    assert at_once(100, 80) == 100
    assert at_once(3, 80) == 16  # never fewer than the step
    assert [at_once(13_500, gib) for gib in (40, 24, 12, 8)] == [1024, 512, 256, 128]
    large = recipe(rollout={"problems_per_step": 128, "group_size": 16, "max_completion_tokens": 2048})
    assert asked_at_once(large, 13_500, shape, 80 * GIB, itemsize=2) is large


def test_a_small_cache_shares_the_room_with_the_update():
    big = recipe(rollout={"problems_per_step": 128, "group_size": 16, "max_completion_tokens": 8192})
    plan = make_plan(big, load_shape(big), 24 * GIB)
    assert 0 < plan.kv_cache_bytes < plan.kv_cache_wanted
    assert plan.num_sequences == 1024


def test_the_command(capsys, tmp_path):
    assert main(["plan", "quickstart", "--gpu-memory-gib", "8"]) == 0
    out = capsys.readouterr().out
    assert "predicted peak" in out
    assert "largest micro-batch: --update.micro_batch_tokens" in out
    rows = [float(line.split()[-2]) for line in out.splitlines() if line.endswith("GiB") and ":" in line]
    peak = next(line for line in out.splitlines() if line.startswith("predicted peak"))
    assert math.isclose(sum(rows), float(peak.split()[2]), abs_tol=0.05)
    large = ["--rollout.max_completion_tokens", "4096", "--update.micro_batch_tokens", "1000000"]
    assert main(["plan", "quickstart", "--gpu-memory-gib", "2", *large]) == 1
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--algorithm.name", "grpoo"], "algorithm.name: no algorithm 'grpoo'; did you mean 'grpo'"),
        (["--reward.functions", "no_such_module:f=0.2"], "reward.functions: 'no_such_module:f' cannot be"),
        (
            ["--data.path", "none.jsonl", "--data.answer_type", "numbr"],
            "data.answer_type: unknown answer type",
        ),
        (
            ["--data.path", "none.jsonl", "--data.extract", "boxd"],
            "data.extract: unknown extraction rule 'boxd'",
        ),
        (["--data.extract", "boxd"], "data.extract: unknown extraction rule 'boxd'; did you mean 'boxed'"),
        (["--data.source", "gsm9k"], "unknown data set 'gsm9k': did you mean 'gsm8k'"),
        (["--model.path", "./nowhere"], "there is no model folder ./nowhere"),
    ],
)
def test_a_name_that_is_nowhere_is_refused_without_a_table(words, told, capsys):
    model = [] if "--model.path" in words else ["--model.path", "Qwen/Qwen2.5-0.5B"]
    assert main(["plan", "default", "--gpu-memory-gib", "24", *model, *words]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert "GiB" not in out


def test_problems_are_not_read_for_the_table(capsys, tmp_path):
    missing = ["--data.path", str(tmp_path / "none.jsonl"), "--data.answer_type", "number"]
    words = ["plan", "default", "--model.path", "Qwen/Qwen2.5-0.5B", "--gpu-memory-gib", "24", *missing]
    assert main(words) == 0
    assert "predicted peak" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="says how large the device here is")
def test_the_command_needs_a_size_or_a_device(capsys):
    assert main(["plan", "quickstart"]) == 2
    assert "--gpu-memory-gib" in capsys.readouterr().err
    assert main(["plan", "quickstart", "--gpu-memory-gib", "-1"]) == 2
