"""``mathrl reward-model``: ranked pairs -> a sequence classifier of one label, its adapter, a report.

The run has a folder of its own beside the reinforcement run's. A run that was interrupted goes on from its
newest checkpoint and ends as it would have without the interruption.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from mathrl.commands.going_on import check_folder, of_reward_model
from mathrl.commands.settle import settle_micro_batch
from mathrl.config import Config
from mathrl.data.hub import check_model
from mathrl.errors import Stopped, UserError
from mathrl.evaluation.statistics import Interval, cluster_bootstrap
from mathrl.policy.loading import context_length
from mathrl.recipes import load_config
from mathrl.report.reward_model_page import HELD_OUT_FILE, write_reward_model_report
from mathrl.report.summary import hardware, versions
from mathrl.rewards.learned import load_reward_model
from mathrl.rewards.reward_model_folder import CHECKPOINT
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.files import write_json, write_text
from mathrl.run.folder import RunFolder
from mathrl.run.progress import Progress, make_console
from mathrl.run.stop import StopSignals
from mathrl.run.tracking import Tracker
from mathrl.training.reward_model_data import EncodedPair, PairSets, load_pairs
from mathrl.training.reward_model_files import RewardModel
from mathrl.training.reward_model_fit import Metrics, RewardModelFit

_CHECKED = 32  # held-out pairs whose scores by the saved checkpoint are held against the trained model's


@dataclass(frozen=True)
class Prepared:
    """A checked recipe: what is trained on what, into which folder."""

    config: Config
    folder: RunFolder
    model: RewardModel
    pairs: PairSets


def train_reward_model(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Train, measure, save, report; returns the exit status."""
    console = make_console()
    config, folder, _ = check_folder(of_reward_model(config), resume=resume, overwrite=overwrite)
    summary = folder.read_summary()
    if summary is not None and not overwrite:
        console.print(f"The reward model in {folder.path} is trained; --overwrite trains it anew.")
        _tell(console, summary, folder)
        return 0
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)
    run = prepare(config, folder)
    config = run.config
    console.print(
        f"{config.recipe}: a reward model from {run.model.base} → {folder.path}\n  {run.pairs.describe()}",
        soft_wrap=True,
    )
    try:
        with (
            folder.open(config, overwrite=overwrite),
            StopSignals(console) as stop,
            Progress(console) as progress,
        ):
            fit = RewardModelFit(config, run.model, run.pairs)
            summary = _finish(run, fit, _fit(run, fit, progress, stop))
            report = write_reward_model_report(folder.path)
    except Stopped as stopped:
        console.print(
            f"Stopped by {stopped.signum.name}; what was done is saved. Go on with: mathrl reward-model "
            f"{folder.config} --resume",
            soft_wrap=True,
        )
        return stopped.exit_status
    _tell(console, summary, folder)
    console.print(f"report: {report}", soft_wrap=True)
    return 0


def prepare(config: Config, folder: RunFolder) -> Prepared:
    """Load base and pairs; nothing is written.

    Raises:
        UserError: no base, no pairs, or anything that is wrong with them.
    """
    if not config.reward_model.pairs:
        raise UserError(
            "a reward model is trained on ranked pairs: name their file with --reward_model.pairs "
            "(mathrl pairs makes one from completions)"
        )
    base = base_of(config)
    check_model(base)
    model = RewardModel.from_base(base, config)
    context = context_length(base, trusted=config.model.trust_remote_code)
    pairs = load_pairs(config, model.tokenizer, context)
    return Prepared(with_micro_batch(config, base, pairs), folder, model, pairs)


