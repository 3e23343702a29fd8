"""The main job: problems -> reference -> evaluation -> reinforcement -> evaluation -> report.

Every stage leaves its result in the folder and is skipped when it is found there: a run goes on where it
stopped, and ends as it would have without the interruption.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mathrl.commands.export import export_adapter
from mathrl.commands.held_out import HeldOut
from mathrl.commands.launch import OPTIONS
from mathrl.commands.opening import opening
from mathrl.commands.prepare import Additions, PreparedRun, prepare
from mathrl.commands.python_words import in_python
from mathrl.commands.watch import Watch
from mathrl.commands.workspace import Workspace
from mathrl.config import Config
from mathrl.data.few_shot import template_with_examples
from mathrl.data.history import History
from mathrl.data.problems import extract_rule
from mathrl.data.stream import make_stream
from mathrl.distributed.agreement import on_rank_0, together
from mathrl.distributed.collectives import gather
from mathrl.distributed.session import keep_last_words, ranks
from mathrl.distributed.shared_folder import check_shared
from mathrl.errors import NonFiniteError, Stopped, UserError
from mathrl.evaluation.evaluate import Evaluation
from mathrl.policy.model import Policy
from mathrl.report.run_page import write_report
from mathrl.report.summary import build_summary, print_summary
from mathrl.rewards.learned import make_reward_model
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.base import Engine
from mathrl.rollout.engine_choice import make_engine
from mathrl.rollout.stop_text import with_stop
from mathrl.run.checkpoint import CheckpointStore
from mathrl.run.files import write_json
from mathrl.run.progress import Progress, make_console
from mathrl.run.stop import StopSignals
from mathrl.run.tally import Tally
from mathrl.run.tracking import SftTracker, Tracker
from mathrl.training.given_adapter import make_merged_reference
from mathrl.training.sentinel import Sentinel
from mathrl.training.sft import planned_steps, train_reference
from mathrl.training.trainer import Metrics, Trainer
from mathrl.training.update import make_update


def train(
    config: Config, *, resume: bool = False, overwrite: bool = False, additions: Additions | None = None
) -> int:
    """Run the whole job, on all ranks where there are several; returns the exit status."""
    with ranks() as session:
        status = _train(config, resume=resume, overwrite=overwrite, additions=additions)
        if status:
            session.end_with(status)
    return status


def _train(config: Config, *, resume: bool, overwrite: bool, additions: Additions | None) -> int:
    console = make_console()
    with together("checking the recipe"):
        run = prepare(config, resume=resume, overwrite=overwrite, additions=additions)
    summary = run.folder.read_summary() if run.goes_on else None
    if summary is not None and _no_step_is_left(summary, config):
        advice = (
            "a larger --train.num_steps goes on, another --run.name trains anew, mathrl eval measures it "
            "otherwise."
        )
        console.print(
            f"The run in {run.folder.path} is finished after {summary['steps']} steps; "
            + (in_python(advice) if run.called else advice),
            soft_wrap=True,
            markup=False,
        )
        print_summary(console, summary)
        return 0 if run.folder.report.is_file() else _at_work(run, console, _only_report, overwrite=False)
    for line in opening(run):
        console.print(line, soft_wrap=True, markup=False)
    return _at_work(run, console, _stages, overwrite=overwrite)


def make_reference(config: Config, *, resume: bool = False, overwrite: bool = False) -> int:
    """Only the supervised stage; returns the exit status."""
    if config.sft.skip:
        raise UserError("sft.skip is set: this recipe has no supervised stage")
    with ranks() as session:
        console = make_console()
        with together("checking the recipe"):
            run = prepare(config, resume=resume, overwrite=overwrite)
            if run.config.sft.skip:
                raise UserError(f"no problem of {run.train.name} has a worked solution to learn from")
        status = _at_work(run, console, _only_reference, overwrite=overwrite)
        if status:
            session.end_with(status)
    return status


def _only_reference(space: Workspace) -> None:
    space.progress.console.print(f"reference: {_reference(space)}", soft_wrap=True)


def _only_report(space: Workspace) -> None:
    report = on_rank_0("writing the report", lambda: write_report(space.run.folder.path))
    space.progress.console.print(f"report: {report}", soft_wrap=True)


def _at_work(
    run: PreparedRun,
    console: Console,
    work: Callable[[Workspace], None],
    *,
    overwrite: bool,
) -> int:
    """Work in the run's folder, this run alone; the exit status."""
    if run.config.run.num_threads:
        torch.set_num_threads(run.config.run.num_threads)
    folder = run.folder.open(run.config, overwrite=overwrite)  # rank 0 holds it for all
    try:
        with ExitStack() as stack:
            on_rank_0("opening the run folder", lambda: stack.enter_context(folder))
            check_shared(run.folder.path)
            stop = stack.enter_context(StopSignals(console))
            work(Workspace(run, stack.enter_context(Progress(console)), stop, Tally()))
    except KeyboardInterrupt as interrupt:
        stopped = Stopped.of(interrupt)
        console.print(f"Stopped by {stopped.signum.name}. {_how_to_go_on(run)}", soft_wrap=True)
        return stopped.exit_status
    return 0


