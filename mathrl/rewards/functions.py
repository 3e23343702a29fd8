"""Reward functions of the user's own: Python callables beside what the verifier says.

A function is told apart by the names of its parameters:

    def short(problem, completion, verdict): ...          one completion -> a number
    def diverse(problem, completions, verdicts): ...      the completions of one problem -> a number each
    def accuracy(completions, answer, **columns): ...     TRL's form: all completions of a step at once, those
                                                          of all ranks, which rank 0 asks it for

Any of them may be ``async``: its calls then wait for each other's answers at once. ``problem`` is a
``mathrl.types.Problem`` (its ``row`` holds all columns of the data), ``completion`` a
``mathrl.types.Completion``, ``verdict`` a ``verifiers.Verdict``. The function is the user's and is trusted:
it runs in the trainer's process. An exception, a value that is no finite number and a call of more than
``reward.function_timeout_s`` stop the run before the update, with one sentence that names function and
completion.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from mathrl.config import RewardConfig
from mathrl.errors import UserError
from mathrl.rewards.time_limit import OutOfTime, time_limit
from mathrl.types import Group
from verifiers import Verdict, plugins

Style = Literal["completion", "group", "trl", "trl_chat"]

_RESERVED = {"answer", "format", "length", "model", "mean", "std", "correct_frac", "equal_frac"}
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_TRL_ONLY = {"trainer_state": None, "log_extra": lambda *a, **k: None, "log_metric": lambda *a, **k: None}


@dataclass(frozen=True, slots=True)
class RewardFunction:
    """A callable with its weight in the reward and the name of its metric, ``reward/<name>``.

    style: how it is called; None reads it off its parameters. ``trl_chat`` gives completions as TRL does for
    conversations, ``[{"role": "assistant", "content": text}]``; ``trl`` as plain strings.

    Raises:
        UserError: its parameters fit no form, or its name is taken.
    """

    call: Callable[..., Any]
    weight: float = 1.0
    name: str = ""
    style: Style | None = None

    def __post_init__(self) -> None:
        name = self.name or getattr(self.call, "__name__", type(self.call).__name__)
        if name in _RESERVED:
            raise UserError(f"reward function {name!r}: reward/{name} is a metric already; give another name")
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "style", self.style or _style(self.call, name))

    @property
    def compares_all(self) -> bool:
        """Whether one call is given all completions of a step, and may hold them against each other."""
        return self.style in ("trl", "trl_chat")

    @property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.call) or inspect.iscoroutinefunction(
            getattr(self.call, "__call__", None)  # noqa: B004  an object with ``async def __call__``
        )


def load_functions(config: RewardConfig) -> tuple[RewardFunction, ...]:
    """The functions of ``reward.functions``, imported; the current folder is looked at as well.

    Raises:
        UserError: one cannot be imported, is not callable, has parameters of no known form, or two have one
            name.
    """
    return checked(
        RewardFunction(_import(f.path), f.weight, f.name, None if f.style == "auto" else f.style)
        for f in config.functions
    )


def checked(functions: Any) -> tuple[RewardFunction, ...]:
    """Functions (callables, or RewardFunctions) as RewardFunctions of different names."""
    found = tuple(f if isinstance(f, RewardFunction) else RewardFunction(f) for f in functions)
    names = [f.name for f in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two reward functions are named {name!r}: give one of them another name")
    return found


def evaluate_function(
    function: RewardFunction,
    groups: Sequence[Group],
    verdicts: Sequence[Sequence[Verdict]],
    timeout_s: float,
) -> list[list[float]]:
    """The function's value of every completion, unweighted; shapes as ``verdicts``.

    Raises:
        UserError: it raised, took too long, or gave something else than one finite number a completion.
    """
    calls = list(_calls(function, groups, verdicts))
    answers = (
        _run_async(function, calls, timeout_s) if function.is_async else _run(function, calls, timeout_s)
    )
    flat: list[float] = []
    for call, answer in zip(calls, answers, strict=True):
        flat += _numbers(function, call, answer)
    values = iter(flat)
    return [[next(values) for _ in group.completions] for group in groups]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a function, and the completions that it speaks of."""

    arguments: tuple[Any, ...]
    keywords: Mapping[str, Any]
    labels: tuple[str, ...]  # "completion 3 of problem gsm8k/17", one a number that is expected
    single: bool  # the answer is a number, not a list of them

    @property
    def subject(self) -> str:
        return (
            self.labels[0] if len(self.labels) == 1 else f"{self.labels[0]} and {len(self.labels) - 1} more"
        )