def with_micro_batch(config: Config, base: str, pairs: PairSets) -> Config:
    """The recipe with ``update.micro_batch_tokens`` that is 0 settled by what the memory holds.

    For the plan of memory a pair is a group of two completions of one prompt, and nothing is sampled.
    """
    every = (*pairs.train, *pairs.held_out)
    ends = [max(len(p.chosen_ids), len(p.rejected_ids)) - p.num_shared for p in every]
    rollout = {
        "engine": "transformers",
        "problems_per_step": config.reward_model.batch_pairs,
        "group_size": 2,
        "max_prompt_tokens": max(8, *(p.num_shared for p in every)),
        "max_completion_tokens": max(1, *ends),
    }
    asked = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update=rollout),
            "model": config.model.model_copy(update={"path": base}),
            # "auto" looks at the steps of reinforcement; a reward model compiles where it is told to
            "update": config.update.model_copy(update={"compile": config.update.compile is True}),
        }
    )
    tokens = settle_micro_batch(asked).update.micro_batch_tokens
    return config.model_copy(
        update={"update": config.update.model_copy(update={"micro_batch_tokens": tokens})}
    )


def base_of(config: Config) -> str:
    """What the reward model starts from: reward_model.base, else the recipe's reference, else its model.

    Raises:
        UserError: the reference is not made yet.
    """
    named = config.reward_model.base
    if named:
        return _reference_of(Path(named)) or named
    run = Path(config.run.output_dir) / config.recipe
    own = _reference_of(run)
    if own and load_config(run / "config.toml").model.path == config.model.path:
        return own
    if config.model.path and not config.model.adapter:
        return config.model.path
    raise UserError(
        f"there is no reference in {run} to start from: make it with mathrl train {config.recipe}, or name a "
        "model or a run with --reward_model.base"
    )


def _reference_of(run: Path) -> str:
    """The reference of a run folder; empty where it has none, or is no run."""
    folder = RunFolder(run)
    if not folder.config.is_file():
        return ""
    own = load_config(folder.config)
    if not own.makes_reference:
        return own.model.path
    return str(folder.reference) if folder.reference.is_dir() else ""


def _fit(run: Prepared, fit: RewardModelFit, progress: Progress, stop: StopSignals) -> float:
    """From the newest checkpoint, if there is one, to the last step; the seconds of all sessions.

    Raises:
        Stopped: after the step under way, once what was done is saved.
    """
    config, console = run.config, progress.console
    store = CheckpointStore(run.folder.checkpoints, config.checkpoint.keep_last)
    before = 0.0
    newest = store.latest()
    if newest is not None:
        state = store.load(newest)
        fit.restore(state["fit"])
        before = state["seconds"]
        console.print(f"  resumed after step {fit.steps_done}")
    start, every = time.monotonic(), config.checkpoint.every_steps

    def seconds() -> float:
        return before + time.monotonic() - start

    def save(*, best: bool = False) -> None:
        store.save(fit.steps_done, {"fit": fit.state(), "seconds": seconds()}, best=best)

    with (
        closing(Tracker(run.folder, config, fit.steps_done)) as tracker,
        stop.deferred(),
        progress.stage("reward model", fit.num_steps) as bar,
    ):
        bar(fit.steps_done, fit.num_steps)

        def after_step(done: int, metrics: Metrics, improved: bool) -> None:
            tracker.log(done, metrics)
            bar.show(done, metrics)
            if improved or (every and done % every == 0):
                save(best=improved)

        fit.run(after_step, lambda: stop.asked is not None)
        if fit.steps_done not in store.steps():
            save()
    stop.raise_if_asked()
    return seconds()