def _no_step_is_left(summary: Mapping[str, Any], config: Config) -> bool:
    """Whether a run that ended so has nothing more to do; a larger limit lets it go on."""
    if not summary["finished"]:
        return False
    most = config.train.max_seconds
    return (
        summary["steps"] >= config.train.num_steps
        or (summary.get("stopped_early", False) and summary["num_steps"] >= config.train.num_steps)
        or 0 < most <= summary.get("step_seconds", 0.0)
    )


def _stages(space: Workspace) -> None:
    """Reference, evaluation, reinforcement, evaluation, summary."""
    run, cfg = space.run, space.run.config
    with ExitStack() as stack:
        tracker = on_rank_0("opening the metrics", lambda: stack.enter_context(closing(_open_tracker(run))))
        reference = _reference(space)
        with together("loading the model and starting the engine"):
            scorer = RewardScorer(
                cfg.reward, extract_rule(cfg.data), make_reward_model(cfg.reward), run.reward_functions
            )
            stack.callback(scorer.close)  # its processes start while the model loads
            policy = Policy.from_pretrained(reference, cfg)
            template = template_with_examples(cfg, policy.tokenizer, run.shown)
            scorer.prompt_text = template.text
            engine, reason = make_engine(cfg, policy, template.encode)
            engine = with_stop(engine, template.stop, policy.tokenizer)
            stack.callback(engine.close)
            engine.load(policy.adapter(), version=0)
        space.progress.console.print(f"  engine: {reason}", soft_wrap=True)
        held_out = HeldOut(space, engine, scorer, template)

        before = held_out.measure("before")
        with together("preparing to train"):
            trainer = _make_trainer(run, policy, engine, scorer)
        if trainer.overlap:
            space.progress.console.print("  training: while others of a step are sampled")
        elif cfg.train.overlap == "on" or (cfg.train.overlap == "auto" and policy.device.type == "cuda"):
            why = f"  training: after sampling, for {trainer.why_in_turn}"
            space.progress.console.print(why, soft_wrap=True, markup=False)
        early = _reinforce(space, trainer, held_out, tracker, reference)
        adapter = policy.adapter()
        on_rank_0(
            "exporting",
            lambda: export_adapter(run.folder.adapter, adapter, reference, policy.tokenizer),
        )
        after = held_out.measure("after")
        on_rank_0("finishing", lambda: _finish(space, trainer, before, after, stopped_early=early))


def _open_tracker(run: PreparedRun) -> Tracker:
    """Before anything that takes long: a tracker that refuses is heard of at once."""
    steps = CheckpointStore(run.folder.checkpoints, run.config.checkpoint.keep_last).steps()
    return Tracker(run.folder, run.config, steps[-1] if steps else 0)


