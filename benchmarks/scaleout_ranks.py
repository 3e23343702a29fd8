"""One process of a job of scaleout.py: a rank of ours, or of TRL's.

It starts its engine, says READY, and reads from its input which case to measure until when; rank 0 tells
results as they come. Everything else that it prints goes to the job's log.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import record  # noqa: F401  first: it puts the package before the verifiers.py of this folder
import torch
from scaleout_cases import CASES, JOBS, TINY_JOBS, Case, folder_of, ranks_of
from step_workload import Work, prepare

from mathrl.distributed import group
from mathrl.distributed.agreement import any_rank, together
from mathrl.distributed.collectives import all_reduce, gather
from mathrl.distributed.environment import place

# what is heavier is imported where it is used: an engine's process reads this file, too

_BY_TITLE = {case.title: case for case in CASES}
_LEAST_STEPS = 3  # measured, without which a case has no result


def tell(word: str, value: Any = None) -> None:
    if place().is_main:
        print(word if value is None else f"{word} {json.dumps(value)}", flush=True)


def asked() -> Iterator[tuple[Case, float]]:
    """Cases to measure, each with the time at which to be done, until the input ends."""
    for line in sys.stdin:
        request = json.loads(line)
        yield _BY_TITLE[request["case"]], request["until"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--uncompiled", action="store_true")
    parser.add_argument(
        "--prepare", action="store_true", help="write the model, prompts and adapter, and end"
    )
    args = parser.parse_args()
    folder = args.scratch / folder_of(args.job)
    if args.prepare:
        write_work((TINY_JOBS if args.tiny else JOBS)[args.job], folder)
    elif args.job.startswith("TRL"):
        run_peer(args.job, folder, args.steps)
    else:
        Ours(folder, args).run()


def write_work(workload: Any, folder: Path) -> None:
    import step_ours

    folder.mkdir(parents=True)
    prepare(workload, folder)
    step_ours.write_adapter(Work.load(folder))
    (folder / "ready").touch()


def written(folder: Path) -> Work:
    """The job's work, once ``write_work`` has written it."""
    while not (folder / "ready").exists():
        time.sleep(0.1)
    return Work.load(folder)


