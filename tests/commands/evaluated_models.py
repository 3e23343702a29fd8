"""Tiny models to evaluate, an adapter of one, a file of problems; and ``mathrl eval`` on them."""

import json
from collections.abc import Sequence
from pathlib import Path

import peft
import torch

from mathrl.cli import main
from mathrl.config import ModelConfig
from mathrl.policy.scratch import build_base

SIZES = ModelConfig(
    hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=48, vocab_size=400,
    context_length=256,
)  # fmt: skip
ROWS = [
    {
        "question": f"Ann has {i} apples and buys {i + 3} more at the market. How many has she?",
        "answer": f"{i} + {i + 3} = <<{i}+{i + 3}={2 * i + 3}>>{2 * i + 3}\n#### {2 * i + 3}",
    }
    for i in range(8)
]


def make_models(folder: Path) -> Path:
    """model/, other/, adapter/ of the model, merged/ with it, and test.jsonl."""
    for seed, name in enumerate(("model", "other")):
        base, tokenizer = build_base(SIZES, seed=seed)
        for parameter in base.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(8)  # so that completions differ
        base.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    wrapped = peft.get_peft_model(
        type(base).from_pretrained(folder / "model"),
        peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    wrapped.save_pretrained(folder / "adapter")
    wrapped.merge_and_unload().save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    write(folder / "test.jsonl", ROWS)
    return folder


def write(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(folder: Path, out: Path, *options: object, model: str = "model", status: int = 0) -> Path:
    words = ["eval", str(folder / model), "--benchmark", "gsm8k", "--data", str(folder / "test.jsonl")]
    words += ["--max-completion-tokens", "24", "--out", str(out), *map(str, options)]
    assert main(words) == status
    return out