def _calls(
    function: RewardFunction, groups: Sequence[Group], verdicts: Sequence[Sequence[Verdict]]
) -> list[_Call]:
    labels = [
        tuple(f"completion {i} of problem {g.problem.id}" for i in range(1, len(g.completions) + 1))
        for g in groups
    ]
    if function.style == "completion":
        return [
            _Call((g.problem, c, v), {}, (label,), single=True)
            for g, said, named in zip(groups, verdicts, labels, strict=True)
            for c, v, label in zip(g.completions, said, named, strict=True)
        ]
    if function.style == "group":
        return [
            _Call((g.problem, list(g.completions), list(said)), {}, named, single=False)
            for g, said, named in zip(groups, verdicts, labels, strict=True)
            if g.completions
        ]
    if not groups:
        return []
    keywords = _trl_columns(groups, chat=function.style == "trl_chat")
    accepted = inspect.signature(function.call).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        keywords = {name: value for name, value in keywords.items() if name in accepted}
    return [_Call((), keywords, tuple(label for named in labels for label in named), single=False)]


def _trl_columns(groups: Sequence[Group], chat: bool) -> dict[str, Any]:
    """What TRL's GRPOTrainer passes (trl/trainer/grpo_trainer.py, 1.16): a list entry a completion each."""
    rows = [(g, c) for g in groups for c in g.completions]

    def said(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if chat else text

    columns: dict[str, Any] = {
        name: [g.problem.row.get(name) for g, _ in rows]
        for name in sorted({name for g, _ in rows for name in g.problem.row})
    }
    answers = [g.problem.answer for g, _ in rows]
    columns.setdefault("answer", answers)
    columns.setdefault("ground_truth", answers)
    columns.setdefault("solution", [g.problem.solution or g.problem.answer for g, _ in rows])
    columns.setdefault("question", [g.problem.question for g, _ in rows])
    return columns | _TRL_ONLY | {
        "prompts": [said("user", g.problem.question) for g, _ in rows],
        "completions": [said("assistant", c.text) for _, c in rows],
        "completion_ids": [list(c.token_ids) for _, c in rows],
    }  # fmt: skip


def _run(function: RewardFunction, calls: Sequence[_Call], timeout_s: float) -> list[Any]:
    answers = []
    for call in calls:
        late = _late(function, call, timeout_s)
        try:
            with time_limit(timeout_s, str(late)):
                answers.append(function.call(*call.arguments, **call.keywords))
        except OutOfTime:
            raise late from None
        except (Exception, SystemExit) as error:
            raise _failed(function, call, error) from error
    return answers


def _run_async(function: RewardFunction, calls: Sequence[_Call], timeout_s: float) -> list[Any]:
    over: list[UserError] = []

    async def one(call: _Call) -> Any:
        try:
            return await asyncio.wait_for(_timed(function, call, timeout_s, over), timeout_s)
        except TimeoutError as error:
            raise _late(function, call, timeout_s) from error

    async def everything() -> list[Any]:
        return await asyncio.gather(*map(one, calls))

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(everything())
    # a notebook's loop runs in this thread already; ours needs a thread of its own
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(partial(asyncio.run, everything())).result()


@types.coroutine
def _timed(function: RewardFunction, call: _Call, timeout_s: float, over: list[UserError]) -> Iterator[Any]:
    """The call, each stretch between two of its waits under a limit: the loop that counts the time of all
    calls stands still while one of them computes, or sleeps without ``await``.

    Args:
        over: takes the first error, after which no call that shares the list is gone on with.
    """
    running = function.call(*call.arguments, **call.keywords)
    late = _late(function, call, timeout_s)
    resume = partial(running.send, None)
    while not over:
        try:
            with time_limit(timeout_s, str(late)):
                waits_for = resume()
        except StopIteration as end:
            return end.value
        except OutOfTime:
            over.append(late)
            break
        except (Exception, SystemExit) as error:
            over.append(_failed(function, call, error))
            raise over[0] from error
        try:
            resume = partial(running.send, (yield waits_for))
        except BaseException as error:  # noqa: BLE001  a cancellation is the coroutine's to see
            resume = partial(running.throw, error)
    running.close()
    raise over[0]


def _numbers(function: RewardFunction, call: _Call, answer: Any) -> list[float]:
    """The call's answer as one finite number a completion."""
    no_list = isinstance(answer, str | bytes | Mapping | Set) or not hasattr(answer, "__len__")
    if not call.single and no_list:
        raise UserError(
            f"reward function {function.name!r} gave {_short(answer)} for {call.subject}: it must "
            "give a list with one number a completion"
        )
    given = [answer] if call.single else list(answer)
    if len(given) != len(call.labels):
        raise UserError(
            f"reward function {function.name!r} gave {len(given)} numbers for {len(call.labels)} completions "
            f"({call.subject}): it must give one each"
        )
    numbers = []
    for label, value in zip(call.labels, given, strict=True):
        if value is None and function.style in ("trl", "trl_chat"):
            value = 0.0  # "does not apply" there: it adds nothing
        try:
            number = math.nan if value is None or isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"reward function {function.name!r} gave {_short(value)} for {label}: "
                "it must give a finite number"
            )
        numbers.append(number)
    return numbers