class Ours:
    """The product's trainer on every rank, with one engine for all cases; policy and optimiser begin anew."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        group.start()  # before CUDA: this rank sees one GPU alone
        import step_ours

        from mathrl.policy.model import Policy
        from mathrl.rollout.engine_choice import make_engine
        from mathrl.rollout.vllm_fork import begin

        if torch.cuda.is_available() and args.engine != "transformers":
            begin("cuda")  # as a command does, while the model is written
        self.ours, self.steps = step_ours, args.steps
        self.engine_name, self.compiled = args.engine, not args.uncompiled
        self.work = written(folder)
        config = self.config(self.work)
        start = time.perf_counter()
        with together("starting the engine"):
            self.policy = Policy.from_pretrained(str(self.work.model), config)
            encode = lambda problem: self.work.prompts[int(problem.id)]  # noqa: E731
            self.engine, reason = make_engine(config, self.policy, encode)
            step_ours.run_to_length(self.engine, self.policy, self.work)
        self.scorer = step_ours.TokenReward(config.reward, "gsm8k")
        self.started = {"engine": reason, "start_s": time.perf_counter() - start, "compiled": self.compiled}
        self.started["first_step_s"] = self.first_step(args.job)

    def config(self, work: Work) -> Any:
        config = work.recipe(share_prompts=True)
        compiled = self.compiled and config.update.compile
        rollout = {"engine": self.engine_name, "compile_engine": self.compiled}
        return config.model_copy(
            update={
                "rollout": config.rollout.model_copy(update=rollout),
                "update": config.update.model_copy(update={"compile": compiled}),
            }
        )

    def first_step(self, job: str) -> float:
        """Seconds of a step in which what is compiled is compiled: while the other jobs start."""
        start = time.perf_counter()
        first = next(case for case in CASES if case.job == job and case.kind == "step")
        with self.ours.short_collections():
            self.trainer(first).step(0)
        return time.perf_counter() - start

    def run(self) -> None:
        gather(None)  # all have started
        tell("READY", self.started)
        try:
            for case, until in asked():
                try:
                    self.measure(case, until)
                except Exception as error:  # noqa: BLE001 - the other cases may work
                    tell("RESULT", {"case": case.title, "failed": f"{type(error).__name__}: {error}"[:300]})
                    print(repr(error), file=sys.stderr, flush=True)
                if self.policy.device.type == "cuda":
                    torch.cuda.empty_cache()
                gather(None)
                tell("DONE")
        finally:
            self.engine.close()
            self.scorer.close()
            group.stop()

    def measure(self, case: Case, until: float) -> None:
        if case.kind == "sums":
            tell("RESULT", {"case": case.title, **self.sums()})
        elif case.kind == "repeat":
            tell("RESULT", {"case": case.title, **self.repeat(case)})
        elif case.alone:
            with together("a rank by itself"):
                if place().is_main:
                    with group.alone():
                        self.step(case, until)
        else:
            self.step(case, until)

    def trainer(self, case: Case) -> Any:
        """A trainer from the job's first adapter, as a recipe has it by default."""
        work = case.of(self.work)
        config = self.config(work)
        old = self.policy
        self.policy = type(old)(old.model, old.tokenizer, config.update, config.rollout.temperature)
        self.ours.load_adapter(self.policy, work)
        return self.ours.make_trainer(self.policy, self.engine, self.scorer, config, old=False, correct=True)

    def step(self, case: Case, until: float) -> None:
        """Seconds of every measured step, of all ranks and by phase; told after each step."""
        cuda = self.policy.device.type == "cuda"
        trainer = self.trainer(case)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        found: dict[str, Any] = {"case": case.title, "seconds": [], "ranks": []}
        with self.ours.short_collections():
            for index in range(case.warmup + self.steps):
                start = time.perf_counter()
                metrics, _ = trainer.step(index)
                if cuda:
                    torch.cuda.synchronize()
                seconds = time.perf_counter() - start
                if index >= case.warmup:
                    found["seconds"].append(seconds)
                    found["ranks"].append(trainer.rank_seconds)
                found["first"] = found.get("first", seconds)
                found["tokens"] = int(metrics["tokens/sampled"])
                found["peak_torch_gib"] = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
                if len(found["seconds"]) >= _LEAST_STEPS or index + 1 == case.warmup + self.steps:
                    tell("RESULT", found)
                if any_rank(time.time() > until):
                    break

    def sums(self) -> dict[str, Any]:
        """Seconds of all-reduces of an adapter's gradients and of four times that; whether bits repeat."""
        numel = sum(p.numel() for p in self.policy.trainable_parameters())
        own = group.current()
        assert own is not None
        found: dict[str, Any] = {"numel": numel}
        generator = torch.Generator(self.policy.device).manual_seed(place().rank)
        for name, size in (("adapter_s", numel), ("four_adapters_s", 4 * numel), ("one_number_s", 1)):
            source = torch.randn(size, device=self.policy.device, generator=generator)
            times, sums = [], []
            for _ in range(12):
                flat = source.clone()
                gather(None)  # all are here: what follows is no waiting
                start = time.perf_counter()
                all_reduce(own, flat, "SUM")
                times.append(time.perf_counter() - start)
                sums.append(flat)
            found[name] = median(times[2:])
            same = all(torch.equal(sums[0], other) for other in sums)
            found["bits_repeat"] = found.get("bits_repeat", True) and same
            everywhere = len(set(gather(sums[0].double().sum().item()))) == 1
            found["same_on_all_ranks"] = found.get("same_on_all_ranks", True) and everywhere
        return found

    def repeat(self, case: Case) -> dict[str, Any]:
        """Two runs of two steps from the same seed: what of completions, weights and metrics is the same."""
        runs = [self._seeded_run(case) for _ in range(2)]
        steps = []
        for first, second in zip(*(run["steps"] for run in runs), strict=True):
            pairs = list(zip(first["completions"], second["completions"], strict=True))
            moved = (first["weights"] - second["weights"]).abs().max().item()
            steps.append(
                {
                    "same_completions": sum(a == b for a, b in pairs) / len(pairs),
                    "adapter_bits": first["hash"] == second["hash"],
                    "largest_difference_of_weights": moved,
                    "metrics": [first["metrics"], second["metrics"]],
                }
            )
        trained = [self._trained(case, runs[0]["batch"]) for _ in range(2)]
        return {
            "steps": steps,
            "same_batch": {
                "adapter_bits": torch.equal(*trained),
                "largest_difference_of_weights": (trained[0] - trained[1]).abs().max().item(),
                "largest_move": (trained[0] - runs[0]["begin"]).abs().max().item(),
            },
        }

    def _weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.trainable_parameters()]).clone()

    def _seeded_run(self, case: Case) -> dict[str, Any]:
        from mathrl.training.sharing import adapter_hash

        trainer = self.trainer(case)
        batches: list[Any] = []
        trainer.hooks = replace(trainer.hooks, on_batch=lambda index, batch: batches.append(batch))
        found: dict[str, Any] = {"begin": self._weights(), "steps": []}
        for index in range(2):
            metrics, groups = trainer.step(index)
            names = ("policy/loss", "policy/grad_norm", "policy/kl_ref", "reward/mean")
            found["steps"].append(
                {
                    "completions": [c.token_ids for g in groups for c in g.completions],
                    "hash": adapter_hash(self.policy.adapter()),
                    "weights": self._weights(),
                    "metrics": {name: metrics[name] for name in names if name in metrics},
                }
            )
        return found | {"batch": batches[0]}

    def _trained(self, case: Case, batch: Any) -> torch.Tensor:
        """The weights after one update on a batch that is given."""
        trainer = self.trainer(case)
        trainer.update(self.policy, batch)
        return self._weights()


def run_peer(job: str, folder: Path, steps: int) -> None:
    """TRL's GRPOTrainer, vLLM colocated, under accelerate where there are several ranks."""
    import step_trl

    work = _BY_TITLE[f"{job}: as it comes"].of(written(folder))
    warmup, cuda = 1, work.workload.device == "cuda"
    rank = int(os.environ.get("RANK", 0))

    def say(text: str) -> None:
        if rank == 0:
            print(text, flush=True)

    start = time.perf_counter()
    if cuda:
        step_trl.keep_engine(cache_gib=8)
    trainer = step_trl.make_trainer(work, {}, warmup + steps, ranks_of(job))
    say("READY " + json.dumps({"start_s": time.perf_counter() - start}))
    case = json.loads(sys.stdin.readline())["case"]

    def after_step(clock: Any) -> None:
        if len(clock.seconds) >= warmup + _LEAST_STEPS:
            say("RESULT " + json.dumps({"case": case, **clock.result(warmup)}))

    step_trl.Clock(trainer, cuda, after_step)
    trainer.train()
    say("DONE")


if __name__ == "__main__":
    main()
