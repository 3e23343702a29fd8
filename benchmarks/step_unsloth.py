"""Unsloth's side of step_time.py: GRPO as it recommends, in a process of its own, with its own vLLM.

Unsloth patches torch, transformers, peft and TRL when it is imported, and wants to be the first: so nothing
of ours is, and the work is read from its files. Tuned: 16 bits, no gradient checkpointing, fast inference
with the sampler's log-probabilities as the old ones. It gets the same weights, adapter, lengths, token ids;
the ids by way of a vocabulary of its own, in which ``t000017`` is token 17, as its trainer takes text alone.

Started by step_time.py, or by itself on a prepared folder:

    python benchmarks/step_unsloth.py --folder DIR --steps 5 --warmup 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

SETTINGS = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_VLLM_NO_FLASHINFER": "1",
    "UNSLOTH_GRPO_ROLLOUT_LOGPROBS_AS_OLD": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ARM = "Unsloth tuned"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="of step_workload.prepare")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--until", type=float, default=math.inf)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--threads", help=argparse.SUPPRESS)
    parser.add_argument("--arms", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.update(SETTINGS)
    work = json.loads((args.folder / "work.json").read_text())
    if work["mean_length"]:
        sys.exit("Unsloth's trainer takes one length for all completions: it is measured where all are equal")
    start = time.perf_counter()
    trainer = make_trainer(work, args.folder, args.warmup + args.steps)
    emit("Unsloth engine", {"start_s": time.perf_counter() - start})
    if args.worker:
        print("READY", flush=True)
        sys.stdin.readline()
    timed = Timed(trainer, work, args.warmup, args.until)
    trainer.train()
    if not timed.seconds:
        sys.exit("no step was measured within the time")


def emit(arm: str, result: dict[str, Any]) -> None:
    print("RESULT " + json.dumps({"arm": arm, **result}), flush=True)


def word(token: int) -> str:
    """All as long, for a tokenizer looks for its special tokens within words too."""
    return f"t{token:06d}"


def own_folder(work: dict[str, Any], folder: Path) -> Path:
    """The same model beside a tokenizer that makes ``t000017`` token 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    source, target = Path(work["model_path"]), folder / "unsloth"
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors" or file.name in ("config.json", "generation_config.json"):
            (target / file.name).unlink(missing_ok=True)
            (target / file.name).symlink_to(file)
    config = json.loads((source / "config.json").read_text())
    ids = {word(i): i for i in range(config["vocab_size"])}
    end, pad = word(config["eos_token_id"]), word(config["pad_token_id"])
    if pad == end:  # Unsloth wants two; no prompt has the last token
        pad = word(config["vocab_size"] - 1)
    words = Tokenizer(models.WordLevel(ids, unk_token=pad))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=pad, unk_token=pad)
    tokenizer.save_pretrained(target)
    return target


def make_trainer(work: dict[str, Any], folder: Path, steps: int) -> Any:
    from unsloth import FastLanguageModel  # before all that it patches  # isort: skip
    import torch
    from datasets import Dataset
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer
    from vllm import SamplingParams

    length, sequences = work["completion"], work["problems"] * work["group"]
    source = own_folder(work, folder)
    # of a Qwen2 model transformers takes every tokenizer for Qwen2's, whatever stands in its folder
    tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
    prompts = [" ".join(map(word, ids)) for ids in work["prompts"]]
    assert tokenizer(prompts)["input_ids"] == work["prompts"]
    model, _ = FastLanguageModel.from_pretrained(
        str(source),
        max_seq_length=work["prompt"] + length + 64,
        load_in_4bit=False,
        dtype=torch.bfloat16,
        fast_inference=True,
        max_lora_rank=work["rank"],
        gpu_memory_utilization=0.4,
        max_num_seqs=sequences,
        local_files_only=True,
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=work["rank"],
        lora_alpha=2 * work["rank"],
        target_modules=LINEARS,
        use_gradient_checkpointing=False,
        random_state=0,
    )
    unknown = set_peft_model_state_dict(model, load_file(folder / "adapter" / "adapter_model.safetensors"))
    assert not unknown.unexpected_keys, unknown.unexpected_keys[:3]
    batch = work["peer_batch"]
    config = GRPOConfig(
        output_dir=str(folder / "unsloth-out"),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=sequences // batch,
        num_generations=work["group"],
        max_completion_length=length,
        beta=work["kl_coef"],
        loss_type="grpo",
        scale_rewards="group",
        learning_rate=work["learning_rate"],
        lr_scheduler_type="constant",
        max_steps=steps,
        shuffle_dataset=False,
        temperature=1.0,
        bf16=True,
        optim="adamw_torch_fused",
        report_to="none",
        logging_steps=10**6,
        save_strategy="no",
        disable_tqdm=True,
        vllm_sampling_params=SamplingParams(
            ignore_eos=True, min_tokens=length, max_tokens=length, temperature=1.0
        ),
    )

    def odd(completions: Any, completion_ids: Any = None, **_: Any) -> list[float]:
        """As step_workload.reward: half of all completions earn 1."""
        if completion_ids is not None:
            return [float(sum(ids) % 2) for ids in completion_ids]
        return [float(sum(int(each[1:]) for each in text.split()) % 2) for text in completions]

    return GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[odd],
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )


class Timed:
    """Seconds of steps and phases, timed from outside; told after every step."""

    def __init__(self, trainer: Any, work: dict[str, Any], warmup: int, until: float) -> None:
        from transformers import TrainerCallback

        self.seconds: list[float] = []
        self.phases: dict[str, list[float]] = defaultdict(list)
        self.now: dict[str, float] = defaultdict(float)
        self.begun, self.done, self.warmup, self.until = 0.0, 0, warmup, until
        self.tokens = work["problems"] * work["group"] * work["completion"]
        self._wrap(trainer, "_generate_and_score_completions", "prepare")
        engine = getattr(trainer, "llm", None) or getattr(trainer.model, "vllm_engine", None)
        if engine is not None:
            self._wrap(engine, "generate", "rollout")
        timed = self

        class Steps(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                timed.now.clear()
                timed.begun = timed.time()

            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> Any:
                timed.end()
                control.should_training_stop = control.should_training_stop or time.time() > timed.until
                return control

        trainer.add_callback(Steps())

    @staticmethod
    def time() -> float:
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    def _wrap(self, owner: Any, name: str, phase: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.now[phase] += self.time() - start

        setattr(owner, name, timed)

    def end(self) -> None:
        import torch

        total, self.done = self.time() - self.begun, self.done + 1
        if self.done <= self.warmup:
            return
        rollout, prepare = self.now["rollout"], self.now["prepare"]
        parts = {"rollout": rollout or prepare, "forward": max(prepare - rollout, 0.0) if rollout else 0.0}
        parts["update"] = total - prepare
        self.seconds.append(total)
        for name, value in parts.items():
            self.phases[name].append(value)
        peak = torch.cuda.max_memory_allocated() / 2**30
        found = {"seconds": self.seconds, "phases": self.phases, "tokens": self.tokens}
        emit(ARM, {**found, "peak_torch_gib": peak})


if __name__ == "__main__":
    main()
