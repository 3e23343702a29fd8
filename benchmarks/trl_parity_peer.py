"""TRL's side of trl_parity.py: GRPOTrainer's own loss on the saved batches, and its gradients."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import trl
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import nanstd


def make_trainer(folder: Path, case: dict[str, Any], rows: int, group: int, **changes: Any) -> GRPOTrainer:
    """A trainer with the saved adapter on the saved model; it never trains."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    settings: dict[str, Any] = {
        "output_dir": str(folder / "out"), "loss_type": case["loss_type"], "beta": case["beta"],
        "epsilon": 0.2, "epsilon_high": case["epsilon_high"], "num_generations": group,
        "per_device_train_batch_size": rows, "max_completion_length": 24, "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "report_to": [], "use_bias_correction_kl": False,
        "temperature": 1.0, "steps_per_generation": 1,
    }  # fmt: skip
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(**settings | changes),
        train_dataset=Dataset.from_dict({"prompt": ["a"] * rows}),
        processing_class=tokenizer,
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def inputs_of(batch: dict[str, torch.Tensor], advantages: torch.Tensor, pad: int) -> dict[str, torch.Tensor]:
    """The tensors that TRL's generation would have made: prompts padded left, completions right."""
    lengths = batch["prompt_lengths"].tolist()
    prompts = [batch["prompts"].split(lengths)[g] for g in batch["group_ids"].tolist()]
    width = max(lengths)
    ids = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0), value=pad) for p in prompts])
    mask = torch.stack([torch.arange(width) >= width - len(p) for p in prompts]).long()
    found = {
        "prompt_ids": ids, "prompt_mask": mask, "completion_ids": batch["completion_ids"],
        "completion_mask": batch["loss_mask"].long(), "advantages": advantages,
        "num_items_in_batch": batch["loss_mask"].sum(),
    }  # fmt: skip
    for ours, theirs in (("old_logprobs", "old_per_token_logps"), ("ref_logprobs", "ref_per_token_logps")):
        if ours in batch:
            found[theirs] = batch[ours]
    return found


def loss_and_gradients(
    trainer: GRPOTrainer, inputs: dict[str, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    named = trainer.model.named_parameters()
    gradients = {n.replace(".default.", "."): p.grad.clone() for n, p in named if p.grad is not None}
    trainer.model.zero_grad()
    return loss.item(), gradients


def main(folder: Path) -> None:
    cases = json.loads((folder / "asked.json").read_text())
    for case in cases:
        batch = load_file(Path(case["batch"]) / "batch.safetensors")
        rewards, rows = batch["rewards"], len(batch["rewards"])
        group = int((batch["group_ids"] == 0).sum())
        grouped = rewards.view(-1, group)
        advantages = rewards - grouped.mean(1).repeat_interleave(group)
        if case["scale"]:
            advantages = advantages / (nanstd(grouped, dim=1).repeat_interleave(group) + 1e-4)
        trainer = make_trainer(folder, case, rows, group)
        inputs = inputs_of(batch, advantages, trainer.processing_class.pad_token_id)
        case["loss"], gradients = loss_and_gradients(trainer, inputs)
        file = folder / f"{case['case']}.safetensors".replace(" ", "_")
        save_file(gradients | {"advantages": advantages}, file)
        case["variants"] = {}
        if case["beta"]:  # TRL's default: the KL term times the ratio
            other = make_trainer(folder, case, rows, group, use_bias_correction_kl=True)
            loss, gradients = loss_and_gradients(other, inputs)
            file = folder / f"{case['case']}_kl.safetensors".replace(" ", "_")
            save_file(gradients, file)
            case["variants"]["use_bias_correction_kl"] = {"loss": loss, "gradients": str(file)}
    (folder / "told.json").write_text(json.dumps({"trl": trl.__version__, "cases": cases}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
