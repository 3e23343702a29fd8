"""Losses and LoRA gradients of GRPO, Dr. GRPO and DAPO beside TRL's GRPOTrainer on the same batch.

A random model samples a batch; it is saved (mathrl.commands.replay) with the adapter, and both sides compute
loss and gradient from the files in float32. TRL's conventions are matched first, then left as they are one by
one, so that each difference has a number. TRL lives in an environment of its own:

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16.0 'torch<2.14' peft
    python benchmarks/trl_parity.py --trl-python /tmp/trl/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.record import describe, store
from mathrl.algorithms.table import Algorithm, resolve_algorithm
from mathrl.commands.replay import save_batch
from mathrl.config import Config
from mathrl.data.prompts import make_template
from mathrl.data.wordproblems import generate_problems
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.rollout.transformers import TransformersEngine
from mathrl.training.annotate import annotate
from mathrl.training.batch import collate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.objective import Meter, PolicyLoss
from mathrl.training.update import make_update
from mathrl.types import Batch, Sampling, Score

TOLERANCE = 1e-4
KL_COEF = 0.04
CASES = [  # name, algorithm, its knobs, how far the policy has moved since it sampled (nats)
    ("GRPO, on policy", "grpo", {"kl_coef": KL_COEF}, 0.0),
    ("GRPO, off policy", "grpo", {"kl_coef": KL_COEF}, 0.3),
    ("GRPO, no KL", "grpo", {"kl_coef": 0.0}, 0.3),
    ("Dr. GRPO, on policy", "dr_grpo", {}, 0.0),
    ("Dr. GRPO, off policy", "dr_grpo", {}, 0.3),
    ("DAPO, on policy", "dapo", {"overlong_buffer": 0}, 0.0),
    ("DAPO, off policy", "dapo", {"overlong_buffer": 0}, 0.3),
]


def config_of(name: str, knobs: dict[str, Any]) -> Config:
    """A small model, 4 problems with 4 completions of at most 24 tokens."""
    return Config.model_validate(
        {
            "model": {"hidden_size": 64, "num_layers": 3, "num_kv_heads": 2, "intermediate_size": 160},
            "lora": {"rank": 8, "alpha": 16.0},
            "rollout": {"problems_per_step": 4, "group_size": 4, "max_completion_tokens": 24},
            "algorithm": {"name": name, **knobs},
        }
    )


def make_model(folder: Path) -> None:
    """Random weights, large enough that tokens are far from equally likely."""
    model, tokenizer = build_base(config_of("grpo", {}).model, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_policy(folder: Path) -> Policy:
    """The model with an adapter that does something."""
    policy = Policy.from_pretrained(folder, config_of("grpo", {}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def make_batch(policy: Policy) -> Batch:
    """Sampled by the policy: some end early, some at the limit; rewards differ in every group but one."""
    config = config_of("grpo", {})
    template = make_template(config, policy.tokenizer)
    engine = TransformersEngine(
        policy.model, policy.tokenizer, template.encode, Sampling(max_completion_tokens=24)
    )
    groups = engine.sample(generate_problems(4, seed=1), 4, seed=2)
    lengths = iter([24, 3, 1, 17, 9, 24, 2, 5, 24, 24, 11, 1, 6, 20, 13, 8])
    rewards = iter([1.0, 0, 0, 1, 0.5, 0, 0, 1, 1, 1, 1, 1, 0, 0.25, 0, 1])
    short = []
    for group in groups:
        completions = tuple(
            replace(c, token_ids=c.token_ids[:n], sampling_logprobs=(c.sampling_logprobs or ())[:n])
            for c, n in zip(group.completions, lengths, strict=False)
        )
        scores = tuple(Score(next(rewards), "correct") for _ in completions)
        short.append(replace(group, completions=completions, scores=scores))
    return collate(short, policy.pad_id)


def ours(
    policy: Policy, config: Config, algorithm: Algorithm, batch: Batch
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of every LoRA weight, by its name in a peft file."""
    loss = PolicyLoss(config, algorithm, correct=False).backward(policy, batch, Meter()).item()
    gradients = {}
    for name, parameter in policy.model.named_parameters():
        if parameter.grad is not None:
            gradients[name.replace(".default.", ".")] = parameter.grad.clone()
            parameter.grad = None
    return loss, gradients