def _reference(space: Workspace) -> str:
    """Path of the reference model: the recipe's own, or the one its supervised stage makes."""
    run, cfg, folder = space.run, space.run.config, space.run.folder
    if not cfg.makes_reference:
        return cfg.model.path
    if gather(folder.reference.is_dir())[0]:
        return str(folder.reference)
    if cfg.sft.skip:
        kept = on_rank_0("merging", lambda: make_merged_reference(cfg, folder.reference))
        if kept is not None and kept < 0.995:
            space.progress.console.print(
                f"  merged: rounding to half precision keeps {kept:.1%} of the adapter's change"
            )
        return str(folder.reference)
    assert run.demonstrations is not None
    steps = planned_steps(cfg.sft, run.demonstrations) + cfg.sft.direct_answer_steps
    with (
        space.tally.timed("sft"),
        space.progress.stage("SFT", steps) as stage,
        ExitStack() as stack,
    ):
        tracker = on_rank_0(
            "opening the metrics",
            lambda: stack.enter_context(closing(SftTracker(folder, cfg.tracking))),
        )

        def on_metrics(step: int, metrics: Metrics) -> None:
            if tracker is not None:
                tracker.log(step, metrics)
            stage.show(step, metrics)

        train_reference(
            cfg,
            folder.reference,
            demonstrations=run.demonstrations,
            progress=stage,
            on_metrics=on_metrics,
            adapter_dir=None if cfg.model.adapter else folder.sft_adapter,  # made for model.path alone
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
    space: Workspace, trainer: Trainer, held_out: HeldOut, tracker: Tracker | None, reference: str
) -> bool:
    """From the newest checkpoint, if there is one, to the last step; whether it stopped early."""
    run, stop, num_steps = space.run, space.stop, space.run.config.train.num_steps
    store = CheckpointStore(run.folder.checkpoints, run.config.checkpoint.keep_last)
    newest = gather(store.latest())[0]
    if newest is not None:
        with together("reading the checkpoint"):
            state = store.load(newest)
            trainer.restore(state["trainer"])
            space.tally.restore(state)
        space.progress.console.print(f"  resumed after step {trainer.steps_done}")
        if trainer.problems.changed:
            told = f"  {run.train.name} holds other problems than then: a new epoch of them begins"
            space.progress.console.print(told, soft_wrap=True, markup=False)
    with stop.deferred(), space.progress.stage("train", num_steps) as bar:
        bar(trainer.steps_done, num_steps)
        watch = Watch(space, trainer, held_out, tracker, store, reference, bar)
        trainer.hooks = watch.hooks
        keep_last_words(watch.save_in_need)
        try:
            watch.catch_up()
            if not (trainer.ended or watch.stopped_early):
                kept = on_rank_0("setting results aside", run.folder.set_results_aside)
                if kept is not None:
                    space.progress.console.print(f"  the results so far are kept in {kept}", soft_wrap=True)
                trainer.run()
            else:
                trainer.prove()  # the weights that are evaluated now
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {watch.evidence()}", error.rows) from error
        except Stopped as stopped:
            if not stopped.forced:
                watch.save_last()
            raise
        watch.save_last()
        keep_last_words(None)
    with together("stopping"):
        stop.raise_if_asked()
    return watch.stopped_early


def _finish(
    space: Workspace,
    trainer: Trainer,
    before: dict[str, Evaluation],
    after: dict[str, Evaluation],
    *,
    stopped_early: bool,
) -> None:
    """Write summary and report, and say what was reached."""
    run, tally, console = space.run, space.tally, space.progress.console
    cfg, folder = run.config, run.folder
    summary = build_summary(
        before,
        after,
        recipe=cfg.recipe,
        algorithm=run.algorithm.name,
        data=run.train.name,
        demonstration=run.train.demonstration,
        steps=trainer.steps_done,
        num_steps=cfg.train.num_steps,
        step_seconds=round(trainer.seconds, 3),
        stopped_early=stopped_early,
        best_step=tally.best_step,
        seconds={phase: round(value, 3) for phase, value in tally.seconds.items()},
        tokens_sampled=tally.tokens_sampled,
        seed=cfg.run.seed,
        engine=trainer.engine.name,
        finished=True,
    )
    write_json(folder.summary, summary)
    report = write_report(folder.path)
    space.progress.close()
    print_summary(console, summary)
    console.print(f"report: {report}\nadapter: {folder.adapter}", soft_wrap=True)


def _how_to_go_on(run: PreparedRun) -> str:
    """What is kept, and the command, or the call, that goes on from there."""
    steps = CheckpointStore(run.folder.checkpoints, run.config.checkpoint.keep_last).steps()
    if steps:
        kept = f"Step {steps[-1]} of {run.config.train.num_steps} is saved"
    elif run.config.sft.skip or run.folder.reference.is_dir():
        kept = "What was done is saved"
    else:
        kept = "The supervised stage begins anew"
    if run.called:
        return f"{kept}. The same call goes on with resume=True"
    options = f" {os.environ[OPTIONS]}" if OPTIONS in os.environ else ""
    return f"{kept}. Go on with: {_program()} train {shlex.quote(str(run.folder.config))} --resume{options}"


def _program() -> str:
    """How this command line can be called from here."""
    script = Path(sys.executable).with_name("mathrl")
    if shutil.which("mathrl"):
        return "mathrl"
    return os.path.relpath(script) if script.exists() else "python -m mathrl.cli"
