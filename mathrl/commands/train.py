"""The main job: problems -> reference -> evaluation -> reinforcement -> evaluation -> report.

Every stage leaves its result in the folder and is skipped when it is found there: a run goes on where it
stopped, and ends as it would have without the interruption.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from mathrl.commands.export import export_adapter
from mathrl.commands.held_out import HeldOut
from mathrl.commands.prepare import Additions, PreparedRun, prepare
from mathrl.commands.watch import Watch
from mathrl.config import Config
from mathrl.data.history import History
from mathrl.data.problems import extract_rule
from mathrl.data.prompts import make_template
from mathrl.data.stream import make_stream
from mathrl.errors import NonFiniteError, UserError
from mathrl.evaluation.evaluate import Evaluation
from mathrl.policy.model import Policy
from mathrl.report.run_page import write_report
from mathrl.report.summary import build_summary, print_summary
from mathrl.rewards.learned import make_reward_model
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.rollout.engine_choice import make_engine
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.folder import write_json
from mathrl.run.interrupt import Interrupts
from mathrl.run.progress import Progress, make_console
from mathrl.run.tally import Tally
from mathrl.run.tracking import SftTracker
from mathrl.training.sentinel import Sentinel
from mathrl.training.sft import train_reference
from mathrl.training.trainer import Metrics, Trainer
from mathrl.training.update import make_update

EXIT_INTERRUPTED = 130


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, additions: Additions | None = None
) -> int:
    """Run the whole job; returns the exit status."""
    console = make_console()
    run = prepare(config, resume=resume, overwrite=overwrite, additions=additions)
    summary = run.folder.read_summary()
    if summary and summary["finished"] and summary["num_steps"] == config.train.num_steps and not overwrite:
        console.print(f"The run in {run.folder.path} is finished; --overwrite trains it anew.")
        print_summary(console, summary)
        return 0
    _announce(console, run)
    run.folder.open(config, overwrite=overwrite)
    with Progress(console) as progress:
        try:
            finished = _stages(run, progress)
        except KeyboardInterrupt:
            finished = False
    if not finished:
        console.print(_how_to_go_on(run), soft_wrap=True)
        return EXIT_INTERRUPTED
    return 0


def make_reference(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Only the supervised stage; returns the exit status."""
    if config.sft.skip:
        raise UserError("sft.skip is set: this recipe has no supervised stage")
    console = make_console()
    run = prepare(config, resume=resume, overwrite=overwrite)
    run.folder.open(config, overwrite=overwrite)
    _set_threads(config)
    with Progress(console) as progress:
        console.print(f"reference: {_reference(run, progress, Tally())}")
    return 0


def _stages(run: PreparedRun, progress: Progress) -> bool:
    """Reference, evaluation, reinforcement, evaluation, summary; false where it was interrupted."""
    cfg, tally = run.config, Tally()
    _set_threads(cfg)
    reference = _reference(run, progress, tally)
    with ExitStack() as stack:
        scorer = RewardScorer(
            cfg.reward, extract_rule(cfg.data), make_reward_model(cfg.reward), run.reward_functions
        )
        stack.callback(scorer.close)  # its processes start while the model loads
        policy = Policy.from_pretrained(reference, cfg)
        template = make_template(cfg, policy.tokenizer)
        scorer.prompt_text = template.text
        engine, reason = make_engine(cfg, policy, template.encode)
        stack.callback(engine.close)
        progress.console.print(f"  engine: {reason}", soft_wrap=True)
        engine.load(policy.adapter(), version=0)
        held_out = HeldOut(run, engine, scorer, template, progress, tally)

        before = held_out.measure("before")
        trainer = _make_trainer(run, policy, engine, scorer)
        if not _reinforce(run, trainer, held_out, progress, tally, reference):
            return False
        export_adapter(run.folder.adapter, policy.adapter(), reference)
        after = held_out.measure("after")
        _finish(run, trainer, tally, before, after, progress)
    return True


def _reference(run: PreparedRun, progress: Progress, tally: Tally) -> str:
    """Path of the reference model: the recipe's own, or the one its supervised stage makes."""
    cfg, folder = run.config, run.folder
    if cfg.sft.skip:
        return cfg.model.path
    if folder.reference.is_dir():
        return str(folder.reference)
    with (
        tally.timed("sft"),
        progress.stage("SFT", cfg.sft.max_train_steps) as stage,
        closing(SftTracker(folder, cfg.tracking)) as tracker,
    ):

        def on_metrics(step: int, metrics: Metrics) -> None:
            tracker.log(step, metrics)
            stage.show(step, metrics)

        train_reference(
            cfg,
            folder.reference,
            demonstrations=run.demonstrations,
            progress=stage,
            on_metrics=on_metrics,
        )
    return str(folder.reference)


