"""The main job: problems -> reference -> evaluation -> reinforcement -> evaluation -> report.

Every stage leaves its result in the folder and is skipped when it is found there: a run goes on where it
stopped, and ends as it would have without the interruption.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console

from mathrl.commands.export import export_adapter
from mathrl.commands.prepare import HELD_OUT, Plan, prepare
from mathrl.commands.replay import save_batch, save_metrics
from mathrl.config import Config
from mathrl.data.problems import ProblemStream, extract_rule
from mathrl.data.prompts import PromptTemplate, make_template
from mathrl.errors import NonFiniteError, UserError
from mathrl.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from mathrl.policy.model import Policy
from mathrl.report.doctor import Doctor, tell
from mathrl.report.run_page import write_report
from mathrl.report.summary import build_summary, print_summary
from mathrl.rewards.learned import make_reward_model
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.rollout.engine_choice import make_engine
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.folder import write_json
from mathrl.run.progress import Progress, make_console
from mathrl.run.tracking import SftTracker, Tracker
from mathrl.training.sentinel import Sentinel
from mathrl.training.sft import train_reference
from mathrl.training.trainer import Hooks, Metrics, Trainer
from mathrl.training.update import make_update
from mathrl.types import Batch, Group, derive_seed

EXIT_INTERRUPTED = 130


def train(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Run the whole job; returns the exit status."""
    console = make_console()
    plan = prepare(config, resume=resume, overwrite=overwrite)
    summary = plan.folder.read_summary()
    if summary and summary["finished"] and summary["num_steps"] == config.train.num_steps and not overwrite:
        console.print(f"The run in {plan.folder.path} is finished; --overwrite trains it anew.")
        print_summary(console, summary)
        return 0
    _announce(console, plan)
    plan.folder.open(config, overwrite=overwrite)
    return Run(plan, console).train()


