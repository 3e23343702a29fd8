"""Our side of step_time.py: the product's own Trainer, engine, verifiers and update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from step_workload import PARITY_PROBLEMS, Work, device_gib, reward

from mathrl.algorithms.table import resolve_algorithm
from mathrl.data.stream import ProblemStream
from mathrl.policy.model import Policy
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.engine_choice import make_engine
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.training.sentinel import Sentinel
from mathrl.training.trainer import Hooks, Trainer, short_collections
from mathrl.training.update import make_update
from mathrl.types import Batch, Problem

# arm -> prompts shared, an own pass for the old log-probabilities, importance correction of the sampler
ARMS = {
    "same work": (False, True, True),
    "on-policy": (False, False, False),
    "shared prompts": (True, False, False),
    "default": (True, False, True),
}
# arm -> trained while others are sampled, share of the step's completions that are sampled at once; these
# have prompts shared, no correction, one trainer, and a step each in turn
WAYS = {
    "in turn": (False, 1.0),
    "overlapped": (True, 1.0),
    "overlapped, 3/4 at once": (True, 0.75),
    "overlapped, 1/2 at once": (True, 0.5),
}
EQUAL = ", equal lengths"  # after the name of an arm that is measured so first (Workload.equal_first)
Emit = Callable[[str, dict[str, Any]], None]


class TokenReward(RewardScorer):
    """The product's scorer, its verdicts replaced by the reward that every trainer here uses."""

    def score(self, groups: Any) -> Any:
        scored = super().score(groups)
        return [
            replace(
                group,
                scores=tuple(
                    replace(s, reward=reward(c.token_ids))
                    for s, c in zip(group.scores, group.completions, strict=True)
                ),
            )
            for group in scored
        ]


def run(
    work: Work, arms: list[str], warmup: int, steps: int, emit: Emit, ready: Callable[[], None], until: float
) -> None:
    """One engine for all arms; each arm has a fresh policy, optimiser and trainer.

    ``ready`` is called when the engine has started, and returns when this process may measure. No step begins
    after ``until``, a ``time.time()``.
    """
    ways = [arm for arm in arms if arm in WAYS]
    if ways:
        work = replace(work, workload=replace(work.workload, overlap="on"))
    w = work.workload
    config = work.recipe()
    cuda = w.device == "cuda"
    policy = Policy.from_pretrained(str(work.model), config)
    start = time.perf_counter()
    engine, reason = make_engine(config, policy, lambda problem: work.prompts[int(problem.id)])
    equal: dict[str, int] = {}  # "tokens": of every completion, in place of the workload's lengths
    run_to_length(engine, policy, work, equal)
    emit("engine", {"engine": reason, "start_s": time.perf_counter() - start})
    if w.compiled and cuda:  # beside the start of others; what it holds stays held: none of them counts on it
        share, _, correct = ARMS.get(arms[0], ARMS["shared prompts"])
        config = work.recipe(share_prompts=share)
        policy = Policy(policy.model, policy.tokenizer, config.update, config.rollout.temperature)
        load_adapter(policy, work)
        parity(work, policy, config, correct)
        emit("engine", {"compiled_s": time.perf_counter() - start})
    ready()
    scorer = TokenReward(config.reward, "gsm8k")
    try:
        for arm in [arm for arm in arms if arm in ARMS] + ways[:1]:
            share, old, correct = ARMS.get(arm, ARMS["shared prompts"])
            config = work.recipe(share_prompts=share)
            # one model object: the embedded engine samples from it; its adapter starts anew for every arm
            policy = Policy(policy.model, policy.tokenizer, config.update, config.rollout.temperature)
            load_adapter(policy, work)
            if cuda:
                torch.cuda.empty_cache()
            for name in ways if arm in WAYS else [arm]:
                emit(name, {"parity": parity(work, policy, config, correct)})
            trainer = make_trainer(policy, engine, scorer, config, old=old, correct=correct)
            rounds = Rounds(trainer, engine, warmup, steps, until)
            with short_collections():  # as Trainer.run does
                if arm in WAYS and w.equal_first:
                    equal["tokens"] = w.equal_first
                    rounds.run(ways, lambda name, found: emit(f"{name}{EQUAL}", found))
                    equal.clear()
                rounds.run(ways if arm in WAYS else [arm], emit)
    finally:
        engine.close()
        scorer.close()


def replicas_of(engine: Any) -> list[Any]:
    return getattr(engine, "engines", [engine])


def run_to_length(
    engine: Any, policy: Policy, work: Work, equal: Mapping[str, int] = MappingProxyType({})
) -> None:
    """Nothing ends a completion but its length: the most that is allowed, or the workload's own.

    While ``equal`` holds "tokens", that is the length of all.
    """
    for each in replicas_of(engine):
        if each.name == "vllm":
            each.eos_ids = ()
            if work.workload.mean_length:
                _give_lengths(each, work, equal)
        else:
            each._eos_ids = [policy.head_weight().shape[0]]


def write_adapter(work: Work) -> None:
    """Make the adapter that every arm starts from, in peft's format."""
    policy = Policy.from_pretrained(str(work.model), work.recipe())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    policy.save_adapter(work.folder / "adapter")


def load_adapter(policy: Policy, work: Work) -> None:
    from safetensors.torch import load_file

    from mathrl.types import Adapter

    policy.load_adapter(Adapter({}, load_file(work.folder / "adapter" / "adapter_model.safetensors")))
    policy.version = 0
    for parameter in policy.trainable_parameters():
        parameter.grad = None