def _late(function: RewardFunction, call: _Call, timeout_s: float) -> UserError:
    return UserError(
        f"reward function {function.name!r} took more than {timeout_s:g} s for {call.subject}: "
        "make it faster, or raise reward.function_timeout_s"
    )


def _failed(function: RewardFunction, call: _Call, error: BaseException) -> UserError:
    where = traceback.extract_tb(error.__traceback__)[-1]
    lists = function.style == "trl" and "string indices" in str(error)
    hint = ': completions are given as texts; style = "trl_chat" gives lists of messages' if lists else ""
    return UserError(
        f"reward function {function.name!r} failed for {call.subject}: {type(error).__name__}: {error} "
        f"({os.path.basename(where.filename)}, line {where.lineno}){hint}"
    )


def _style(call: Callable[..., Any], name: str) -> Style:
    if not callable(call):
        raise UserError(f"reward function {_short(call)} is a {type(call).__name__}, not a function")
    try:
        parameters = inspect.signature(call).parameters
    except (TypeError, ValueError):
        raise UserError(f"reward function {name!r} hides its parameters") from None
    if "completions" in parameters:
        return "group" if {"problem", "verdicts"} <= set(parameters) else "trl"
    if len([p for p in parameters.values() if p.default is p.empty and p.kind in _BY_PLACE]) == 3:
        return "completion"
    raise UserError(
        f"reward function {name!r} takes ({', '.join(inspect.signature(call).parameters)}): its parameters "
        "must be (problem, completion, verdict), (problem, completions, verdicts), or TRL's "
        "(completions, **columns)"
    )


def _import(path: str) -> Callable[..., Any]:
    try:
        found = plugins.load(path)
    except ValueError as error:
        raise UserError(
            f"reward.functions: {path!r} cannot be imported ({error}): give "
            "module:function of a module in this folder or on PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(f"reward.functions: {path!r} is a {type(found).__name__}, not a function")
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
