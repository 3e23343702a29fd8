"""The Python door: what the commands do, with Python's own lists, functions and callbacks.

Every field of a recipe is an argument, a dictionary a section: ``rollout={"group_size": 4}``. In a script the
calls belong under ``if __name__ == "__main__":``, for verifiers and vLLM start processes that import it.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mathrl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from mathrl.commands.prepare import AfterStep
    from mathrl.evaluation.paired import Difference
    from mathrl.evaluation.result import Evaluation
    from mathrl.rewards.functions import RewardFunction

Rows = Iterable[Any]
"""Dictionaries (question, answer, …), ``mathrl.types.Problem``, a ``datasets.Dataset`` or a pandas table."""


P = ParamSpec("P")
R = TypeVar("R")


def _in_its_words(call: Callable[P, R]) -> Callable[P, R]:
    """Errors of the call speak of its arguments, where those of the commands speak of options."""

    @wraps(call)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except UserError as error:
            from mathrl.commands.python_words import in_python

            parameters = inspect.signature(call).parameters
            named = {n: p.default for n, p in parameters.items() if p.kind is not p.POSITIONAL_ONLY}
            sentence = in_python(str(error), named, _further_options() if "options" in named else {})
            error.args = (sentence, *error.args[1:])
            raise

    return told


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and what stands in it."""

    path: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        return dict(json.loads((self.path / "summary.json").read_text(encoding="utf-8")))

    @property
    def accuracy(self) -> float:
        """Greedy accuracy on the held-out problems after training, in [0, 1]."""
        return float(self.summary["after"]["accuracy"])

    @property
    def accuracy_before(self) -> float:
        """The same of the reference."""
        return float(self.summary["before"]["accuracy"])

    @property
    def difference(self) -> dict[str, Any]:
        """The paired difference of the two: value, ci95, p_value."""
        return dict(self.summary["difference"])

    @property
    def adapter(self) -> Path:
        """The LoRA adapter, as peft and vLLM read it."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """One HTML file that opens offline."""
        return self.path / "report.html"

    @property
    def metrics(self) -> list[dict[str, float]]:
        """A row a step; ``pandas.DataFrame(run.metrics)`` is a table of them."""
        from mathrl.report.run_record import read_run

        return [dict(row) for row in read_run(self.path).rows]


@_in_its_words
def train(
    recipe: str = "",
    *,
    model: str | Path | Mapping[str, Any] = "",
    problems: Rows | None = None,
    held_out: Rows | None = None,
    rewards: Sequence[Callable[..., Any] | RewardFunction] = (),
    after_step: AfterStep | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **sections: Any,
) -> Run:
    """Train as ``mathrl train`` does, in this process.

    Args:
        recipe: name or TOML file; empty: as the command chooses (quickstart where there is neither a model
            nor problems, else default).
        model: folder or hub name of a causal LM, or the recipe's section:
            ``{"path": "my-model", "adapter": "my-adapter"}``.
        problems: rows to train on, instead of ``data.path``; kept as a file beside the runs.
        held_out: rows to evaluate on; None: a share of the problems.
        rewards: functions beside the verifier (mathrl/rewards/functions.py), each a callable or a
            ``RewardFunction`` with its weight.
        after_step: called as (steps done, metrics, groups); False ends the run after that step.
        resume: go on where the run's folder stopped, if it exists.
        overwrite: train anew where it exists.
        sections: fields of the recipe: ``rollout={"group_size": 4}, run={"name": "mine"}``.

    Raises:
        UserError: what is wrong, where, and what to do; before anything but the file of rows is written.
        KeyboardInterrupt: the run was interrupted; what was done is saved, and ``resume=True`` goes on.
    """
    from mathrl.commands.going_on import refuse_early
    from mathrl.data.in_memory import write_rows
    from mathrl.recipes import check_named, find_recipe
    from mathrl.rollout.vllm_fork import begin_early
    from mathrl.run.folder import RunFolder
    from mathrl.types import Problem

    if isinstance(rewards, str) or not isinstance(rewards, Iterable):
        raise UserError(f"rewards must be a list of functions, not a {type(rewards).__name__}")
    if model:
        sections["model"] = model if isinstance(model, Mapping) else {"path": str(model)}
    fields = _fields(sections)
    kept = Path(fields.get("run.output_dir", "runs")) / ".problems"
    if problems is not None:
        if isinstance(problems, Iterator):  # it is gone through twice
            problems = list(problems)
        fields["data.path"] = str(write_rows(problems, kept))
        if any(isinstance(row, Problem) for row in problems):
            fields.setdefault("data.answer_type_field", "answer_type")
    if held_out is not None:
        fields["data.eval_path"] = str(write_rows(held_out, kept, "held-out"))
    config = find_recipe(recipe, list(fields.items()))
    check_named(config)
    refuse_early(config, resume=resume, overwrite=overwrite)
    begin_early(config)

    from mathrl.commands.prepare import Additions  # torch takes seconds
    from mathrl.commands.train import train as run_job

    additions = Additions(tuple(rewards), after_step)
    if run_job(config, resume=resume, overwrite=overwrite, additions=additions):
        raise KeyboardInterrupt("the run was interrupted; resume=True goes on")
    return Run(RunFolder.of(config).path.resolve())


@_in_its_words
def evaluate(
    model: str | Path | Run,
    /,
    benchmark: str = "",
    *,
    data: str | Path | Rows | None = None,
    adapter: str | Path = "",
    samples: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    options: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Evaluation:
    """Evaluate a model, or a run, on one benchmark, as ``mathrl eval`` does.

    Args:
        benchmark: a name (``mathrl eval --list``); empty: what ``data`` holds.
        data: a file or rows instead of the hub.
        samples: completions a problem beside the greedy one.
        out: folder of completions, numbers and page; None: as the command chooses.
        options: further options of the command by their names: ``{"shots": 4, "max_problems": 100}``.
        sections: fields of a recipe that say how a model is asked: ``model={"prompt": "plain"}``.

    Returns:
        ``accuracy``, ``ci95``, ``mean_at_k``, ``pass_at_k``, ``maj_at_k``, ``outcomes``, ``records`` …

    Raises:
        UserError: what is wrong, before anything is generated.
        KeyboardInterrupt: what was finished is kept, and the same call goes on.
    """
    from mathrl.commands.evaluate import evaluate_model
    from mathrl.commands.evaluation_options import EvaluationOptions
    from mathrl.data.in_memory import write_rows
    from mathrl.run.progress import make_console

    if "," in benchmark:
        raise UserError(f"evaluate takes one benchmark, not {benchmark!r}: call it once for each")
    if data is not None and not isinstance(data, str | Path):
        data = write_rows(data, Path("evaluations") / ".problems", benchmark or "problems")
    asked = EvaluationOptions(
        benchmark=benchmark,
        adapter=str(adapter),
        data=(str(data),) if data is not None else (),
        samples=samples,
        out=Path(out) if out is not None else None,
        overwrite=overwrite,
        **_checked(options or {}),
    )
    overrides = list(_fields(sections).items())
    evaluated = evaluate_model(_path(model), asked, overrides, make_console())
    evaluated.write()
    return evaluated.results[0].evaluation


@_in_its_words
def judge(
    completions: str | Path | Rows,
    *,
    benchmark: str = "",
    answer_type: str = "",
    extract: str = "",
    jobs: int = 2,
    timeout_s: float = 5.0,
) -> Evaluation:
    """Judge completions that are there already, as ``mathrl judge`` does; no model is loaded.

    Args:
        completions: a file (``mathrl eval``'s, lm-evaluation-harness's, or plain lines), or rows with
            ``question``, ``answer`` and ``completion`` (or ``completions``), of which the first is taken for
            the greedy one.
        benchmark: whose fields and answer type another tool's file has.
        answer_type: verifier; empty: the file's own.
        extract: extraction rule; empty: the file's own, else ``auto``.
        jobs: verifier processes.
        timeout_s: wall clock of one verdict.

    Raises:
        UserError: what is wrong with file, rows or options.
    """
    from mathrl.commands.judge import judge as judge_saved
    from mathrl.commands.judge import read_request
    from mathrl.data.in_memory import write_rows

    with tempfile.TemporaryDirectory(prefix="mathrl-judge-") as folder:
        given = isinstance(completions, str | Path)
        file = Path(completions) if given else write_rows(completions, Path(folder), "completions")  # type: ignore[arg-type]
        try:
            saved, rule = read_request(
                file, benchmark, answer_type=answer_type, extract=extract, jobs=jobs, timeout_s=timeout_s
            )
        except UserError as error:  # rows have no file that a caller knows
            raise error if given else UserError(str(error).replace(str(file), "completions")) from None
    return judge_saved(saved, rule, answer_type, jobs=jobs, timeout_s=timeout_s)


@_in_its_words
def compare(before: str | Path | Run | Evaluation, after: str | Path | Run | Evaluation) -> Difference:
    """``after`` minus ``before`` on the same problems: value, interval, exact p-value, which changed.

    Args:
        before, after: runs (their held-out problems after training), evaluations, or their folders.

    Raises:
        UserError: they were asked other problems, or by another protocol.
    """
    from mathrl.evaluation.paired import compare_evaluations

    return compare_evaluations(_evaluation(before), _evaluation(after))


def _evaluation(given: str | Path | Run | Evaluation) -> Evaluation:
    from mathrl.commands.compare import evaluations_in
    from mathrl.evaluation.result import Evaluation
    from mathrl.report.run_record import MAIN_SET, read_run

    if isinstance(given, Evaluation):
        return given
    path = Path(_path(given))
    if (path / "config.toml").is_file():
        found = read_run(path).evaluations.get((MAIN_SET, "after"))
        if found is None:
            raise UserError(f"the run in {path} has no evaluation after training yet")
        return found
    evaluations = evaluations_in(path)
    if len(evaluations) != 1:
        held = ", ".join(evaluations) or "none"
        raise UserError(f"{path} must hold the results of one benchmark (it holds: {held})")
    return next(iter(evaluations.values()))


def _path(given: str | Path | Run) -> str:
    return str(given.path if isinstance(given, Run) else given)


def _further_options() -> dict[str, Any]:
    """What ``options`` of an evaluation may hold, with the defaults."""
    from mathrl.commands.evaluation_options import EvaluationOptions

    own = {*inspect.signature(evaluate).parameters} - {"model"}  # that of options is a server's
    return {f.name: f.default for f in fields(EvaluationOptions) if f.name not in (*own, "list")}


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an evaluation, a name where several are taken as one of several."""
    known = _further_options()
    for name in options:
        if name not in known:
            raise UserError(f"options has no {name!r}: {did_you_mean(name, known)}")
    several = {n: (v,) if isinstance(v, str | Path) else v for n, v in options.items() if known[n] == ()}
    given = {**options, **{name: tuple(map(str, values)) for name, values in several.items()}}
    if given.get("against") is not None:
        given["against"] = Path(given["against"])
    return given


def _fields(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value of the sections that were given as dictionaries."""
    fields: dict[str, Any] = {}
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UserError(f"{name} must be a dictionary of fields, such as rollout={{'group_size': 4}}")
        for key, value in section.items():
            nested = _fields({f"{name}.{key}": value}) if isinstance(value, Mapping) else {}
            fields |= nested or {f"{name}.{key}": str(value) if isinstance(value, Path) else value}
    return fields
