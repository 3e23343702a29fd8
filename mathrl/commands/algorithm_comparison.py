"""Algorithms on one budget: ``mathrl compare`` without runs, ``make compare``.

All start from one reference and see the same problems; each is trained from several seeds until a budget of
sampled tokens is spent, and until a budget of seconds is, and is evaluated at both. Every trial is a process
of its own, so that its peak memory is its own. Finished trials are kept: an interrupted comparison goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from rich.console import Console

from mathrl.errors import UserError, did_you_mean

Overrides = Sequence[tuple[str, str]]

if TYPE_CHECKING:  # loading torch takes seconds, and comparing finished runs needs none of it
    from mathrl.config import Config, UpdateConfig

RECIPE = "quickstart"
DEFAULT_OUT = Path("runs/algorithms")
TOKENS, SECONDS, SEEDS = 50_000, 40.0, 3

COMPARED: dict[str, dict[str, Any]] = {
    "trpo": {"trust_region_kl": 0.005, "fisher_fraction": 0.125, "cg_iterations": 6},
    "ppo": {},
    "grpo": {},
    "reinforce": {},
}
"""Algorithms, and the knobs that only they have; everything else is the recipe's for all of them."""


_GROUP = Group("Without RUN: algorithms on one budget")


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """What is compared, on which budget."""

    algorithms: Annotated[str, Parameter(help="names joined by commas")] = ",".join(COMPARED)
    seeds: Annotated[int, Parameter(help="trials of each")] = SEEDS
    tokens: Annotated[int, Parameter(help="budget in sampled tokens")] = TOKENS
    seconds: Annotated[float, Parameter(help="budget in seconds of training")] = SECONDS
    jobs: Annotated[int, Parameter(help="trials at once; 0: one a core, at most 4")] = 0
    overwrite: Annotated[
        bool, Parameter(help="replace what --out holds", show_default=False, group="Parameters")
    ] = False


def compare_algorithms(options: ComparisonOptions, overrides: Overrides, out: Path | None = None) -> int:
    """Run what is missing, print the table, write the page into ``out``."""
    from mathrl.report.algorithm_page import print_table, write_page
    from mathrl.report.summary import versions
    from mathrl.run.progress import make_console

    console = make_console()
    base, trials = plan_trials(options, overrides)
    folder = out or DEFAULT_OUT
    start = time.perf_counter()
    with open_folder(base, folder, overwrite=options.overwrite):
        reference = make_reference(console, base, folder)
        found = list(run_all(console, options, base, trials, folder, reference))
    result = {
        "recipe": base.recipe,
        "budgets": {"tokens": options.tokens, "seconds": options.seconds},
        "problems": base.evaluate.num_problems,
        "jobs": jobs_of(options, base),
        "cores": os.cpu_count(),
        "device": "cuda" if _on_cuda(base) else "cpu",
        "settings": {name: COMPARED.get(name, {}) for name in names_of(options)},
        "reference": found[0],
        "trials": found[1:],
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(),
    }
    page = write_page(folder, result)
    print_table(console, result)
    console.print(f"page: {page}", soft_wrap=True)
    return 0


def names_of(options: ComparisonOptions) -> list[str]:
    return [name.strip() for name in options.algorithms.split(",") if name.strip()]


def plan_trials(options: ComparisonOptions, overrides: Overrides) -> tuple[Config, list[Config]]:
    """The recipe, and the configuration of every trial: all seeds of all algorithms.

    Raises:
        UserError: an unknown algorithm, a budget below nothing, or a combination that cannot be.
    """
    from mathrl.algorithms.table import ALGORITHMS, resolve_algorithm
    from mathrl.recipes import load_recipe

    for option in ("seeds", "tokens", "seconds"):
        if getattr(options, option) <= 0:
            raise UserError(f"--{option} must be more than 0, got {getattr(options, option)}")
    if any(key == "algorithm.name" for key, _ in overrides):
        raise UserError("--algorithm.name names one algorithm: say which to compare with --algorithms")
    base = load_recipe(RECIPE, overrides)
    if base.data.shots:
        raise UserError("--data.shots: algorithms are compared without worked examples in the prompt")
    set_by_user = {key.removeprefix("algorithm.") for key, _ in overrides}
    trials = []
    for seed in range(options.seeds):
        for name in names_of(options):
            if name not in ALGORITHMS:
                raise UserError(f"--algorithms: no algorithm {name!r}; {did_you_mean(name, ALGORITHMS)}")
            knobs = {k: v for k, v in COMPARED.get(name, {}).items() if k not in set_by_user}
            section = base.algorithm.model_copy(update={"name": name, **knobs})
            resolve_algorithm(section, base.rollout, base.update)
            trials.append(
                base.model_copy(
                    update={
                        "algorithm": section,
                        "run": base.run.model_copy(update={"seed": base.run.seed + seed}),
                        "train": base.train.model_copy(update={"num_steps": 1_000_000}),
                        "update": constant_rate(base.update),
                    }
                )
            )
    return base, trials


