"""Whether a run can go on, begin or be replaced in its folder: told before anything heavy is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.distributed.environment import place
from mathrl.recipes import load_config
from mathrl.run.folder import RunFolder

SUFFIX = "-reward-model"
"""Of the folder of a reward model that has no name of its own: it lies beside the recipe's run."""


def check_folder(config: Config, *, resume: bool, overwrite: bool) -> tuple[Config, RunFolder, bool]:
    """The recipe with what its run settled before, the run's folder, and whether a run goes on there.

    Raises:
        UserError: as ``RunFolder.check``; nothing is written.
    """
    folder = RunFolder.of(config)
    if resume and not overwrite:
        config = settled_before(config, folder.config)
    config = without_share(config)
    return config, folder, folder.check(config, resume=resume, overwrite=overwrite)


def refuse_early(config: Config, *, resume: bool, overwrite: bool) -> None:
    """``check_folder`` before torch is loaded, which takes seconds; it is asked again when that is done.

    Ranks that were started together leave it to their start: the one before may still be ending.
    """
    if place().world == 1:
        check_folder(config, resume=resume, overwrite=overwrite)


def of_reward_model(config: Config) -> Config:
    """The recipe of a reward model's run, which has a folder of its own."""
    return config if config.run.name else changed(config, run={"name": config.recipe + SUFFIX})


def settled_before(config: Config, saved: Path) -> Config:
    """The recipe with what it leaves open as the run's folder has it; as it is where there is no run."""
    if not saved.is_file():
        return config
    before = load_config(saved)
    rollout, update = config.rollout, config.update
    same = before.model.path == config.model.path
    return changed(
        config,
        rollout={
            "max_prompt_tokens": rollout.max_prompt_tokens or before.rollout.max_prompt_tokens,
            "max_completion_tokens": rollout.max_completion_tokens or before.rollout.max_completion_tokens,
        },
        update={"micro_batch_tokens": update.micro_batch_tokens or before.update.micro_batch_tokens},
        sft={"skip": config.sft.skip or (before.sft.skip and same and may_skip(config))},
    )


def without_share(config: Config) -> Config:
    """No problem is kept for a supervised stage that there is not, or that has problems of its own."""
    if not (config.sft.skip or config.sft.path):
        return config
    return changed(config, data={"sft_fraction": 0.0})


def may_skip(config: Config) -> bool:
    """Whether the model can do without a supervised stage that nobody asked for by name."""
    return bool(config.model.path) and not config.sft.path


def changed(config: Config, **sections: dict[str, Any]) -> Config:
    """The recipe with fields of some sections set."""
    new = {name: getattr(config, name).model_copy(update=fields) for name, fields in sections.items()}
    return config.model_copy(update=new)