def relative(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[float, float]:
    """|mine - theirs| / |theirs| over all weights, and the worst of a single weight matrix."""
    assert mine.keys() == theirs.keys(), sorted(mine.keys() ^ theirs.keys())[:4]
    gap = sum(float((mine[n] - theirs[n]).double().square().sum()) for n in mine) ** 0.5
    norm = sum(float(theirs[n].double().square().sum()) for n in mine) ** 0.5
    worst = max(float((mine[n] - theirs[n]).norm() / theirs[n].norm().clamp(min=1e-3 * norm)) for n in mine)
    return gap / norm, worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", required=True, help="python of the environment that has TRL")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = compare(Path(temporary), args.trl_python)
    print(store("trl_parity", describe() | result))
    bad = [case["case"] for case in result["cases"] if not case["agrees"]]
    if bad:
        raise SystemExit(f"no agreement: {', '.join(bad)}")


def compare(folder: Path, trl_python: str) -> dict[str, Any]:
    """All cases with TRL's conventions matched, and what each convention changes."""
    make_model(folder / "model")
    policy = make_policy(folder / "model")
    policy.save_adapter(folder / "adapter")
    bare = make_batch(policy)
    asked = []
    for name, row, knobs, moved in CASES:
        config = config_of(row, knobs)
        algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
        batch = annotate(policy, bare, MicroBatches(8192), old=True, reference=True)
        noise = moved * torch.randn(batch.loss_mask.shape, generator=torch.Generator().manual_seed(9))
        assert batch.old_logprobs is not None
        old = torch.where(batch.loss_mask, batch.old_logprobs + noise, 0.0) if moved else None
        batch = algorithm.advantages(batch.add(old_logprobs=old))
        path = save_batch(
            folder / name.replace(" ", "_"),
            config,
            policy,
            make_update(config, algorithm, policy),
            batch,
            step=1,
            reference=str(folder / "model"),
        )
        asked.append({"case": name, "loss_type": row, "batch": str(path), "beta": algorithm.kl_coef,
                      "epsilon_high": algorithm.clip_high, "scale": row != "dr_grpo"})  # fmt: skip
    (folder / "asked.json").write_text(json.dumps(asked))
    peer = Path(__file__).with_name("trl_parity_peer.py")
    subprocess.run([trl_python, str(peer), str(folder)], check=True)
    told = json.loads((folder / "told.json").read_text())
    found = []
    for case, (name, row, knobs, _) in zip(told["cases"], CASES, strict=True):
        config = config_of(row, knobs)
        algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
        batch = load_batch(Path(case["batch"]))
        theirs = load_file(folder / f"{case['case']}.safetensors".replace(" ", "_"))
        advantages = theirs.pop("advantages")[:, None] * batch.loss_mask
        loss, gradients = ours(policy, config, algorithm, batch.add(advantages=advantages))
        gap, worst = relative(gradients, theirs)
        loss_gap = abs(loss - case["loss"]) / max(abs(case["loss"]), 1e-3)
        own_loss, own = ours(policy, config, algorithm, batch)
        found.append({
            "case": name, "loss": loss, "TRL loss": case["loss"], "loss, relative": loss_gap,
            "gradient, relative": gap, "gradient, worst matrix": worst,
            "agrees": loss_gap <= TOLERANCE and gap <= TOLERANCE,
            "ours as is": {"loss": own_loss, "gradient, relative": relative(own, theirs)[0]},
            "TRL as is": {
                flag: {
                    "loss": v["loss"],
                    "gradient, relative": relative(gradients, load_file(v["gradients"]))[0],
                }
                for flag, v in case["variants"].items()
            },
        })  # fmt: skip
        print(f"{name:22} loss {loss_gap:.1e}  gradient {gap:.1e}  worst matrix {worst:.1e}")
    return {"trl": told["trl"], "tolerance": TOLERANCE, "dtype": "float32", "cases": found}


def load_batch(path: Path) -> Batch:
    """A batch that save_batch wrote."""
    tensors = load_file(path / "batch.safetensors")
    prompts = tensors.pop("prompts").split(tensors.pop("prompt_lengths").tolist())
    return Batch(prompts=tuple(prompts), **tensors)


if __name__ == "__main__":
    main()