def constant_rate(update: UpdateConfig) -> UpdateConfig:
    """The recipe's update at a constant learning rate, the mean of the recipe's.

    A budget ends a trial, not a number of steps that a rate could fall towards. A rate that falls to 0,
    linearly or as a cosine, has a mean of half its peak.
    """
    if update.schedule == "constant":
        return update
    return update.model_copy(update={"schedule": "constant", "learning_rate": update.learning_rate / 2})


@contextmanager
def open_folder(base: Config, folder: Path, *, overwrite: bool) -> Iterator[None]:
    """Inside, the folder is this comparison's, and no other process works in it.

    Raises:
        UserError: the folder holds something else, or a comparison of another configuration.
    """
    from mathrl.recipes import differences, dump, load_config
    from mathrl.run.files import write_text
    from mathrl.run.owned import OwnedFolder

    owned, saved = OwnedFolder(folder, "comparison", "--out"), folder / "config.toml"
    blank = owned.is_blank()
    owned.refuse_others()
    if not blank and not saved.is_file():
        raise UserError(f"{folder} exists and is no comparison (no config.toml): choose another --out")
    if not blank and overwrite:
        owned.check_deletable()
    elif not blank:
        changed = differences(base, load_config(saved))
        changed.pop("run.num_threads", None)
        if changed:
            raise UserError(
                f"{folder} holds a comparison with another {', '.join(changed)}: choose another --out "
                "(--overwrite deletes the comparison there)"
            )
    with owned.open(empty=overwrite and not blank, swept=(folder / "trials",)):
        write_text(saved, dump(base))
        yield


def make_reference(console: Console, base: Config, folder: Path) -> str:
    """The recipe's reference, trained at most once."""
    from mathrl.run.progress import Progress
    from mathrl.training.given_adapter import make_merged_reference
    from mathrl.training.sft import train_reference

    if not base.makes_reference:
        return base.model.path
    reference = folder / "reference"
    if not reference.is_dir():
        if base.sft.skip:
            make_merged_reference(base, reference)
        else:
            with Progress(console) as progress, progress.stage("SFT", base.sft.num_steps) as stage:
                train_reference(base, reference, progress=stage)
    return str(reference)


def run_all(
    console: Console,
    options: ComparisonOptions,
    base: Config,
    trials: Sequence[Config],
    folder: Path,
    reference: str,
) -> Iterator[dict[str, Any]]:
    """What the reference reached, then every trial in order; those on disk are not run again."""
    from mathrl.run.files import write_json

    jobs = jobs_of(options, base)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    common = {
        "tokens": options.tokens,
        "seconds": options.seconds,
        "seed": base.run.seed,
        "n": base.evaluate.num_problems,
    }
    asked = [(folder / "trials" / "reference.json", base, _reference_trial)]
    asked += [(folder / "trials" / f"{c.algorithm.name}-{c.run.seed}.json", c, _trial) for c in trials]
    settings = {file: common | {"config": _digest(config)} for file, config, _ in asked}
    (folder / "trials").mkdir(exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {
            pool.submit(work, _at(config, reference, threads), settings[file]): file
            for file, config, work in asked
            if _read(file, settings[file]) is None
        }
        for number, future in enumerate(as_completed(waiting), 1):
            file = waiting[future]
            write_json(file, future.result() | {"asked": settings[file]})
            console.print(f"trial {number}/{len(waiting)}: {file.stem}")
    for file, *_ in asked:
        found = _read(file, settings[file])
        assert found is not None
        yield found


def _digest(config: Config) -> str:
    """Equal for trials that would be the same."""
    from mathrl.recipes import dump

    same = config.model_copy(update={"run": config.run.model_copy(update={"num_threads": 0})})
    return hashlib.sha256(dump(same).encode()).hexdigest()[:16]


def jobs_of(options: ComparisonOptions, base: Config) -> int:
    """Trials at once: one GPU serves one at a time."""
    if options.jobs > 0:
        return int(options.jobs)
    return 1 if _on_cuda(base) else max(1, min(os.cpu_count() or 1, 4))


def _on_cuda(base: Config) -> bool:
    from mathrl.policy.loading import resolve_device

    return bool(resolve_device(base.run).type == "cuda")


def _at(config: Config, reference: str, threads: int) -> Config:
    """The configuration with the reference as its model."""
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": reference}),
            "sft": config.sft.model_copy(update={"skip": True}),
            "run": config.run.model_copy(update={"num_threads": threads}),
        }
    )


def _trial(config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    from mathrl.commands.algorithm_trial import Budget, run_trial

    budgets = {"tokens": Budget(tokens=settings["tokens"]), "seconds": Budget(seconds=settings["seconds"])}
    return run_trial(config, settings["seed"], budgets, settings["n"])


def _reference_trial(config: Config, settings: dict[str, Any]) -> dict[str, Any]:
    from mathrl.commands.algorithm_trial import look_at_reference

    return look_at_reference(config, settings["seed"], settings["n"])


def _read(file: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A finished trial with these settings, or None."""
    if not file.is_file():
        return None
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found if found["asked"] == settings else None
