"""Seconds of a GRPO step beside TRL's GRPOTrainer: same machine, same run, fresh processes, same work.

    python benchmarks/step_time.py [--case 0.5b | 1.5b | variable | long | 135m] [--steps 5] [--warmup 2]
        [--arms ...] [--seconds S]
    python benchmarks/step_time.py --cpu [--peer-site DIR]

Model directory (random weights), prompt token ids, completion lengths, LoRA (all linear layers), KL
coefficient, learning rate, dtype and reward are the same for all. First every arm computes loss and gradient
norm of one saved batch; then it trains. Arms:

  TRL default            TRL 1.16 as it comes, vLLM colocated (on the CPU: transformers' generation)
  TRL tuned              no gradient checkpointing, importance correction and its old-logprob pass off
  TRL tuned, corrected   no gradient checkpointing, with the correction
  ours: same work        old and reference passes, correction, a copy of the prompt for every completion
  ours: on-policy        old log-probabilities from the update's own forward, no correction
  ours: shared prompts   as on-policy, a group's prompt computed once
  ours: default          a recipe's: shared prompts, correction from the update's own forward
  ours: in turn          shared prompts; the first of those that one trainer makes a step of in turn:
  ours: overlapped       groups train while others are sampled (train.overlap)
  ours: overlapped, …    the same, with a part of the completions at once (rollout.max_sequences)
  Unsloth tuned          Unsloth 2026.10.9, 16 bits, no gradient checkpointing, its own vLLM (step_unsloth.py)

Cases of varying lengths can measure these arms with equal lengths first (``--equal-first 256``), by the same
engine. With ``--seconds`` no step begins later than that after the start, and what has not ended a minute
later is killed; results are stored as they come.

``--peer-site`` is a folder with TRL: pip install --target DIR --no-deps trl==1.16.0; ``--unsloth-site`` one
with Unsloth and what it asks for, another TRL among it.
On the CPU the processes start and measure in turn three times, for a machine's speed changes within a minute.
Phases are the trainers' own: rollout, verify, forward (old and reference passes), update, and sync, which in
ours includes the proof that the weights arrived. Tokens trained count prompt + completion of every completion
for all arms.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from record import describe, store
from scaleout_jobs import free_port
from step_workload import WORKLOADS, Work, floor, model_flops, of_equal_lengths, prepare, rates

from mathrl.rollout.vllm_fork import begin_early

PHASES = ("rollout", "verify", "forward", "update", "sync")
EQUAL = ", equal lengths"  # as in step_ours
WAYS = ("in turn", "overlapped", "overlapped, 3/4 at once", "overlapped, 1/2 at once")
OURS = ("same work", "on-policy", "shared prompts", "default", *WAYS)
PEERS = ("TRL default", "TRL tuned", "TRL tuned, corrected")
UNSLOTH = "Unsloth tuned"


def worker(args: argparse.Namespace) -> None:
    """Inside a fresh process: all arms of one trainer, with one engine."""

    def emit(arm: str, result: dict[str, Any]) -> None:
        print("RESULT " + json.dumps({"arm": arm, **result}), flush=True)

    def ready() -> None:
        print("READY", flush=True)
        sys.stdin.readline()

    work = Work.load(args.folder)
    if work.workload.device == "cpu":
        torch.set_num_threads(args.threads)
    if args.worker == "ours":
        begin_early(work.recipe())  # as a command does
    side = import_module("step_ours" if args.worker == "ours" else "step_trl")
    side.run(work, args.arms, args.warmup, args.steps, emit, ready, args.until)


class Worker:
    """A trainer in a process of its own: it starts its engine at once and measures when it is told to.

    Processes start side by side, since that takes longer than measuring; they measure one after the other.
    """

    def __init__(self, name: str, arms: list[str], folder: Path, args: argparse.Namespace) -> None:
        script = str(Path(__file__).with_name("step_unsloth.py")) if name == UNSLOTH else __file__
        command = [sys.executable, script, "--worker", name, "--folder", str(folder)]
        command += ["--steps", str(args.steps), "--warmup", str(args.warmup), "--threads", str(args.threads)]
        command += ["--until", str(args.until)]
        environment = os.environ | {"MASTER_PORT": str(free_port())}  # TRL's own choice is everybody's
        site = {"ours": "", UNSLOTH: args.unsloth_site or args.peer_site}.get(name, args.peer_site)
        if site:
            environment["PYTHONPATH"] = os.pathsep.join([site, environment.get("PYTHONPATH", "")])
        self.name, self.found = name, dict[str, dict[str, Any]]()
        self.process = subprocess.Popen(
            [*command, "--arms", *arms],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        if math.isfinite(args.until):
            late = threading.Timer(args.until + 60 - time.time(), self.process.kill)
            late.daemon = True
            late.start()

    def wait_until_ready(self) -> None:
        self._read(until="READY")

    def measure(self, keep: Callable[[dict[str, Any]], None]) -> None:
        """Let it measure; ``keep`` is given the results by arm whenever there are new ones.

        A process that fails leaves what it had told.
        """
        assert self.process.stdin is not None
        if self.process.poll() is None:
            with suppress(BrokenPipeError):  # it has ended since
                self.process.stdin.write("go\n")
                self.process.stdin.flush()
            while self._read(until="RESULT"):
                keep(self.found)
        if self.process.wait():
            self.found[self.name] = {"failed": self.process.returncode}
            keep(self.found)

    def _read(self, until: str) -> bool:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, rest = line.partition(" ")
            if word == "RESULT":
                result = json.loads(rest)
                self.found.setdefault(result.pop("arm"), {}).update(result)
            if word.strip() == until:
                return True
        return False


def pooled(earlier: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """An arm's result, its steps after those of earlier rounds."""
    if "seconds" not in earlier or "seconds" not in found:
        return dict(found)
    phases = {name: earlier["phases"].get(name, []) + values for name, values in found["phases"].items()}
    return found | {"seconds": earlier["seconds"] + found["seconds"], "phases": phases}


