"""Commands whose work loads torch, as they are typed: their words are checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Annotated, Literal

from cyclopts import App, Parameter

from mathrl.commands.going_on import of_reward_model, refuse_early
from mathrl.commands.launch import ALONE, LaunchOptions, launch
from mathrl.commands.recipe_fields import Overrides, takes_fields
from mathrl.recipes import check_named, dump, find_recipe, recipe_descriptions
from mathrl.rollout.vllm_fork import begin_early

Recipe = Annotated[str, Parameter(name="RECIPE", help="name of a recipe, or a TOML file", show_default=False)]
Resume = Annotated[
    bool, Parameter(help="go on where the run's folder stopped, if it exists", show_default=False)
]
Overwrite = Annotated[bool, Parameter(help="delete the run's folder first, if it exists", show_default=False)]
RunFolder = Annotated[Path, Parameter(name="RUN", help="a run's folder, such as runs/quickstart")]

_TOLERANCE = 1e-4  # another machine's kernels round differently in float32; where it was saved, 0 is usual
_COMMONEST = ("model.path", "data.path", "algorithm.name", "train.num_steps", "run.name")


_ABOUT_RECIPES = (
    "Without a recipe: quickstart, a small model from nothing; with a model or",
    "data of your own (--model.path, --data.path, --data.source): default.",
    'A TOML file may begin with extends = "NAME" and says only what it changes.',
    "Every field of a recipe is an option, --section.key value;",
    "mathrl config RECIPE prints them all with their reasons.",
)


_ABOUT_REWARD_MODELS = """\
The base is the reference of the recipe's run, or what --reward_model.base names.

Examples:
  mathrl pairs runs/quickstart --out pairs.jsonl
  mathrl reward-model quickstart --reward_model.pairs pairs.jsonl
  mathrl train quickstart --reward.model_path runs/quickstart-reward-model --reward.model_weight 0.1
"""


def _recipes() -> str:
    listed = [
        fill(f"{name:<17}{text}", 78, initial_indent="  ", subsequent_indent=" " * 19)
        for name, text in recipe_descriptions().items()
    ]
    return "\n".join(["Recipes:", *listed, "", *_ABOUT_RECIPES])


@takes_fields(*_COMMONEST)
def _train(
    recipe: Recipe = "",
    /,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    on: LaunchOptions = ALONE,
    overrides: Overrides,
) -> int:
    config = find_recipe(recipe, overrides)
    check_named(config)
    refuse_early(config, resume=resume, overwrite=overwrite)
    if on.wanted:
        return launch(_words("train", recipe, overrides, resume=resume, overwrite=overwrite), on)

    begin_early(config)
    from mathrl.commands.train import train

    return train(config, resume=resume, overwrite=overwrite)


@takes_fields(*_COMMONEST)
def _sft(
    recipe: Recipe = "",
    /,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    on: LaunchOptions = ALONE,
    overrides: Overrides,
) -> int:
    config = find_recipe(recipe, overrides)
    check_named(config)
    refuse_early(config, resume=resume, overwrite=overwrite)
    if on.wanted:
        return launch(_words("sft", recipe, overrides, resume=resume, overwrite=overwrite), on)

    from mathrl.commands.train import make_reference

    return make_reference(config, resume=resume, overwrite=overwrite)


def _words(command: str, recipe: str, overrides: Overrides, **flags: bool) -> list[str]:
    """The command line again, for the ranks."""
    return [
        command,
        recipe,
        *(f"--{name}" for name, given in flags.items() if given),
        *(f"--{field}={text}" for field, text in overrides),
    ]


@takes_fields("reward_model.pairs", "reward_model.eval_pairs", "reward_model.base", "run.name")
def _reward_model(
    recipe: Recipe = "",
    /,
    *,
    resume: Resume = False,
    overwrite: Overwrite = False,
    overrides: Overrides,
) -> int:
    config = find_recipe(recipe, overrides)
    refuse_early(of_reward_model(config), resume=resume, overwrite=overwrite)

    from mathrl.commands.reward_model import train_reward_model

    return train_reward_model(config, resume=resume, overwrite=overwrite)


@takes_fields()
def _config(
    recipe: Recipe = "",
    /,
    *,
    plain: Annotated[bool, Parameter(help="without comments", show_default=False)] = False,
    overrides: Overrides,
) -> None:
    print(dump(find_recipe(recipe, overrides), comments=not plain), end="")


train = App(name="train", help_epilogue=_recipes(), default_command=_train)
sft = App(name="sft", help_epilogue=_recipes(), default_command=_sft)
reward_model = App(name="reward-model", help_epilogue=_ABOUT_REWARD_MODELS, default_command=_reward_model)
config = App(name="config", help_epilogue=_recipes(), default_command=_config)


def report(run_dir: RunFolder, /) -> None:
    from mathrl.report.reward_model_page import is_reward_model_run, write_reward_model_report
    from mathrl.report.run_page import write_report

    print(write_reward_model_report(run_dir) if is_reward_model_run(run_dir) else write_report(run_dir))


def export(
    run_dir: RunFolder,
    out_dir: Annotated[Path, Parameter(name="OUT", help="folder to write")],
    /,
    *,
    which: Annotated[Literal["last", "best"], Parameter(help="checkpoint")] = "last",
    push: Annotated[str, Parameter(help="put it on the hub as user/name", show_default=False)] = "",
    public: Annotated[bool, Parameter(help="a new repository is public", show_default=False)] = False,
) -> None:
    from mathrl.commands.export import export_run, push_export
    from mathrl.data.hub import check_push

    if push:
        check_push(push)
    done = export_run(run_dir, out_dir, which=which)
    print(f"{done.folder}/adapter: the adapter of step {done.step} in peft's format")
    kept = f"{done.kept:.1%} of the adapter's change is kept"
    print(f"{done.folder}/merged: the merged model, {done.dtype}; {kept}")
    if push:
        print(f"{push_export(done.folder, push, private=not public)}: both, with {done.folder}/README.md")


def replay(
    batch: Annotated[Path, Parameter(name="BATCH", help="a folder RUN/batches/step-00000001")],
    /,
    *,
    reference: Annotated[Path | None, Parameter(help="the reference, where it was moved")] = None,
    tolerance: Annotated[float, Parameter(help="largest relative difference")] = _TOLERANCE,
) -> int:
    from mathrl.commands.replay import print_replay

    return print_replay(batch, reference, tolerance)


def generate_problems(
    *,
    n: Annotated[int, Parameter(help="how many")],
    out: Annotated[Path, Parameter(help="FILE.jsonl to write")],
    seed: int = 0,
    min_steps: int = 1,
    max_steps: int = 3,
    max_operand: int = 10,
    overwrite: Annotated[bool, Parameter(help="replace FILE.jsonl", show_default=False)] = False,
) -> None:
    from mathrl.data.wordproblems import problem_lines
    from mathrl.run.files import refuse_taken, write_text, writing

    refuse_taken(out, "--out", overwrite=overwrite)
    lines = problem_lines(n=n, seed=seed, min_steps=min_steps, max_steps=max_steps, max_operand=max_operand)
    with writing(out):
        write_text(out, lines)
