"""What a recipe takes of a GPU's memory, before anything is loaded.

The table's rows are formulas over the model's sizes, named where they stand. What no formula gives (CUDA
contexts, captured graphs, the allocator's rounding) is a measured constant; benchmarks/ has the error of the
whole against measured peaks. The picks are the largest micro-batch and the cache for all completions of a
step at once, where both fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.memory.compiling import compiling, problem_tokens
from mathrl.memory.shapes import Shape

GIB = 1 << 30
MAX_SEQUENCES = 1024  # sampled at once; beyond, a decode step is bound by the cache's bandwidth anyway
MAX_MICRO_BATCH = 65536  # tokens; the matrix products gain nothing from more
KV_BLOCK = 16  # tokens of a cache block on CUDA
BATCHED_TOKENS = 8192  # tokens of one engine step at least
BATCHED_BYTES = GIB  # of its activations, up to which it takes twice as many: prompts then share fewer steps
LOGITS_CHUNK = 1 << 29  # elements of the logits that exist at once (policy/logprobs.py)

TRAINER_CONTEXT = int(0.6 * GIB)  # CUDA context, cuBLAS workspaces
ENGINE_CONTEXT = int(1.2 * GIB)  # the same in the engine's process, with its captured graphs
ALLOCATOR_SLACK = 0.06  # of the trainer's tensors: blocks that are reserved and not in use
HEADROOM = 0.03  # of the device: left free


@dataclass(frozen=True, slots=True)
class Limits:
    """What the sampling engine makes room for."""

    max_model_len: int  # tokens of a prompt and its completion
    max_num_seqs: int  # completions sampled at once
    lora_rank: int  # 0: serve merged weights
    kv_cache_bytes: int = 0  # 0: what ``memory_fraction`` leaves
    memory_fraction: float = 0.9  # of the device's memory, all of the engine included
    batched_tokens: int = BATCHED_TOKENS  # of one step


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Predicted bytes by row, and the picks."""

    rows: dict[str, int]
    device_bytes: int
    micro_batch_tokens: int
    num_sequences: int
    kv_cache_bytes: int
    kv_cache_wanted: int  # for all of a step's completions at once
    engine_bytes: int

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    @property
    def fits(self) -> bool:
        return self.total <= (1 - HEADROOM) * self.device_bytes


def kv_tokens(config: Config, sequences: int) -> int:
    """Cache tokens of that many completions at once; a problem's completions share its prompt's blocks."""
    rollout = config.rollout
    problems = math.ceil(sequences / rollout.group_size)
    own = _blocks(longest_completion(config)) + KV_BLOCK  # the prompt's last, partial block is everyone's own
    return problems * _blocks(rollout.max_prompt_tokens) + sequences * own


def longest_completion(config: Config) -> int:
    return max(config.rollout.max_completion_tokens, config.evaluate.max_completion_tokens)


