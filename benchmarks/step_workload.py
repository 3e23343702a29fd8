"""The work of a measured training step, the same for every trainer, and the least time it can take.

Prompts, completion lengths, the first adapter and one saved batch lie in a folder that all processes read.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from random_model import random_model
from safetensors.torch import load_file, save_file

from mathrl.config import Config, ModelConfig
from mathrl.data.wordproblems import corpus
from mathrl.memory.shapes import Shape
from mathrl.policy.scratch import build_base

PARITY_PROBLEMS = 4


@dataclass(frozen=True)
class Workload:
    """Sizes of a step."""

    name: str
    model: str  # of random_model.SHAPES; quickstart: the recipe's model
    problems: int = 64
    group: int = 8
    prompt: int = 128  # tokens
    completion: int = 256  # tokens at most
    mean_length: int = 0  # 0: every completion is as long as allowed; else log-normal with this mean
    rank: int = 32
    kl_coef: float = 0.04
    learning_rate: float = 1e-5
    micro_batch_tokens: int = 32768
    peer_batch: int = 64  # TRL's per_device_train_batch_size
    device: str = "cuda"
    replicas: int = 1  # of our engine; 0: as the plan chooses
    engine: str = "auto"  # ours
    overlap: str = "off"  # train.overlap, ours
    compiled: bool = True  # ours, where there is a GPU: layers by torch.compile
    compiled_engine: bool = True  # and those of the engine
    equal_first: int = 0  # arms in turn are first measured with all completions so long, by the same engine

    @property
    def sequences(self) -> int:
        return self.problems * self.group


WORKLOADS = {
    w.name: w
    for w in (
        Workload("0.5b", "0.5b"),
        Workload("1.5b", "1.5b", micro_batch_tokens=16384, peer_batch=32),
        Workload("variable", "0.5b", completion=1024, mean_length=300, peer_batch=16),
        Workload(
            "long", "1.5b", 32, 16, completion=4096, mean_length=1200, micro_batch_tokens=16384, peer_batch=4
        ),
        Workload("135m", "135m", 64, 16, completion=128, peer_batch=128, replicas=0),
        Workload(
            "cpu", "quickstart", 16, 8, 38, 32, rank=16, kl_coef=0.005, learning_rate=2e-3, peer_batch=128,
            micro_batch_tokens=8192, device="cpu",
        ),
        Workload(  # for trying the benchmark itself
            "tiny", "quickstart", 4, 4, 12, 8, rank=4, peer_batch=8, micro_batch_tokens=512, device="cpu",
        ),
        Workload(  # the same with the real engine and lengths of its own
            "tiny-vllm", "quickstart", 4, 4, 12, 24, mean_length=10, rank=4, peer_batch=8,
            micro_batch_tokens=64, device="cpu", engine="vllm",
        ),
    )
}  # fmt: skip


def of_equal_lengths(work: Work) -> Work:
    """The work of those arms."""
    length = work.workload.equal_first
    equal = [[length] * work.workload.group for _ in work.lengths]
    return replace(work, workload=replace(work.workload, completion=length, mean_length=0), lengths=equal)


def prepare(workload: Workload, folder: Path, seed: int = 0) -> None:
    """Write model, prompts, lengths, adapter and the saved batch."""
    model = _model(workload, folder, seed)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    high = min(vocabulary, 500)
    prompts = torch.randint(10, high, (workload.problems, workload.prompt), generator=generator)
    limit, mean = workload.completion, workload.mean_length
    lengths = torch.full((workload.problems, workload.group), limit)
    if mean:
        sigma = 0.7
        noise = torch.randn(lengths.shape, generator=generator)
        drawn = torch.exp(math.log(mean) - sigma**2 / 2 + sigma * noise)
        lengths = drawn.long().clamp(1, limit)
    rows = PARITY_PROBLEMS * workload.group
    width = int(lengths[:PARITY_PROBLEMS].max())
    batch = {
        "completion_ids": torch.randint(10, high, (rows, width), generator=generator),
        "advantages": torch.randn(rows, generator=generator),
        "old_noise": 0.1 * torch.randn(rows, width, generator=generator),
        "sampling_noise": 0.3 * torch.randn(rows, width, generator=generator),
    }
    save_file(batch, folder / "batch.safetensors")
    work = asdict(workload) | {
        "model_path": str(model),
        "prompts": prompts.tolist(),
        "lengths": lengths.tolist(),
    }
    (folder / "work.json").write_text(json.dumps(work))


@dataclass(frozen=True)
class Work:
    """A prepared workload."""

    workload: Workload
    folder: Path
    model: Path
    prompts: list[list[int]]
    lengths: list[list[int]]  # (problem, completion)

    @classmethod
    def load(cls, folder: Path) -> Work:
        data = json.loads((folder / "work.json").read_text())
        model, prompts, lengths = (data.pop(k) for k in ("model_path", "prompts", "lengths"))
        return cls(Workload(**data), folder, Path(model), prompts, lengths)

    def batch(self) -> dict[str, torch.Tensor]:
        """The saved batch: PARITY_PROBLEMS problems; ``mask`` (rows, T) is added."""
        batch = load_file(self.folder / "batch.safetensors")
        lengths = torch.tensor(self.lengths[:PARITY_PROBLEMS]).flatten()
        batch["mask"] = torch.arange(batch["completion_ids"].shape[1]) < lengths[:, None]
        return batch

    def recipe(self, **update: Any) -> Config:
        """Ours, as a recipe."""
        w = self.workload
        return Config.model_validate(
            {
                "run": {"device": w.device},
                "model": {"path": str(self.model)},
                "sft": {"skip": True},
                "lora": {"rank": w.rank, "alpha": 2.0 * w.rank},
                "rollout": {
                    "problems_per_step": w.problems,
                    "group_size": w.group,
                    "max_prompt_tokens": max(8, w.prompt),
                    "max_completion_tokens": w.completion,
                    "max_sync_gap": 1.0,
                    "num_replicas": w.replicas,
                    "engine": w.engine,
                    "compile_engine": w.compiled_engine,
                },
                "train": {"overlap": w.overlap},
                "reward": {"num_workers": 8 if w.device == "cuda" else 2},
                "algorithm": {"kl_coef": w.kl_coef},
                "update": {
                    "learning_rate": w.learning_rate,
                    "micro_batch_tokens": w.micro_batch_tokens,
                    "compile": w.compiled and w.device == "cuda",
                    **update,
                },
            }
        )


def _model(workload: Workload, folder: Path, seed: int) -> Path:
    if workload.model != "quickstart":
        return random_model(workload.model, folder, seed)
    model, tokenizer = build_base(ModelConfig(), seed, corpus())
    target = folder / "quickstart"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def reward(token_ids: Any) -> float:
    """A reward that any trainer can compute from the tokens alone: half of all completions earn 1."""
    return float(sum(token_ids) % 2)


def device_gib() -> float | None:
    """Device memory that this process and its children hold; None where the driver does not tell."""
    import psutil
    import pynvml

    own = psutil.Process()
    pids = {own.pid, *(child.pid for child in own.children(recursive=True))}
    try:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        found = [p for device in devices for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]
    except pynvml.NVMLError:
        return None
    used = [process.usedGpuMemory for process in found if process.pid in pids]
    return sum(used) / 2**30 if used and None not in used else None


def rates(device: str) -> dict[str, float]:
    """Measured ceilings: FLOP/s of a large matrix product, bytes/s of a large copy (read + written)."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(1 << 30 if device == "cuda" else 1 << 25, device=device)
    copy = torch.empty_like(source)
    flops = 2 * size**3 / _seconds(lambda: a @ b, device)
    return {
        "flop_per_s": flops,
        "bytes_per_s": 2 * source.nbytes / _seconds(lambda: copy.copy_(source), device),
    }


