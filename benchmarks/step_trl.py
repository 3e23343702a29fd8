"""TRL's side of step_time.py: GRPOTrainer with the same model, token ids, lengths and adapter."""

from __future__ import annotations

import gc
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from safetensors.torch import load_file
from step_workload import PARITY_PROBLEMS, Work, device_gib, reward

# arm -> settings beyond those that the workload fixes
ARMS: dict[str, dict[str, Any]] = {
    "TRL default": {},
    "TRL tuned": {"gradient_checkpointing": False, "vllm_importance_sampling_correction": False},
    "TRL tuned, corrected": {"gradient_checkpointing": False},
}
Emit = Callable[[str, dict[str, Any]], None]


def run(
    work: Work, arms: list[str], warmup: int, steps: int, emit: Emit, ready: Callable[[], None], until: float
) -> None:
    """One engine for all arms; each arm has a fresh model, optimiser and trainer.

    ``ready`` and ``until`` are as in step_ours; results are told after every step.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    cuda = work.workload.device == "cuda"
    if cuda:
        keep_engine()
    start = time.perf_counter()
    trainer = make_trainer(work, ARMS[arms[0]], warmup + steps)
    emit("TRL engine", {"start_s": time.perf_counter() - start})
    ready()
    for arm in arms:
        if time.time() > until:
            return
        if trainer is None:
            gc.collect()
            trainer = make_trainer(work, ARMS[arm], warmup + steps)
        emit(arm, {"parity": parity(work, trainer)})
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        clock = Clock(trainer, cuda)

        def tell(clock: Clock = clock, arm: str = arm) -> bool:
            """After every step; whether the time is over."""
            result = clock.result(warmup)
            if result["seconds"]:
                if cuda:
                    peak = torch.cuda.max_memory_allocated() / 2**30
                    result |= {"peak_torch_gib": peak, "device_gib": device_gib()}
                emit(arm, result)
            return time.time() > until

        clock.tell = tell
        trainer.train()
        trainer = clock = None  # type: ignore[assignment]


def keep_engine(cache_gib: int = 24) -> None:
    """Give later trainers the first one's engine, and that a cache for all completions.

    The size of the cache is otherwise measured, which fails while another process starts on the device.
    """
    from trl.generation import vllm_generation

    start, engine = vllm_generation.VLLMGeneration._init_vllm, []
    vllm_generation.LLM = partial(vllm_generation.LLM, kv_cache_memory_bytes=cache_gib << 30)

    def init(self: Any) -> None:
        if engine:
            self.llm, self._llm_weights_sleeping = engine[0], False
        else:
            start(self)
            engine.append(self.llm)

    vllm_generation.VLLMGeneration._init_vllm = init


def make_trainer(work: Work, settings: dict[str, Any], steps: int, ranks: int = 1) -> Any:
    """A GRPOTrainer whose every step asks all problems of the workload, of all ranks together."""
    from datasets import Dataset
    from peft import LoraConfig, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    w = work.workload
    cuda = w.device == "cuda"
    own: dict[str, Any] = (
        {"use_vllm": True, "vllm_mode": "colocate"} if cuda else {"use_cpu": True, "bf16": False}
    )
    own["generation_kwargs"] = {"ignore_eos": True} if cuda else {"min_new_tokens": w.completion}
    if not cuda:
        settings = {k: v for k, v in settings.items() if not k.startswith("vllm")}
    arguments = GRPOConfig(
        output_dir=str(work.folder / "trl"),
        per_device_train_batch_size=w.peer_batch,
        gradient_accumulation_steps=w.sequences // (w.peer_batch * ranks),
        num_generations=w.group,
        max_completion_length=w.completion,
        beta=w.kl_coef,
        learning_rate=w.learning_rate,
        lr_scheduler_type="constant",
        loss_type="grpo",
        max_steps=steps,
        shuffle_dataset=False,
        logging_steps=10**6,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **own,
        **settings,
    )
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16 if cuda else torch.float32)
    lora = LoraConfig(
        r=w.rank, lora_alpha=2 * w.rank, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.0
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [reward(ids) for ids in completion_ids],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(w.problems)]}),
        processing_class=AutoTokenizer.from_pretrained(work.model, padding_side="left"),
        peft_config=lora,
    )
    tensors = load_file(work.folder / "adapter" / "adapter_model.safetensors")
    unknown = set_peft_model_state_dict(trainer.model, tensors).unexpected_keys
    assert not unknown, unknown
    trainer._tokenize_prompts = lambda prompts: ([work.prompts[int(p)] for p in prompts], None, {})
    if w.mean_length:
        _give_lengths(trainer, work)
    return trainer


def _give_lengths(trainer: Any, work: Work) -> None:
    """Every completion ends at the workload's length."""
    llm = trainer.vllm_generation.llm
    generate = llm.generate
    known = {tuple(ids): lengths for ids, lengths in zip(work.prompts, work.lengths, strict=True)}

    def generated(prompts: Any, sampling_params: Any, **rest: Any) -> Any:
        seen: dict[tuple[int, ...], int] = defaultdict(int)
        own = []
        for prompt in prompts:
            key = tuple(prompt["prompt_token_ids"])
            parameters = sampling_params.clone()
            parameters.max_tokens = known[key][seen[key]]
            seen[key] += 1
            own.append(parameters)
        return generate(prompts, sampling_params=own, **rest)

    llm.generate = generated