def make_plan(
    config: Config, shape: Shape, device_bytes: int, *, itemsize: int = 2, compiled: bool | None = None
) -> MemoryPlan:
    """Predict the memory of training and sampling on one device, and choose the budgets.

    Args:
        config: the recipe.
        shape: of its model.
        device_bytes: memory of the device.
        itemsize: bytes of a weight.
        compiled: whether the trainer compiles its layers; None: as a run on CUDA decides at its first step.
    """
    update = config.update
    if compiled is None:
        compiled = compiling(config, shape).on
    adapter = shape.adapter_parameters(config.lora.rank, config.lora.targets)
    value = adapter * config.algorithm.value_rank / config.lora.rank if config.algorithm.name == "ppo" else 0
    weights = shape.num_parameters * itemsize
    fixed = {
        "trainer: weights": weights,
        "trainer: adapter, gradient, AdamW": int((adapter + value) * (4 + 4 + 8)),
        "trainer: CUDA context": TRAINER_CONTEXT,
    }
    sequences = _sampled_at_once(config)
    engine = _engine_rows(config, shape, sequences, adapter, itemsize)
    wanted = kv_tokens(config, sequences) * shape.kv_bytes(itemsize)
    tokens = _step_tokens(config)
    gathered = _gathered_keys(config)
    activation = shape.activation_bytes(
        itemsize,
        rank=config.lora.rank,
        keys=gathered,
        compiled=compiled,
        checkpointing=update.gradient_checkpointing,
    )
    room = (1 - HEADROOM) * device_bytes - sum(fixed.values()) - sum(engine.values())
    # the cache gets what it wants up to half of the room: with less, sampling only takes longer
    cache = int(max(0, min(wanted, room / 2)))
    pick = _largest_micro_batch(shape, activation, room - cache, tokens, itemsize)
    chosen = min(update.micro_batch_tokens or pick, tokens)
    work = int(chosen * activation)
    transient = int(_transient(shape, chosen, itemsize))
    trainer_tensors = sum(fixed.values()) - TRAINER_CONTEXT + work + transient
    engine_bytes = sum(engine.values()) + cache
    rows = fixed | {
        f"trainer: activations of {chosen} tokens": work,
        "trainer: logits or a layer's gradients": transient,
        "trainer: allocator slack": int(ALLOCATOR_SLACK * trainer_tensors),
        **engine,
        "engine: KV cache": cache,
    }
    return MemoryPlan(rows, device_bytes, pick, sequences, cache, wanted, engine_bytes)


def _sampled_at_once(config: Config) -> int:
    """Completions that the engine holds at the same time, over all replicas."""
    step = config.rollout.problems_per_step * config.rollout.group_size
    return step if config.rollout.engine == "transformers" else min(MAX_SEQUENCES, step)


def _engine_rows(config: Config, shape: Shape, sequences: int, adapter: int, itemsize: int) -> dict[str, int]:
    """Bytes of sampling without its cache; an engine in the trainer's process shares the weights there."""
    rollout = config.rollout
    logits = {"engine: logits": 3 * 4 * sequences * shape.vocab_size}
    if rollout.engine == "transformers":
        return logits
    replicas = replicas_of(config, shape)
    working = batched_tokens(shape, itemsize) * _token_bytes(shape, itemsize)
    return {
        "engine: weights": replicas * shape.num_parameters * itemsize,
        "engine: adapter slot": 0 if rollout.merge_adapter else replicas * adapter * itemsize,
        "engine: activations": replicas * working,
        **logits,
        "engine: CUDA context and graphs": replicas * ENGINE_CONTEXT,
    }


def batched_tokens(shape: Shape, itemsize: int) -> int:
    """Tokens that the engine computes in one step, prompts and completions."""
    most = 2 * BATCHED_TOKENS
    return most if most * _token_bytes(shape, itemsize) <= BATCHED_BYTES else BATCHED_TOKENS


def _token_bytes(shape: Shape, itemsize: int) -> int:
    """Of a token's activations in the engine, which keeps none for a backward."""
    return 2 * itemsize * (shape.intermediate_size + shape.hidden_size)


def of_one_rank(config: Config, num_ranks: int) -> Config:
    """The recipe as one of several ranks sees it: its share of a step's problems, and all else."""
    problems = math.ceil(config.rollout.problems_per_step / num_ranks)
    rollout = config.rollout.model_copy(update={"problems_per_step": problems})
    return config.model_copy(update={"rollout": rollout})


def replicas_of(config: Config, shape: Shape) -> int:
    """vLLM cores of one device: as many as the recipe says, or (0) as the model is small for.

    Chosen when a core's Python took 4 ms a decoding step and 2 µs more for each completion, about what the
    GPU needs for 1,024 completions of a model of 135 M parameters: only under smaller ones a second core
    found a GPU with time to spare. Since then that Python is 1 to 2 ms (benchmarks/results/core_time.md), and
    whether two still gain has not been measured.
    """
    rollout = config.rollout
    if rollout.num_replicas:
        return rollout.num_replicas
    completions = rollout.problems_per_step * rollout.group_size
    return 2 if shape.num_parameters < 80e6 and completions >= 512 else 1


