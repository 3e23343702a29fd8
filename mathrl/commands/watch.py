"""Beside the training loop: log every step, look at held-out problems, save, keep evidence of a failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from mathrl.commands.held_out import HeldOut
from mathrl.commands.replay import save_batch, save_metrics
from mathrl.commands.workspace import Workspace
from mathrl.distributed.agreement import any_rank, on_rank_0, together
from mathrl.distributed.collectives import gather
from mathrl.report.doctor import Doctor, tell
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.progress import Stage
from mathrl.run.tracking import Tracker
from mathrl.training.sharing import agree_on_adapter, whole_batch, worst
from mathrl.training.trainer import Hooks, Metrics, Trainer
from mathrl.types import Batch, Group


class Watch:
    """All that a run writes while it trains; ``hooks`` is what the trainer calls.

    Args:
        trainer: where its checkpoint left off, if there is one.
        tracker: of rank 0; None on the others.
        reference: path or name of the reference model.
        bar: shows the steps.
    """

    def __init__(
        self,
        space: Workspace,
        trainer: Trainer,
        held_out: HeldOut,
        tracker: Tracker | None,
        store: CheckpointStore,
        reference: str,
        bar: Stage,
    ) -> None:
        self.run, self.tally, self.stop = space.run, space.tally, space.stop
        self.trainer, self.held_out, self.reference = trainer, held_out, reference
        self.tracker, self.store = tracker, store
        self.bar, self.console = bar, space.progress.console
        self.doctor = Doctor(space.run.config)
        self.hooks = Hooks(
            self.after_step,
            self.should_stop,
            self.on_batch,
            say=self._say,
            stopping=lambda: self.stop.asked is not None,
            interruptible=self.stop.interruptible,
            # what the caller's own function reads is not known
            reads=space.run.config.tracking.samples_per_step if space.run.after_step is None else None,
        )
        self.saved_step = trainer.steps_done if gather(store.latest())[0] else None
        self.counted_step = trainer.steps_done  # the last that is in the tally
        self.batch: tuple[int, Batch] | None = None  # number of the step under way, and its batch
        self.groups: Sequence[Group] = ()  # of the last step, where this process has made it

    # --- what the trainer calls -----------------------------------------------------------------------------

    def on_batch(self, index: int, batch: Batch) -> None:
        self.batch = (index + 1, batch)
        if self._keeps_batch(index + 1):
            self._save_batch()

    def after_step(self, done: int, metrics: Metrics, groups: Sequence[Group]) -> None:
        self._measure_memory(metrics)
        self.tally.add(metrics)
        self.counted_step = done
        self._write(lambda tracker: tracker.samples(done, groups))
        self.groups = groups
        self.tally.unlogged = metrics
        self.catch_up()

    def _say(self, sentence: str) -> None:
        if sentence:
            self.console.print(f"  {sentence}", soft_wrap=True, markup=False)

    def should_stop(self, done: int) -> bool:
        return self.stop.asked is not None or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether the last looks were worse than one before, as many as the recipe waits for.

        Or the caller's own ``after_step`` said so, and no more steps are asked for than then.
        """
        cfg = self.run.config
        patience = cfg.evaluate.early_stop_patience
        told = cfg.train.num_steps <= self.tally.told_to_stop_of
        return told or bool(patience and self.tally.worse >= patience)

    # --- log, look, save, evidence --------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Conclude the last step: its look, its row, its checkpoint. Nothing where that is done.

        A look can be broken off; the step's checkpoint then remembers what is missing.
        """
        cfg, done, metrics = self.run.config, self.trainer.steps_done, self.tally.unlogged
        if metrics is None:
            return
        improved = False
        if cfg.evaluate.every_steps and done % cfg.evaluate.every_steps == 0:
            improved = self._look(done, metrics)
        saves = improved or bool(cfg.checkpoint.every_steps and done % cfg.checkpoint.every_steps == 0)
        if saves:
            metrics |= agree_on_adapter(self.trainer.policy.adapter(), f"step {done}")
        self._write(lambda tracker: self._log(tracker, done, metrics))
        self.tally.unlogged = None
        if saves:
            self._save(best=improved)
        if self._told_to_stop(done, metrics):
            self.tally.told_to_stop_of = cfg.train.num_steps
            self._save()

    def _told_to_stop(self, done: int, metrics: Metrics) -> bool:
        """Whether the caller's own ``after_step``, which rank 0 asks, says that this is the end."""
        ask = self.run.after_step
        if ask is None:
            return False
        answer = on_rank_0("after_step", lambda: ask(done, metrics, self.groups))
        return any_rank(isinstance(answer, bool | np.bool_) and not answer)  # a comparison may be NumPy's

    def _measure_memory(self, metrics: Metrics) -> None:
        """The most that any rank takes."""
        own = {"memory/rss_mib": psutil.Process().memory_info().rss / 2**20}
        if self.trainer.policy.device.type == "cuda":
            own["memory/gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        metrics |= worst(gather(own))

    def _look(self, done: int, metrics: Metrics) -> bool:
        """Add held-out accuracy to the metrics; whether its lower bound is the best so far."""
        start = time.perf_counter()
        with self.stop.interruptible():
            evaluation = self.held_out.look(done)
            self.trainer.prove()  # that it was of these weights
        metrics |= evaluation.metrics() | {"time/evaluate_s": time.perf_counter() - start}
        watched = evaluation.records[: self.run.config.tracking.num_watched]
        self._write(lambda tracker: tracker.watch(done, watched))
        return self.tally.looked(done, metrics["held_out/accuracy_low"])

    def _write(self, write: Callable[[Tracker], None]) -> None:
        """Rank 0 writes, and no rank goes on where it cannot."""
        with together("writing the metrics"):
            if self.tracker is not None:
                write(self.tracker)

    def _log(self, tracker: Tracker, done: int, metrics: Metrics) -> None:
        tracker.log(done, metrics)
        if len(self.trainer.rank_seconds) > 1:
            tracker.ranks(done, self.trainer.rank_seconds)
        if self._keeps_batch(done) and self._batch_folder(done).is_dir():  # a skipped step has no batch
            save_metrics(self._batch_folder(done), metrics)
        self.bar.show(done, metrics)
        for finding in self.doctor.observe(done, metrics):
            tell(self.console, finding)

    def _keeps_batch(self, step: int) -> bool:
        every = self.run.config.tracking.save_batch_steps
        return bool(every and step % every == 0)

    def _batch_folder(self, step: int) -> Path:
        return self.run.folder.batches / f"step-{step:08d}"

    def _save(self, *, best: bool = False) -> None:
        """A checkpoint of the last whole step; rank 0 writes it."""
        step = self.trainer.steps_done
        state = {"trainer": self.trainer.state()} | self.tally.state()
        on_rank_0("writing a checkpoint", lambda: self.store.save(step, state, best=best))
        self.saved_step = step

    def save_last(self) -> None:
        """A checkpoint where the last whole step has none yet."""
        if self.saved_step != self.trainer.steps_done:
            agree_on_adapter(self.trainer.policy.adapter(), f"step {self.trainer.steps_done}")
            self._save()

    def save_in_need(self) -> None:
        """What can be kept of a run that loses a rank: the last whole step, written by whoever calls this.

        Nothing where the step under way has begun to change the policy.
        """
        whole = self.trainer.last_whole()
        if whole is None:
            return
        state, metrics = whole
        if state["steps_done"] > self.counted_step:  # made, and not yet told
            self.tally.add(metrics)
            self.tally.unlogged = metrics
        if state["steps_done"] != self.saved_step:
            self.store.save(state["steps_done"], {"trainer": state} | self.tally.state())

    def evidence(self) -> str:
        """Keep the batch whose step was not made; where it is, and which checkpoint is good."""
        newest = self.store.latest()
        good = f"the last good checkpoint is {newest}" if newest else "no checkpoint had been written yet"
        return f"{good}; the batch is kept for mathrl replay {self._save_batch()}"

    def _save_batch(self) -> Path:
        """Every rank calls it; rank 0 writes."""
        assert self.batch is not None, "the trainer announces a batch before it updates"
        step, batch = self.batch[0], whole_batch(self.batch[1])
        on_rank_0(
            "keeping a batch",
            lambda: save_batch(
                self.run.folder.batches,
                self.run.config,
                self.trainer.policy,
                self.trainer.update,
                batch,
                step=step,
                reference=self.reference,
            ),
        )
        return self._batch_folder(step)