def _seconds(run: Any, device: str, repeats: int = 10) -> float:
    import time

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = now()
        run()
        times.append(now() - start)
    return sorted(times)[repeats // 2]


def model_flops(work: Work, shape: Shape) -> dict[str, float]:
    """FLOPs of a step without a shared prompt, as every trainer's phases are charged: matrix products and
    attention of prompt + completion, the head on completion tokens; update = forward and the gradients of
    activations (frozen weights have none).
    """
    w = work.workload
    layers = shape.num_parameters - shape.vocab_size * shape.hidden_size * (1 if shape.tied_head else 2)
    head = 2 * shape.vocab_size * shape.hidden_size
    lengths = [n for row in work.lengths for n in row]
    tokens = sum(w.prompt + n for n in lengths)
    pairs = sum((w.prompt + n) ** 2 / 2 for n in lengths)
    attention = 4 * shape.num_layers * shape.query_size * pairs
    forward = 2 * layers * tokens + attention + head * sum(lengths)
    decoded = (2 * layers + head) * sum(lengths) + 2 * layers * w.problems * w.prompt
    return {"rollout": decoded, "pass": forward, "update": 2 * forward + 1.5 * attention}


def floor(work: Work, shape: Shape, ceiling: dict[str, float], itemsize: int) -> dict[str, float]:
    """Seconds: the larger of arithmetic and memory traffic. Rollout: each decoding step reads the weights
    once and every live completion's cache; prompts are shared by their group in training.
    """
    w, flops = work.workload, model_flops(work, shape)
    lengths = sorted(n for row in work.lengths for n in row)
    weights = shape.num_parameters * itemsize
    traffic = weights * lengths[-1] + shape.kv_bytes(itemsize) * sum(
        n * w.prompt + n * n / 2 for n in lengths
    )
    shared = (w.problems * w.prompt + sum(lengths)) / sum(w.prompt + n for n in lengths)
    rollout = max(flops["rollout"] / ceiling["flop_per_s"], traffic / ceiling["bytes_per_s"])
    reference = shared * flops["pass"] / ceiling["flop_per_s"]
    update = shared * flops["update"] / ceiling["flop_per_s"]
    return {"rollout": rollout, "forward": reference, "update": update, "step": rollout + reference + update}