def _give_lengths(engine: Any, work: Work, equal: Mapping[str, int]) -> None:
    """Every completion ends at the workload's length, or all at one: requests get their own limit."""
    child_of = engine.client._child
    known = {tuple(ids): lengths for ids, lengths in zip(work.prompts, work.lengths, strict=True)}

    def child(request: Any, index: int, parameters: Any, length: int | None = None) -> Any:
        lengths = known.get(tuple(request.prompt_token_ids))
        if lengths is not None and request.sampling_params.max_tokens == work.workload.completion:
            parameters = {**parameters, "max_tokens": equal.get("tokens", lengths[index])}
        return child_of(request, index, parameters, length)

    engine.client._child = child


def parity(work: Work, policy: Policy, config: Any, correct: bool) -> dict[str, float]:
    """Loss and gradient norm of the saved batch, old and sampling log-probabilities a given noise away."""
    saved = work.batch()
    rows, group = saved["mask"].shape[0], work.workload.group
    batch = Batch(
        prompts=tuple(torch.tensor(p) for p in work.prompts[:PARITY_PROBLEMS]),
        group_ids=torch.arange(rows) // group,
        completion_ids=saved["completion_ids"],
        loss_mask=saved["mask"],
        rewards=torch.zeros(rows),
        truncated=torch.zeros(rows, dtype=torch.bool),
    ).to(policy.device)
    batch = annotate(policy, batch, MicroBatches(8192), old=True, reference=True)
    old = batch.old_logprobs + saved["old_noise"].to(policy.device)
    batch = batch.add(
        old_logprobs=old,
        sampling_logprobs=old - saved["sampling_noise"].to(policy.device),
        advantages=saved["advantages"].to(policy.device)[:, None] * batch.loss_mask,
    )
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    loss = PolicyLoss(config, algorithm, correct=correct).backward(policy, batch, Meter())
    gradients = [p.grad for p in policy.trainable_parameters()]
    norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    return {"loss": float(loss), "grad_norm": float(norm)}


def make_trainer(
    policy: Policy, engine: Any, scorer: RewardScorer, config: Any, *, old: bool, correct: bool
) -> Trainer:
    """A trainer whose every step asks all problems of the workload.

    Args:
        old: an own pass for the old log-probabilities.
        correct: importance correction of the sampler.
    """
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    if old:  # two updates a rollout ask for the pass; there is one all the same
        algorithm = replace(algorithm, updates_per_rollout=2)
    algorithm = replace(algorithm, correction=correct)
    for each in replicas_of(engine):
        tokens = config.rollout.max_completion_tokens
        each.sampling = replace(each.sampling, logprobs=correct, max_completion_tokens=tokens)
    problems = [Problem(str(i), "", "7", "number") for i in range(config.rollout.problems_per_step)]
    engine.load(policy.adapter(), 0)
    return Trainer(
        config, algorithm, ProblemStream(problems, 0), engine, scorer, policy,
        make_update(config, algorithm, policy, engine_exact=engine.exact_logprobs),
        Hooks(reads=config.tracking.samples_per_step),  # as `mathrl train` has it
        sentinel=Sentinel(engine, policy, problems, config.rollout.max_sync_gap),
    )  # fmt: skip


class Told:
    """What a trainer's pace is, told before every step."""

    overlaps = False

    def note(self, seconds: float, tokens: float) -> str:
        return ""


class Rounds:
    """Steps of a trainer; seconds by phase, by the trainer's own clock; tokens; memory."""

    def __init__(self, trainer: Trainer, engine: Any, warmup: int, steps: int, until: float) -> None:
        self.trainer, self.engine, self.until = trainer, engine, until
        self.warmup, self.steps, self.pace = warmup, steps, Told()
        self.cuda = trainer.policy.device.type == "cuda"
        if trainer.overlap:
            trainer.overlap.pace = self.pace
        self.found: dict[str, dict[str, Any]] = {}
        self.index = 0

    def run(self, arms: list[str], emit: Emit) -> None:
        """A step of every arm in turn; results are told as they come."""
        self.found = {}
        for turn in range(self.warmup + self.steps):
            for arm in arms:
                if time.time() > self.until:
                    return
                self._step(arm, self.index, kept=turn >= self.warmup)
                self.index += 1
                if arm in self.found:
                    emit(arm, self.found[arm])

    def _step(self, arm: str, index: int, *, kept: bool) -> None:
        self.pace.overlaps, share = WAYS.get(arm, (False, 1.0))
        rollout, each_of = self.trainer.config.rollout, replicas_of(self.engine)
        total = rollout.problems_per_step * rollout.group_size
        for each in each_of:
            each.max_sequences = math.ceil(share * total / len(each_of)) if share < 1.0 else 0
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        metrics, _ = self.trainer.step(index)
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if not kept:
            return
        found = self.found.setdefault(arm, {"seconds": [], "phases": {}, "peak_torch_gib": None})
        found["seconds"].append(seconds)
        for name, value in metrics.items():
            if name.startswith("time/") and name != "time/step_s":
                found["phases"].setdefault(name.removeprefix("time/").removesuffix("_s"), []).append(value)
        if "overlap/sampling_s" in metrics:
            found["phases"].setdefault("sampling", []).append(metrics["overlap/sampling_s"])
        found["tokens"] = int(metrics["tokens/sampled"])
        if self.cuda:
            peak = torch.cuda.max_memory_allocated() / 2**30
            found |= {"peak_torch_gib": max(peak, found["peak_torch_gib"] or 0.0), "device_gib": device_gib()}
        kinds = ("sync/", "policy/", "overlap/")
        found["metrics"] = {k: v for k, v in metrics.items() if k.startswith(kinds)}