def parity(work: Work, trainer: Any) -> dict[str, float]:
    """Loss and gradient norm of the saved batch, as step_ours.parity."""
    saved, device = work.batch(), trainer.accelerator.device
    saved = {name: tensor.to(device) for name, tensor in saved.items()}
    mask = saved["mask"].long()
    prompts = torch.tensor(work.prompts[:PARITY_PROBLEMS], device=device).repeat_interleave(
        work.workload.group, 0
    )
    ids = torch.cat([prompts, saved["completion_ids"]], 1)
    attention = torch.cat([torch.ones_like(prompts), mask], 1)
    model, width = trainer.model, mask.shape[1]
    model.train()
    trainer.current_gradient_accumulation_steps, loss = 1, 0.0
    for rows in torch.arange(len(ids), device=device).split(work.workload.peer_batch):  # as it trains them
        part = ids[rows], attention[rows], width
        with torch.no_grad():
            current = trainer._get_per_token_logps_and_entropies(model, *part)[0]
            with model.disable_adapter():
                reference = trainer._get_per_token_logps_and_entropies(model, *part)[0]
        old, noise = current + saved["old_noise"][rows], saved["sampling_noise"][rows]
        inputs = {
            "prompt_ids": prompts[rows],
            "prompt_mask": torch.ones_like(prompts[rows]),
            "completion_ids": saved["completion_ids"][rows],
            "completion_mask": mask[rows],
            "advantages": saved["advantages"][rows],
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        }
        if trainer.use_vllm and trainer.vllm_importance_sampling_correction:
            inputs["importance_sampling_ratio"] = noise.exp().clamp(max=2.0)
            inputs["sampling_per_token_logps"] = old - noise
        share = trainer._compute_loss(model, inputs) * (len(rows) / len(ids))  # a mean over completions
        share.backward()
        loss += float(share.detach())
    gradients = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    trainer._metrics["train"].clear()
    return {"loss": loss, "grad_norm": float(torch.stack(gradients).norm())}


class Clock:
    """Seconds of TRL's steps and phases: its own functions, timed from outside."""

    def __init__(self, trainer: Any, cuda: bool, after_step: Callable[[Clock], None] | None = None) -> None:
        from transformers import TrainerCallback

        self.cuda, self.seconds, self.phases = cuda, [], defaultdict(list)
        self.now: dict[str, float] = defaultdict(float)
        self.tokens = 0
        self.last = 0.0
        self.tell: Callable[[], bool] = lambda: False
        if trainer.use_vllm:
            self._wrap(trainer.vllm_generation, "generate", "rollout")
            self._wrap(trainer.vllm_generation, "sync_weights", "sync")
        else:
            self._wrap(trainer, "_generate_single_turn", "rollout")
        self._wrap(trainer, "_calculate_rewards", "verify")
        self._wrap(trainer, "_generate_and_score_completions", "prepare")
        score = trainer._calculate_rewards

        def counted(inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
            self.tokens = sum(map(len, ids))
            return score(inputs, prompts, completions, ids)

        trainer._calculate_rewards = counted
        clock = self

        class Steps(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.begin()

            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> Any:
                clock.end()
                if after_step is not None:
                    after_step(clock)
                over = clock.tell()  # of the last step, too, after which it stops by itself
                control.should_training_stop = control.should_training_stop or over
                return control

        trainer.add_callback(Steps())

    def _time(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _wrap(self, owner: Any, name: str, phase: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self._time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.now[phase] += self._time() - start

        setattr(owner, name, timed)

    def begin(self) -> None:
        self.now.clear()
        self.last = self._time()

    def end(self) -> None:
        total = self._time() - self.last
        now = self.now
        rollout, verify, sync = now["rollout"], now["verify"], now["sync"]
        parts = {
            "rollout": rollout,
            "verify": verify,
            "forward": now["prepare"] - rollout - verify - sync,
            "update": total - now["prepare"],
            "sync": sync,
        }
        self.seconds.append(total)
        for name, value in parts.items():
            self.phases[name].append(value)

    def result(self, warmup: int) -> dict[str, Any]:
        return {
            "seconds": self.seconds[warmup:],
            "phases": {name: values[warmup:] for name, values in self.phases.items()},
            "tokens": self.tokens,
        }