def _finish(run: Prepared, fit: RewardModelFit, seconds: float) -> dict[str, Any]:
    """Measure the best weights, save them as others load them, prove it, and write the summary."""
    folder, held_out = run.folder, run.pairs.held_out
    fit.use_best()
    scores = fit.scores(held_out)
    questions = dict.fromkeys(pair.pair.asked for pair in run.pairs.train)
    checkpoint = folder.path / CHECKPOINT
    run.model.save(checkpoint, folder.adapter, questions)
    rows = [
        {"question": p.pair.asked, "chosen": _text(p, "chosen"), "rejected": _text(p, "rejected")}
        | {"chosen_tokens": len(p.chosen_ids), "rejected_tokens": len(p.rejected_ids)}
        | {"chosen_score": better, "rejected_score": worse}
        for p, (better, worse) in zip(held_out, scores.tolist(), strict=True)
    ]
    write_text(folder.path / HELD_OUT_FILE, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    summary = {
        "finished": True,
        "recipe": run.config.recipe,
        "base": run.model.base,
        "seed": run.config.run.seed,
        "steps": fit.steps_done,
        "best_step": fit.best.step,
        "seconds": round(seconds, 3),
        "tokens": fit.tokens,
        "pairs": {
            "train": len(run.pairs.train),
            "held_out": len(held_out),
            "train_questions": len(questions),
            "held_out_questions": len({p.pair.key for p in held_out}),
            "left_out_long": run.pairs.num_long,
            "left_out_held_out": run.pairs.num_asked_twice,
        },
        "held_out": {"loss": fit.best.loss} | measure(held_out, scores),
        "saved_gap": saved_gap(checkpoint, held_out[:_CHECKED], scores[:_CHECKED]),
        "hardware": hardware(),
        "versions": versions(),
    }
    write_json(folder.summary, summary)
    return summary


def _text(pair: EncodedPair, side: str) -> str:
    return "\n".join(m["content"] for m in getattr(pair.pair, side))


def measure(pairs: Sequence[EncodedPair], scores: Tensor) -> dict[str, Any]:
    """Pair accuracy with its interval, of all pairs and by which side is longer.

    A mean over questions of the share of their pairs that are ranked right (equal scores count half), with a
    bootstrap interval over questions: pairs of one question are not independent draws.
    """
    longer = [len(p.chosen_ids) - len(p.rejected_ids) for p in pairs]
    parts = {
        "chosen longer": [d > 0 for d in longer],
        "chosen shorter": [d < 0 for d in longer],
        "as long": [d == 0 for d in longer],
    }
    gaps = (scores[:, 0] - scores[:, 1]).tolist()
    by = {}
    for name, inside in parts.items():
        if any(inside):
            accuracy, interval = _accuracy(pairs, gaps, inside)
            by[name] = {"pairs": sum(inside), "accuracy": accuracy, "ci95": list(interval)}
    accuracy, interval = _accuracy(pairs, gaps, [True] * len(gaps))
    return {"accuracy": accuracy, "ci95": list(interval), "by_length": by}


def _accuracy(
    pairs: Sequence[EncodedPair], gaps: Sequence[float], inside: Sequence[bool]
) -> tuple[float, Interval]:
    shares: dict[str, list[float]] = defaultdict(list)
    for pair, gap, kept in zip(pairs, gaps, inside, strict=True):
        if kept:
            shares[pair.pair.key].append((gap > 0) + 0.5 * (gap == 0))
    values = np.array([[sum(v) / len(v)] for v in shares.values()])
    (interval,) = cluster_bootstrap(values)
    return float(values.mean()), interval


def saved_gap(checkpoint: Path, pairs: Sequence[EncodedPair], scores: Tensor) -> float:
    """Largest difference between scores of the trained model and of the checkpoint as it was saved."""
    saved = load_reward_model(str(checkpoint), "the saved checkpoint")
    texts = [(*p.pair.question, *side) for p in pairs for side in (p.pair.chosen, p.pair.rejected)]
    return float((torch.tensor(saved.score(texts)) - scores.flatten()).abs().max())


def _tell(console: Console, summary: dict[str, Any], folder: RunFolder) -> None:
    held_out, num = summary["held_out"], summary["pairs"]
    low, high = held_out["ci95"]
    console.print(
        f"held-out pairs ranked right: {held_out['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}] of "
        f"{num['held_out']:,} pairs of {num['held_out_questions']:,} questions, with the weights of step "
        f"{summary['best_step']} of {summary['steps']} (chosen by the loss on these pairs), in "
        f"{summary['seconds']:.0f} s",
        soft_wrap=True,
    )
    for name, part in held_out["by_length"].items():
        low, high = part["ci95"]
        console.print(
            f"  {name}: {part['accuracy']:.1%} [{100 * low:.1f}, {100 * high:.1f}] of {part['pairs']:,}"
        )
    console.print(
        f"reward model: {folder.path / CHECKPOINT}\nadapter: {folder.adapter}\n"
        f"  it scores with --reward.model_path {folder.path} --reward.model_weight W, and ranks with "
        f"--rank-by {folder.path}",
        soft_wrap=True,
    )
