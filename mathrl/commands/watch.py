"""Beside the training loop: log every step, look at held-out problems, save, keep evidence of a failure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from rich.console import Console

from mathrl.commands.held_out import HeldOut
from mathrl.commands.prepare import PreparedRun
from mathrl.commands.replay import save_batch, save_metrics
from mathrl.report.doctor import Doctor, tell
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.interrupt import Interrupts
from mathrl.run.progress import Stage
from mathrl.run.tally import Tally
from mathrl.run.tracking import Tracker
from mathrl.training.trainer import Hooks, Metrics, Trainer
from mathrl.types import Batch, Group


class Watch:
    """All that a run writes while it trains; ``hooks`` is what the trainer calls.

    Args:
        trainer: where its checkpoint left off, if there is one.
        reference: path or name of the reference model.
        bar: shows the steps.
    """

    def __init__(
        self,
        run: PreparedRun,
        trainer: Trainer,
        held_out: HeldOut,
        store: CheckpointStore,
        tally: Tally,
        interrupts: Interrupts,
        *,
        reference: str,
        bar: Stage,
        console: Console,
    ) -> None:
        self.run, self.trainer, self.held_out, self.reference = run, trainer, held_out, reference
        self.store, self.tally, self.interrupts = store, tally, interrupts
        self.bar, self.console = bar, console
        self.tracker = Tracker(run.folder, run.config, trainer.steps_done)
        self.doctor = Doctor(run.config)
        self.hooks = Hooks(self.after_step, self.should_stop, self.on_batch)
        self.saved_step = trainer.steps_done if store.latest() else None
        self.batch: tuple[int, Batch] | None = None  # number of the step under way, and its batch
        self.saved_batch: Path | None = None  # of the step under way
        self.told_to_stop = False  # by the caller's own after_step

    def close(self) -> None:
        """Close what metrics go to; safe to call twice."""
        self.tracker.close()

    # --- what the trainer calls -----------------------------------------------------------------------------

    def on_batch(self, index: int, batch: Batch) -> None:
        self.batch = (index + 1, batch)
        every = self.run.config.tracking.save_batch_steps
        self.saved_batch = self._save_batch() if every and (index + 1) % every == 0 else None

    def after_step(self, done: int, metrics: Metrics, groups: Sequence[Group]) -> None:
        cfg = self.run.config
        self._measure_memory(metrics)
        self.tally.add(metrics)
        improved = False
        if cfg.evaluate.every_steps and done % cfg.evaluate.every_steps == 0:
            improved = self._look(done, metrics)
        self._log(done, metrics, groups)
        if improved or (cfg.checkpoint.every_steps and done % cfg.checkpoint.every_steps == 0):
            self.save(best=improved)
        if self.run.after_step is not None:
            self.told_to_stop = self.run.after_step(done, metrics, groups) is False

    def should_stop(self, done: int) -> bool:
        patience = self.run.config.evaluate.early_stop_patience
        return self.interrupts.asked or self.told_to_stop or bool(patience and self.tally.worse >= patience)

    # --- log, look, save, evidence --------------------------------------------------------------------------

    def _measure_memory(self, metrics: Metrics) -> None:
        metrics["memory/rss_mib"] = psutil.Process().memory_info().rss / 2**20
        if self.trainer.policy.device.type == "cuda":
            metrics["memory/gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20

    def _log(self, done: int, metrics: Metrics, groups: Sequence[Group]) -> None:
        self.tracker.log(done, metrics)
        if self.saved_batch:
            save_metrics(self.saved_batch, metrics)
            self.saved_batch = None
        self.tracker.samples(done, groups)
        self.bar.show(done, metrics)
        for finding in self.doctor.observe(done, metrics):
            tell(self.console, finding)

    def _look(self, done: int, metrics: Metrics) -> bool:
        """Add held-out accuracy to the metrics; whether its lower bound is the best so far."""
        start = time.perf_counter()
        evaluation = self.held_out.look(done)
        metrics |= evaluation.metrics() | {"time/evaluate_s": time.perf_counter() - start}
        self.tracker.watch(done, evaluation.records[: self.run.config.tracking.num_watched])
        return self.tally.looked(done, metrics["held_out/accuracy_low"])

    def save(self, *, best: bool = False) -> None:
        """A checkpoint of the last whole step."""
        step = self.trainer.steps_done
        self.store.save(step, {"trainer": self.trainer.state()} | self.tally.state(), best=best)
        self.saved_step = step

    def save_last(self) -> None:
        """A checkpoint where the last whole step has none yet."""
        if self.saved_step != self.trainer.steps_done:
            self.save()

    def evidence(self) -> str:
        """Keep the batch whose step was not made; where it is, and which checkpoint is good."""
        newest = self.store.latest()
        good = f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
        return f"{good}; the batch is kept for mathrl replay {self._save_batch()}"

    def _save_batch(self) -> Path:
        assert self.batch is not None, "the trainer announces a batch before it updates"
        step, batch = self.batch
        return save_batch(
            self.run.folder.batches,
            self.run.config,
            self.trainer.policy,
            self.trainer.update,
            batch,
            step=step,
            reference=self.reference,
        )
