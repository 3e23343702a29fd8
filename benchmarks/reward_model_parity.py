"""Loss and gradients of the reward model beside TRL's RewardTrainer on the same pairs.

Random models with an adapter and a head that do something are saved with pairs as messages; TRL tokenizes,
collates and computes by itself, ours packs. Both compute in float64, where they must be the same function,
and in float32, where each is held against float64. TRL lives in an environment of its own:

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16.0 'torch<2.14' peft
    python benchmarks/reward_model_parity.py --trl-python /tmp/trl/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.record import describe, store
from benchmarks.trl_parity import relative
from mathrl.config import Config
from mathrl.data.wordproblems import generate_problems
from mathrl.policy.scratch import build_base
from mathrl.rewards.learned import conversation
from mathrl.training.reward_model_data import EncodedPair, Pair, encode_pairs
from mathrl.training.reward_model_files import RewardModel
from mathrl.training.reward_model_loss import PairScores, RankingLoss

TOLERANCE = {"float64": 1e-7, "float32": 1e-6}  # the norms of transformers compute in float32 always
CONFIG = Config.model_validate(
    {
        "model": {"hidden_size": 64, "num_layers": 3, "num_kv_heads": 2, "intermediate_size": 160},
        "lora": {"rank": 8, "alpha": 16.0},
    }
)
CASES: list[dict[str, Any]] = [
    {"case": "plain", "margins": False, "center": 0.0},
    {"case": "margins", "margins": True, "center": 0.0},
    {"case": "centred", "margins": False, "center": 0.01},
    {"case": "margins, centred", "margins": True, "center": 0.01},
]
MODELS = {  # architecture: whether the pad token is one of its own, the tokenizer's padding side
    "qwen2": (False, "right"),
    "llama": (True, "left"),
    "mistral": (False, "left"),  # has no packed forward: padded rows
}


def make_base(kind: str, folder: Path) -> None:
    """Random weights, large enough that scores differ from text to text."""
    base, tokenizer = build_base(CONFIG.model, seed=3)
    own_pad, side = MODELS[kind]
    if own_pad:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.padding_side = side
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    torch.manual_seed(3)
    if kind == "llama":
        base = LlamaForCausalLM(LlamaConfig(**sizes))
    elif kind == "mistral":
        base = MistralForCausalLM(MistralConfig(**sizes))
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_model(folder: Path) -> RewardModel:
    """The base with an adapter and a head that are not zero."""
    model = RewardModel.from_base(str(folder), CONFIG)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        model.head.copy_(0.3 * torch.randn(model.head.shape, generator=generator))
    return model


def make_pairs() -> list[Pair]:
    """Word problems with their solution against a wrong number, bare or at the end of the working."""
    pairs = []
    for i, problem in enumerate(generate_problems(12, seed=1)):
        wrong = f"#### {int(problem.answer) + i + 1}"
        worse = wrong if i % 3 else (problem.solution or "").rsplit("####", 1)[0] + wrong
        (question, better), other = conversation(problem.question, problem.solution or ""), worse
        pairs.append(Pair((question,), (better,), (conversation("", other)[1],), margin=0.1 * (i % 4)))
    return pairs


def ours(
    model: RewardModel, pairs: list[EncodedPair], center: float, dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradient of every weight that trains by its name in peft's model."""
    model.model.to(dtype)
    loss, _ = RankingLoss(PairScores(model.classifier, model.head), center, 4096).backward(pairs)
    gradients = {}
    for name, parameter in model.model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.clone()
            parameter.grad = None
    return loss, gradients


def compare(folder: Path, trl_python: str) -> dict[str, Any]:
    """All cases of all models."""
    pairs, models = make_pairs(), {}
    for kind in MODELS:
        make_base(kind, folder / kind)
        models[kind] = make_model(folder / kind)
        models[kind].model.save_pretrained(folder / f"{kind}-adapter")
        models[kind].tokenizer.save_pretrained(folder / kind)  # with the chat template
    rows = [
        {"prompt": p.question, "chosen": p.chosen, "rejected": p.rejected, "margin": p.margin} for p in pairs
    ]
    asked = [{"model": kind, **case} for kind in MODELS for case in CASES]
    (folder / "asked.json").write_text(json.dumps({"rows": rows, "cases": asked}))
    peer = Path(__file__).with_name("reward_model_parity_peer.py")
    subprocess.run([trl_python, str(peer), str(folder)], check=True)
    told = json.loads((folder / "told.json").read_text())
    found = []
    for case in told["cases"]:
        model = models[case["model"]]
        plain = pairs if case["margins"] else [Pair(p.question, p.chosen, p.rejected) for p in pairs]
        encoded = encode_pairs(model.tokenizer, plain, 512, skip=False)
        exact = ours(model, encoded, case["center"], torch.float64)
        sides = {
            "TRL, float64": (case["float64"]["loss"], load_file(case["float64"]["gradients"])),
            "TRL, float32": (case["float32"]["loss"], load_file(case["float32"]["gradients"])),
            "ours, float32": ours(model, encoded, case["center"], torch.float32),
        }
        row: dict[str, Any] = {"model": case["model"], "case": case["case"], "loss": exact[0]}
        for name, (loss, gradients) in sides.items():
            gap = abs(loss - exact[0]) / abs(exact[0])
            row[name] = {"loss, relative": gap, "gradient, relative": relative(gradients, exact[1])[0]}
        mine, theirs = row["ours, float32"], row["TRL, float32"]
        row["agrees"] = (
            max(row["TRL, float64"].values()) <= TOLERANCE["float64"]
            and mine["loss, relative"] <= TOLERANCE["float32"]
            # the gradient of a pair is a difference of two near ones: rounding alone may pass the bound
            and mine["gradient, relative"] <= max(TOLERANCE["float32"], theirs["gradient, relative"])
        )
        found.append(row)
        told_row = "  ".join(f"{name} {row[name]['gradient, relative']:.1e}" for name in sides)
        print(f"{case['model']:8} {case['case']:18} gradients from ours in float64: {told_row}")
    return {"trl": told["trl"], "tolerance": TOLERANCE, "cases": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", required=True, help="python of the environment that has TRL")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(Path(temporary), args.trl_python)
    print(store("reward_model_parity", describe() | result))
    bad = [f"{case['model']} {case['case']}" for case in result["cases"] if not case["agrees"]]
    if bad:
        raise SystemExit(f"no agreement: {', '.join(bad)}")


if __name__ == "__main__":
    main()