def _make_trainer(run: PreparedRun, policy: Policy, engine: Engine, scorer: RewardScorer) -> Trainer:
    """The loop and its update rule, at step 0."""
    cfg, problems = run.config, run.train.problems
    return Trainer(
        cfg,
        run.algorithm,
        make_stream(run.train, cfg.run.seed, History(cfg.data.history) if cfg.data.history.enabled else None),
        engine,
        scorer,
        policy,
        make_update(cfg, run.algorithm, policy, engine_exact=engine.exact_logprobs),
        sentinel=Sentinel(engine, policy, problems, cfg.rollout.max_sync_gap),
    )


def _reinforce(
    run: PreparedRun,
    trainer: Trainer,
    held_out: HeldOut,
    progress: Progress,
    tally: Tally,
    reference: str,
) -> bool:
    """From the newest checkpoint, if there is one, to the last step; false where it was interrupted."""
    console, num_steps = progress.console, run.config.train.num_steps
    store = CheckpointStore(run.folder.checkpoints, run.config.checkpoint.keep_last)
    newest = store.latest()
    if newest is not None:
        state = store.load(newest)
        trainer.restore(state["trainer"])
        tally.restore(state)
        console.print(f"  resumed after step {trainer.steps_done}")
    with Interrupts(console) as interrupts, progress.stage("train", num_steps) as bar:
        bar(trainer.steps_done, num_steps)
        watch = Watch(
            run, trainer, held_out, store, tally, interrupts, reference=reference, bar=bar, console=console
        )
        with closing(watch):
            trainer.hooks = watch.hooks
            try:
                trainer.run()
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}; {watch.evidence()}", error.rows) from error
            watch.save_last()
    return not interrupts.asked


def _finish(
    run: PreparedRun,
    trainer: Trainer,
    tally: Tally,
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
    progress: Progress,
) -> None:
    """Write summary and report, and say what was reached."""
    cfg, folder, console = run.config, run.folder, progress.console
    summary = build_summary(
        before,
        after,
        recipe=cfg.recipe,
        algorithm=run.algorithm.name,
        data=run.train.name,
        demonstration=run.train.demonstration,
        steps=trainer.steps_done,
        num_steps=cfg.train.num_steps,
        best_step=tally.best_step,
        seconds={phase: round(value, 3) for phase, value in tally.seconds.items()},
        tokens_sampled=tally.tokens_sampled,
        seed=cfg.run.seed,
        engine=trainer.engine.name,
        finished=True,
    )
    write_json(folder.summary, summary)
    report = write_report(folder.path)
    progress.close()
    print_summary(console, summary)
    console.print(f"report: {report}\nadapter: {folder.adapter}", soft_wrap=True)


def _set_threads(config: Config) -> None:
    if config.run.num_threads:
        torch.set_num_threads(config.run.num_threads)


def _announce(console: Console, run: PreparedRun) -> None:
    cfg = run.config
    per_step = cfg.rollout.problems_per_step * cfg.rollout.group_size
    updates = cfg.update.num_epochs * cfg.update.num_minibatches
    say = partial(console.print, soft_wrap=True)
    say(
        f"{cfg.recipe}: {run.algorithm.name} on {run.train.name} → {run.folder.path}\n"
        f"  {cfg.rollout.problems_per_step} problems × {cfg.rollout.group_size} completions = {per_step} "
        f"completions a step, {updates} update{'s' * (updates > 1)} of "
        f"{per_step // cfg.update.num_minibatches} each; {cfg.train.num_steps} steps"
    )
    demonstrations = [run.demonstrations.train] if run.demonstrations else []
    for problems in (*demonstrations, run.train, *run.held_out.values()):
        say(f"  {problems.describe()}")


def _how_to_go_on(run: PreparedRun) -> str:
    """What a checkpoint or a finished stage keeps, and how to go on."""
    if run.config.sft.skip or run.folder.reference.is_dir():
        kept = "what was done is saved"
    else:
        kept = "the supervised stage begins anew"
    return f"Interrupted; {kept}. Go on with: {_program()} train {run.folder.config} --resume"


def _program() -> str:
    """How this command line can be called from here."""
    script = Path(sys.executable).with_name("mathrl")
    if shutil.which("mathrl"):
        return "mathrl"
    return os.path.relpath(script) if script.exists() else "python -m mathrl.cli"
