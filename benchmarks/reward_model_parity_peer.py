"""TRL's side of reward_model_parity.py: RewardTrainer's own loss on the saved pairs, and its gradients."""

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
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def loss_and_gradients(
    folder: Path, case: dict[str, Any], rows: list[dict[str, Any]], dtype: torch.dtype
) -> tuple[float, dict[str, torch.Tensor]]:
    """RewardTrainer tokenizes and collates the rows and computes its loss on all of them at once."""
    base = AutoModelForSequenceClassification.from_pretrained(
        folder / case["model"], num_labels=1, dtype=dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / case["model"])
    base.config.pad_token_id = tokenizer.pad_token_id
    model = PeftModel.from_pretrained(base, folder / f"{case['model']}-adapter", is_trainable=True)
    model.to(dtype)
    if not case["margins"]:
        rows = [{k: v for k, v in row.items() if k != "margin"} for row in rows]
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=len(rows),
            center_rewards_coefficient=case["center"] or None,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(len(rows))])
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
    return loss.item(), gradients


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    asked = json.loads((folder / "asked.json").read_text())
    for number, case in enumerate(asked["cases"]):
        for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
            loss, gradients = loss_and_gradients(folder, case, asked["rows"], dtype)
            file = str(folder / f"gradients-{number}-{name}.safetensors")
            save_file(gradients, file)
            case[name] = {"loss": loss, "gradients": file}
    (folder / "told.json").write_text(json.dumps({"trl": trl.__version__, "cases": asked["cases"]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