def make_reference(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Only the supervised stage; returns the exit status."""
    if config.sft.skip:
        raise UserError("sft.skip is set: this recipe has no supervised stage")
    console = make_console()
    plan = prepare(config, resume=resume, overwrite=overwrite)
    plan.folder.open(config, overwrite=overwrite)
    run = Run(plan, console)
    with run.progress:
        console.print(f"reference: {run.reference()}")
    return 0


def _announce(console: Console, plan: Plan) -> None:
    cfg = plan.config
    per_step = cfg.rollout.problems_per_step * cfg.rollout.group_size
    updates = cfg.update.num_epochs * cfg.update.num_minibatches
    say = partial(console.print, soft_wrap=True)
    say(
        f"{cfg.recipe}: {plan.algorithm.name} on {plan.train.name} → {plan.folder.path}\n"
        f"  {cfg.rollout.problems_per_step} problems × {cfg.rollout.group_size} completions = {per_step} "
        f"completions a step, {updates} update{'s' * (updates > 1)} of "
        f"{per_step // cfg.update.num_minibatches} each; {cfg.train.num_steps} steps"
    )
    demonstrations = [plan.demonstrations.train] if plan.demonstrations else []
    for problems in (*demonstrations, plan.train, *plan.held_out.values()):
        say(f"  {problems.describe()}")


def _program() -> str:
    """How this command line can be called from here."""
    script = Path(sys.executable).with_name("mathrl")
    if shutil.which("mathrl"):
        return "mathrl"
    return os.path.relpath(script) if script.exists() else "python -m mathrl.cli"


class Run:
    """One run folder and what works in it."""

    def __init__(self, plan: Plan, console: Console) -> None:
        self.plan, self.config, self.folder, self.console = plan, plan.config, plan.folder, console
        self.progress = Progress(console)
        self.seconds: dict[str, float] = defaultdict(float)
        self.interrupted = False
        if self.config.run.num_threads:
            torch.set_num_threads(self.config.run.num_threads)

    def train(self) -> int:
        """Reference, evaluation, reinforcement, evaluation, summary, report."""
        with self.progress, ExitStack() as stack:
            try:
                finished = self._train(stack)
            except KeyboardInterrupt:
                finished = False
        if not finished:
            self.console.print(self._interrupted(), soft_wrap=True)
            return EXIT_INTERRUPTED
        return 0

    def _train(self, stack: ExitStack) -> bool:
        cfg = self.config
        reference = self.reference()
        self.scorer = RewardScorer(cfg.reward, extract_rule(cfg.data), make_reward_model(cfg.reward))
        stack.callback(self.scorer.close)
        self.policy = Policy.from_pretrained(reference, cfg)
        self.template: PromptTemplate = make_template(cfg, self.policy.tokenizer)
        self.engine: Engine
        self.engine, reason = make_engine(cfg, self.policy, self.template.encode)
        stack.callback(self.engine.close)
        self.console.print(f"  engine: {reason}", soft_wrap=True)
        self.engine.load(self.policy.adapter(), version=0)
        before = self._evaluate_all("before")

        if not self._reinforce(stack):
            return False
        export_adapter(self.folder.adapter, self.policy.adapter(), reference)
        after = self._evaluate_all("after")
        self._finish(before, after)
        return True

    def reference(self) -> str:
        """Path of the reference model: the recipe's own, or the one its supervised stage makes."""
        cfg = self.config
        if cfg.sft.skip:
            return cfg.model.path
        if not self.folder.reference.is_dir():
            with (
                self._timed("sft"),
                self.progress.stage("SFT", cfg.sft.max_train_steps) as stage,
                closing(SftTracker(self.folder, cfg.tracking)) as tracker,
            ):

                def on_metrics(step: int, metrics: Metrics) -> None:
                    tracker.log(step, metrics)
                    stage.show(step, metrics)

                train_reference(
                    cfg,
                    self.folder.reference,
                    demonstrations=self.plan.demonstrations,
                    progress=stage,
                    on_metrics=on_metrics,
                )
        return str(self.folder.reference)

    def _evaluate_all(self, when: str) -> dict[str, Evaluation]:
        cfg, found = self.config.evaluate, {}
        for name in self.plan.held_out:
            file = f"{when}.jsonl" if name == HELD_OUT else f"{name}_{when}.jsonl"
            found[name] = self._evaluate(f"{name} {when}", name, cfg.num_problems, cfg.num_samples, file)
        return found

    def _evaluate(self, title: str, name: str, n: int, num_samples: int, file: str = "") -> Evaluation:
        cfg = self.config
        problems = self.plan.held_out[name].problems[:n]
        with self._timed("evaluate"), self.progress.stage(title, len(problems) * (1 + num_samples)) as stage:
            return evaluate(
                self.engine,
                problems,
                self.scorer,
                EvaluationSettings(
                    cfg.evaluate.max_completion_tokens or cfg.rollout.max_completion_tokens,
                    num_samples,
                    cfg.evaluate.temperature,
                    prompt=self.template.describe(),
                ),
                seed=derive_seed(cfg.run.seed, "evaluate"),
                name=name,
                out=self.folder.evaluations / file if file else None,
                progress=stage,
            )

    def _reinforce(self, stack: ExitStack) -> bool:
        """The training loop; false where it was interrupted."""
        cfg = self.config
        self.store = CheckpointStore(self.folder.checkpoints, cfg.checkpoint.keep_last)
        self.trainer = Trainer(
            cfg,
            self.plan.algorithm,
            ProblemStream(self.plan.train.problems, cfg.run.seed),
            self.engine,
            self.scorer,
            self.policy,
            make_update(cfg, self.plan.algorithm, self.policy, engine_exact=self.engine.exact_logprobs),
            Hooks(self._after_step, self._should_stop, self._on_batch),
            Sentinel(self.engine, self.policy, self.plan.train.problems, cfg.rollout.max_sync_gap),
        )
        self.best = {"accuracy_low": -1.0, "step": 0, "worse": 0}
        self.tokens_sampled = 0
        self.saved_batch: Path | None = None  # of the step under way
        self.doctor = Doctor(cfg)
        newest = self.store.latest()
        if newest is not None:
            state = self.store.load(newest)
            self.trainer.restore(state["trainer"])
            self.best, self.tokens_sampled = state["best"], state["tokens_sampled"]
            self.seconds.update(state["seconds"])
            self.console.print(f"  resumed after step {self.trainer.steps_done}")
        self.tracker = Tracker(self.folder, cfg, self.trainer.steps_done)
        stack.callback(self.tracker.close)
        with self._catch_interrupt(), self.progress.stage("train", cfg.train.num_steps) as self.bar:
            self.bar(self.trainer.steps_done, cfg.train.num_steps)
            try:
                self.trainer.run()
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}; {self._keep_evidence()}", error.rows) from error
        if self.store.latest() is None or self.saved_step != self.trainer.steps_done:
            self._save()
        return not self.interrupted

    def _on_batch(self, index: int, batch: Batch) -> None:
        self.batch = (index + 1, batch)
        every = self.config.tracking.save_batch_steps
        self.saved_batch = self._save_batch() if every and (index + 1) % every == 0 else None

    def _save_batch(self) -> Path:
        step, batch = self.batch
        return save_batch(
            self.folder.batches,
            self.config,
            self.policy,
            self.trainer.update,
            batch,
            step=step,
            reference=self.reference(),
        )

    def _keep_evidence(self) -> str:
        """Keep the batch whose step was not made; where it is, and which checkpoint is good."""
        newest = self.store.latest()
        good = f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
        return f"{good}; the batch is kept for mathrl replay {self._save_batch()}"

    def _after_step(self, done: int, metrics: Metrics, groups: Sequence[Group]) -> None:
        cfg = self.config
        self.tokens_sampled += int(metrics["tokens/sampled"])
        metrics["memory/rss_mib"] = psutil.Process().memory_info().rss / 2**20
        if self.policy.device.type == "cuda":
            metrics["memory/gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        for name, value in metrics.items():
            if name.startswith("time/") and name != "time/step_s":
                self.seconds[name.removeprefix("time/").removesuffix("_s")] += value
        improved = False
        if cfg.evaluate.every_steps and done % cfg.evaluate.every_steps == 0:
            improved = self._held_out(done, metrics)
        self.tracker.log(done, metrics)
        if self.saved_batch:
            save_metrics(self.saved_batch, metrics)
            self.saved_batch = None
        self.tracker.samples(done, groups)
        self.bar.show(done, metrics)
        for finding in self.doctor.observe(done, metrics):
            tell(self.console, finding)
        if improved or (cfg.checkpoint.every_steps and done % cfg.checkpoint.every_steps == 0):
            self._save(best=improved)

    def _held_out(self, done: int, metrics: Metrics) -> bool:
        """Add held-out accuracy to the metrics; whether its lower bound is the best so far."""
        start = time.perf_counter()
        evaluation = self._evaluate(f"step {done}", HELD_OUT, self.config.evaluate.every_num_problems, 0)
        metrics |= evaluation.metrics() | {"time/evaluate_s": time.perf_counter() - start}
        self.tracker.watch(done, evaluation.records[: self.config.tracking.num_watched])
        improved = metrics["held_out/accuracy_low"] > self.best["accuracy_low"]
        if improved:
            self.best = {"accuracy_low": metrics["held_out/accuracy_low"], "step": done, "worse": 0}
        else:
            self.best["worse"] += 1
        return improved

    def _should_stop(self, done: int) -> bool:
        patience = self.config.evaluate.early_stop_patience
        return self.interrupted or bool(patience and self.best["worse"] >= patience)

    def _save(self, best: bool = False) -> None:
        state = {
            "trainer": self.trainer.state(),
            "best": self.best,
            "tokens_sampled": self.tokens_sampled,
            "seconds": dict(self.seconds),
        }
        self.store.save(self.trainer.steps_done, state, best=best)
        self.saved_step = self.trainer.steps_done

    def _finish(self, before: dict[str, Evaluation], after: dict[str, Evaluation]) -> None:
        cfg = self.config
        summary = build_summary(
            before,
            after,
            recipe=cfg.recipe,
            algorithm=self.plan.algorithm.name,
            data=self.plan.train.name,
            demonstration=self.plan.train.demonstration,
            steps=self.trainer.steps_done,
            num_steps=cfg.train.num_steps,
            best_step=self.best["step"],
            seconds={phase: round(value, 3) for phase, value in self.seconds.items()},
            tokens_sampled=self.tokens_sampled,
            seed=cfg.run.seed,
            engine=self.engine.name,
            finished=True,
        )
        write_json(self.folder.summary, summary)
        self.tracker.close()
        report = write_report(self.folder.path)
        self.progress.close()
        print_summary(self.console, summary)
        self.console.print(f"report: {report}\nadapter: {self.folder.adapter}", soft_wrap=True)

    def _interrupted(self) -> str:
        """What a checkpoint or a finished stage keeps, and how to go on."""
        if self.config.sft.skip or self.folder.reference.is_dir():
            kept = "what was done is saved"
        else:
            kept = "the supervised stage begins anew"
        return f"Interrupted; {kept}. Go on with: {_program()} train {self.folder.config} --resume"

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - start

    @contextmanager
    def _catch_interrupt(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the loop after the step under way; a second one at once."""

        def stop(signum: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            self.console.print("stopping after this step; once more to stop at once")

        handlers = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