def asked_at_once(
    config: Config, completions: int, shape: Shape, device_bytes: int, *, itemsize: int
) -> Config:
    """The recipe as an evaluation asks: as many completions at once as there are and memory holds.

    A recipe's step may be far smaller, and the engine would sample no more at once. Never fewer than it has.
    """
    rollout = config.rollout
    wanted = min(MAX_SEQUENCES, completions)
    while wanted > rollout.problems_per_step * rollout.group_size:
        # the greedy ones come first, and no two of them share a prompt
        sizes = {"problems_per_step": wanted, "group_size": 1}
        found = config.model_copy(update={"rollout": rollout.model_copy(update=sizes)})
        plan = make_plan(found, shape, device_bytes, itemsize=itemsize)  # whose update does not take place
        if 2 * plan.kv_cache_bytes >= plan.kv_cache_wanted:
            return found
        wanted //= 2
    return config


def engine_limits(config: Config, shape: Shape, device_bytes: int, *, itemsize: int, context: int) -> Limits:
    """What to start each of vLLM's replicas with.

    Raises:
        UserError: not even one completion's keys and values fit.
    """
    rollout = config.rollout
    length = min(context, rollout.max_prompt_tokens + longest_completion(config))
    rank = 0 if rollout.merge_adapter else config.lora.rank
    plan = make_plan(config, shape, device_bytes, itemsize=itemsize)
    replicas = replicas_of(config, shape)
    most = math.ceil(rollout.problems_per_step / replicas) * rollout.group_size  # of one replica
    sequences, cache = min(plan.num_sequences, most), plan.kv_cache_bytes // replicas
    batched = batched_tokens(shape, itemsize)
    if rollout.gpu_memory_fraction:
        return Limits(length, sequences, rank, 0, rollout.gpu_memory_fraction / replicas, batched)
    if cache < shape.kv_bytes(itemsize) * (length + KV_BLOCK):
        raise UserError(
            f"{device_bytes / GIB:.1f} GiB of device memory leave no room for vLLM's cache beside the "
            "trainer: take a smaller model or update.micro_batch_tokens, or rollout.engine transformers "
            "(`mathrl plan` shows what takes how much)"
        )
    return Limits(length, sequences, rank, cache, plan.engine_bytes / replicas / device_bytes, batched)


def _blocks(tokens: int) -> int:
    return math.ceil(tokens / KV_BLOCK) * KV_BLOCK


def _step_tokens(config: Config) -> int:
    """Tokens of a minibatch's packed stream when every prompt and completion is as long as allowed."""
    problems = math.ceil(config.rollout.problems_per_step / config.update.num_minibatches)
    return problems * problem_tokens(config)


def _gathered_keys(config: Config) -> float:
    """Keys gathered a token of the stream: a shared prompt's once for itself and once a completion."""
    rollout = config.rollout
    if not config.update.share_prompts:
        return 1.0
    prompt, completions = rollout.max_prompt_tokens, rollout.group_size * rollout.max_completion_tokens
    return (prompt * (1 + rollout.group_size) + completions) / (prompt + completions)


def _transient(shape: Shape, tokens: int, itemsize: int) -> float:
    """The larger of a chunk of logits (scores, their exponential and its copy) and a layer's gradients."""
    chunk = min(tokens, max(16, LOGITS_CHUNK // shape.vocab_size))
    logits = chunk * shape.vocab_size * (4 + 4 + itemsize)
    return max(logits, tokens * shape.layer_transient_bytes(itemsize))


def _largest_micro_batch(shape: Shape, activation: float, room: float, tokens: int, itemsize: int) -> int:
    """The most tokens (a multiple of 1024 unless that is the whole step) whose work fits; 0 if none does."""

    def fits(count: int) -> bool:
        return (1 + ALLOCATOR_SLACK) * (count * activation + _transient(shape, count, itemsize)) <= room

    if tokens <= MAX_MICRO_BATCH and fits(tokens):
        return tokens
    return next((n for n in range(min(tokens, MAX_MICRO_BATCH) // 1024 * 1024, 0, -1024) if fits(n)), 0)