def summarise(arms: dict[str, Any], work: Work, ceiling: dict[str, float]) -> None:
    """Add medians, speeds, utilisation and the ratio to the floor to each arm."""
    from transformers import AutoConfig

    from mathrl.memory.shapes import Shape

    shape = Shape.of(AutoConfig.from_pretrained(work.model))
    for name, arm in arms.items():
        if "seconds" not in arm:
            continue
        own = of_equal_lengths(work) if name.endswith(EQUAL) else work
        least = floor(own, shape, ceiling, 2 if own.workload.device == "cuda" else 4)
        flops = model_flops(own, shape)
        trained = sum(own.workload.prompt + n for row in own.lengths for n in row)
        step = median(arm["seconds"])
        phase = {name: median(values) for name, values in arm["phases"].items()}
        arm["median"] = {"step": step, **phase}
        # of an overlapped step, "rollout" is only what training waited for
        arm["generated_tokens_per_s"] = arm["tokens"] / phase.get("sampling", phase["rollout"])
        arm["trained_tokens_per_s"] = trained / phase["update"]
        arm["update_flop_utilisation"] = flops["update"] / phase["update"] / ceiling["flop_per_s"]
        arm["floor_ratio"] = step / least["step"]


def table(arms: dict[str, Any]) -> str:
    lines = [
        "| arm | step s | rollout | verify | forward | update | sync | generated tok/s | trained tok/s "
        "| update FLOP use | peak GiB | × floor | loss of the saved batch |",
        "|---|" + "---|" * 12,
    ]
    for name, arm in arms.items():
        if "failed" in arm:
            lines.append(f"| {name} | failed |" + " |" * 11)
        if "median" not in arm:
            continue
        phases = " | ".join(f"{arm['median'].get(p, 0.0):.3f}" for p in PHASES)
        peak = arm.get("peak_torch_gib")
        loss = f"{arm['parity']['loss']:.5f}" if "parity" in arm else ""
        lines.append(
            f"| {name} | {arm['median']['step']:.3f} | {phases} | {arm['generated_tokens_per_s']:,.0f} | "
            f"{arm['trained_tokens_per_s']:,.0f} | {arm['update_flop_utilisation']:.0%} | "
            f"{'' if peak is None else f'{peak:.1f}'} | {arm['floor_ratio']:.1f} | "
            f"{loss} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", choices=sorted(WORKLOADS), default="0.5b")
    parser.add_argument("--cpu", action="store_true", help="the quickstart's model on the CPU")
    parser.add_argument(
        "--arms", nargs="+", default=[*PEERS[:2], *OURS[:4]], choices=(*PEERS, *OURS, UNSLOTH)
    )
    parser.add_argument(
        "--equal-first",
        type=int,
        default=0,
        help="of the arms in turn: first with all completions of so many tokens (a case of varying lengths)",
    )
    parser.add_argument("--seconds", type=float, default=math.inf, help="of all of it, about")
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        help="fresh processes that measure in turn, steps pooled (0: 3 on the CPU, else 1)",
    )
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument(
        "--peer-batch", type=int, default=0, help="completions TRL trains at once; 0: the case's"
    )
    parser.add_argument("--replicas", type=int, default=-1, help="of our vLLM engine; -1: the case's")
    parser.add_argument(
        "--uncompiled", action="store_true", help="ours without torch.compile: starts a minute or two sooner"
    )
    parser.add_argument("--uncompiled-engine", action="store_true", help="only the layers of our trainer")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (--cpu)")
    parser.add_argument("--wait-for", type=Path, help="begin to measure when this file is there")
    parser.add_argument("--peer-site", default="")
    parser.add_argument("--unsloth-site", default="")
    parser.add_argument("--name", default="", help="of the stored result")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    args.until = min(args.until, time.time() + args.seconds)
    case = "cpu" if args.cpu else args.case
    workload = WORKLOADS[case]
    if args.equal_first:
        workload = replace(workload, equal_first=args.equal_first)
    if args.uncompiled:
        workload = replace(workload, compiled=False, compiled_engine=False)
    if args.uncompiled_engine:
        workload = replace(workload, compiled_engine=False)
    if args.peer_batch:
        workload = replace(workload, peer_batch=args.peer_batch)
    if args.replicas >= 0:
        workload = replace(workload, replicas=args.replicas)
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # the same sampler for all
    arms: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = Path(scratch)
        prepare(workload, folder)
        work = Work.load(folder)
        import_module("step_ours").write_adapter(work)
        if workload.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
        ceiling = rates(workload.device)
        device = torch.cuda.get_device_name() if workload.device == "cuda" else "cpu"
        if workload.device == "cuda":
            torch.cuda.empty_cache()
        result = describe(("torch", "transformers", "peft", "trl", "vllm")) | {
            "device": device,
            "workload": workload.__dict__,
            "ceilings": ceiling,
        }
        name = args.name or f"step_time_{case.replace('.', '_')}"

        earlier: dict[str, Any] = {}  # of the rounds before this one

        def keep(found: dict[str, Any]) -> None:
            for arm, value in found.items():
                title = ("ours: " if arm.removesuffix(EQUAL) in OURS else "") + arm
                arms[title] = pooled(earlier.get(title, {}), value)
            summarise(arms, work, ceiling)
            store(name, result | {"arms": arms})

        for _ in range(args.rounds or (3 if args.cpu else 1)):
            earlier = dict(arms)
            sides = {"ours": OURS, "TRL": PEERS, UNSLOTH: (UNSLOTH,)}
            chosen = {name: [arm for arm in own if arm in args.arms] for name, own in sides.items()}
            chosen = {name: own for name, own in chosen.items() if own}
            # Unsloth takes its share of the device beforehand: where that is small, after the others
            beside = UNSLOTH not in chosen or torch.cuda.get_device_properties(0).total_memory > 120 << 30
            for names in [list(chosen)] if beside else [[name] for name in chosen]:
                workers = [Worker(name, chosen[name], folder, args) for name in names]
                for each in workers:
                    each.wait_until_ready()
                while args.wait_for and not args.wait_for.exists():
                    time.sleep(0.2)
                for each in workers:
                    each.measure(keep)
                    print(table(arms), flush=True)
        print(f"stored benchmarks/results/{name}.json", flush=True)


if __name__ == "__main__":
    main()
