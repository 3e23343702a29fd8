"""Any math data set as Problems: known sets by name, others by field names, from the hub or a local file.

References are read once on loading. A row that cannot be used (no verifier reads its reference, its question
is asked twice or is held out) is kept as a SkippedRow, to be counted and shown, never dropped in silence.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, overload

from mathrl.config import Config, DataConfig
from mathrl.data.datasets import DATASETS, GENERATED, DatasetRow
from mathrl.data.fields import UnusableRow, field_text
from mathrl.data.problem_set import (
    ASKED_BEFORE,
    ProblemSet,
    SetAside,
    SkippedRow,
    kept_of,
    labelled,
    mixed,
    part_by_question,
    question_key,
    question_keys,
    without,
    without_share,
)
from mathrl.data.rows import LeftOut, dataset_row, extract_rule, make_problem, parts_of
from mathrl.data.source import Row, field_names, find_column, hub_splits, read_file, read_hub
from mathrl.data.wordproblems import Side, generate_drills, generate_problems
from mathrl.errors import UserError, did_you_mean
from mathrl.rewards.scorer import check_reference, read_only_as_words
from mathrl.types import Problem, derive_seed

__all__ = [
    "DATASETS",
    "DatasetRow",
    "ProblemSet",
    "Role",
    "SkippedRow",
    "dataset_row",
    "extract_rule",
    "load_demonstrations",
    "load_problems",
    "make_problem",
    "parts_of",
]

Role = Literal["train", "held_out", "held_out_templates"]

_UNREAD = "no verifier reads the reference answer"
_NUM_HELD_OUT = 1000
_HELD_OUT_TOO = "asked in the held-out problems too"
_NUM_HELD_OUT_DEMONSTRATIONS = 300


class NoSolutions(UserError):
    """None of the problems has a worked solution to train on."""


@overload
def load_problems(data: DataConfig, role: Literal["train", "held_out"], seed: int) -> ProblemSet: ...
@overload
def load_problems(data: DataConfig, role: Role, seed: int) -> ProblemSet | None: ...
def load_problems(data: DataConfig, role: Role, seed: int) -> ProblemSet | None:
    """The problems of a role, parsed, without duplicates; none trained on is among the held-out ones.

    Training problems are drawn by ``seed`` where ``data.max_problems`` is less than there are. Held-out
    problems and their order are the same for every seed, so that a part of them is a fair and fixed sample.
    ``held_out_templates`` exists for generated problems alone: None for others.

    Raises:
        UserError: unreadable or missing input, most references unreadable, or no problem left.
    """
    if _is_generated(data):
        return _generated(data, role, seed)
    if role == "held_out_templates":
        return None
    train, held_out = _split(data)
    if role == "held_out":
        problems = list(held_out.problems)
        random.Random(0).shuffle(problems)
        return _not_empty(replace(held_out, problems=tuple(problems)), "evaluate on")
    train = without_share(train, data.sft_fraction)
    if data.max_problems and len(train) > data.max_problems:
        rng = random.Random(derive_seed(seed, "max_problems"))
        train = kept_of(train, rng.sample(train.problems, data.max_problems), _over(data))
    return _not_empty(train, "train on")


def load_demonstrations(config: Config) -> tuple[ProblemSet, ProblemSet]:
    """Problems with worked solutions for the supervised stage: to train on, and held out.

    Generated ones follow the ``sft`` section and share no question with the reinforcement stage's. Others
    come from ``sft.path``, or are the share ``data.sft_fraction`` of the training problems (all of them: 0).

    Raises:
        NoSolutions: no problem has a worked solution.
        UserError: as ``load_problems``.
    """
    data, sft, seed = config.data, config.sft, config.run.seed
    if _is_generated(data) and not sft.path:
        return _generated_demonstrations(config, "train"), _generated_demonstrations(config, "held_out")
    changed = {"path": sft.path, "eval_path": "", "where": "", "mix": ()}
    train, held_out = _split(data.model_copy(update=changed) if sft.path else data)
    if sft.path and not _is_generated(data):
        train = without(train, question_keys(_split(data)[1]), _HELD_OUT_TOO)
    elif data.sft_fraction and not sft.path:
        others = f"left to reinforcement by data.sft_fraction {data.sft_fraction:g}"
        train = part_by_question(train, "sft", data.sft_fraction, inside=True, others=others)
    train, held_out = (_solved(found, seed) for found in (train, held_out))
    if not train.problems:
        raise NoSolutions(
            f"no problem with a worked solution is left of {train.name}, {train.account()}: give "
            "solutions with --sft.path, or start from a trained model with --sft.skip --model.path"
        )
    return train, held_out


def _solved(found: ProblemSet, seed: int) -> ProblemSet:
    """Its problems with a worked solution, in an order drawn by the seed."""
    solved = [p for p in found.problems if p.solution]
    random.Random(derive_seed(seed, "demonstrations")).shuffle(solved)
    return kept_of(found, solved, "without a worked solution")


def _is_generated(data: DataConfig) -> bool:
    return data.source == GENERATED and not data.path and not data.mix


def _split(data: DataConfig) -> tuple[ProblemSet, ProblemSet]:
    """(training, held-out) problems of files or the hub, disjoint by question; of a mix as one set."""
    if not data.mix:
        return _split_one(data, dataset_row(data))
    trains, held_outs, shares = [], [], {}
    for name, part, weight in parts_of(data):
        row = dataset_row(part)
        train, held_out = (
            (_read(part, row, part.path, row.split), None) if data.eval_path else _split_one(part, row)
        )
        trains.append(labelled(train, name))
        held_outs += [labelled(held_out, name)] if held_out else []
        shares[name] = weight
    if data.eval_path:
        held_outs = [_read(data, dataset_row(data), data.eval_path, "")]
    held_out = mixed("mix held out", held_outs, {})
    return without(mixed("mix", trains, shares), question_keys(held_out), _HELD_OUT_TOO), held_out


def _split_one(data: DataConfig, row: DatasetRow) -> tuple[ProblemSet, ProblemSet]:
    """(training, held-out) problems of one file or set."""
    pool = _read(data, row, data.path, row.split)
    eval_split = row.eval_split
    if row.hub and not data.path and not data.eval_path and not eval_split:
        known = set(hub_splits(row.hub, row.config)) - {row.split}
        eval_split = next((name for name in ("test", "validation") if name in known), "")
    if data.eval_path or (eval_split and not data.path):
        held_out = _read(data, row, data.eval_path, eval_split)
    else:
        share = partial(part_by_question, pool, "held out", data.eval_fraction)
        by = f"by data.eval_fraction {data.eval_fraction:g}"
        held_out = share(inside=True, others=f"to train on {by}")
        pool = share(inside=False, others=f"held out {by}")
    return without(pool, question_keys(held_out), _HELD_OUT_TOO), held_out


def _read(data: DataConfig, row: DatasetRow, path: str, split: str) -> ProblemSet:
    """All problems of a file, or of a split on the hub where there is no path."""
    if path:
        name, raw = path.replace("\\", "/").rsplit("/", 1)[-1], read_file(path)
    elif row.hub:
        name, raw = f"{row.hub} {split}", read_hub(row.hub, row.config, split)
    else:
        raise UserError(f"data set {row.name!r} has no copy on the hub: give its file with --data.path")
    problems: list[Problem] = []
    skipped: list[SkippedRow] = []
    seen: set[str] = set()
    words: set[str] = set()
    unread: list[SkippedRow] = []
    said: dict[int, str] = {}  # row -> what its verifier says of the reference
    chosen = _where(data.where, raw, name)
    for number, fields in chosen:
        try:
            problem = make_problem(
                row, fields, f"{path or name}, row {number},", f"{row.name}/{name}/{number}"
            )
        except LeftOut as error:
            skipped.append(SkippedRow(number, str(error), ""))
            continue
        except UnusableRow as error:
            unread.append(SkippedRow(number, str(error), str(find_column(fields, row.answer)), True))
            continue
        if (why := check_reference(problem)) is not None:
            said[number] = f" ({why[:120]})"
            unread.append(SkippedRow(number, _UNREAD, problem.answer, True))
        elif question_key(problem) in seen:
            skipped.append(SkippedRow(number, ASKED_BEFORE, problem.question))
        else:
            seen.add(question_key(problem))
            problems.append(problem)
            if read_only_as_words(problem):
                words.add(problem.id)
    if len(unread) > len(problems):
        first, total = unread[0], len(problems) + len(skipped) + len(unread)
        rows = ", ".join(str(s.row) for s in unread[:5]) + " …" * (len(unread) > 5)
        raise UserError(
            f"{path or name}: {len(unread)} of {total} rows make no problem (rows {rows}; row {first.row}: "
            f"{first.reason}, {first.text[:40]!r}{said.get(first.row, '')}; answers are the field "
            f"{row.answer!r}, read as {row.answer_type!r}): set --data.question_field, --data.answer_field "
            "or --data.answer_type"
        )
    skipped = sorted([*skipped, *unread], key=lambda s: s.row)
    others = len(raw) - len(chosen)
    aside = (SetAside(f"outside data.where {data.where}", others),) if others else ()
    return ProblemSet(name, tuple(problems), tuple(skipped), words=frozenset(words), aside=aside)


def _where(condition: str, rows: Sequence[Row], name: str) -> list[tuple[int, Row]]:
    """Rows, numbered from 1, that meet ``field=value``."""
    if not condition:
        return list(enumerate(rows, 1))
    key, sign, value = (part.strip() for part in condition.partition("="))
    if not sign or not key:
        raise UserError(f"data.where = {condition!r} must have the form field=value")
    if all(find_column(row, key) is None for row in rows):
        known = {field for row in rows for field in field_names(row)}
        if key not in known:
            raise UserError(f"data.where: {name} has no field {key!r}: {did_you_mean(key, known)}")
    return [(number, row) for number, row in enumerate(rows, 1) if field_text(find_column(row, key)) == value]


def _generated(data: DataConfig, role: Role, seed: int) -> ProblemSet:
    limits = data.min_steps, data.max_steps, data.max_operand
    over = 0
    if role == "train":
        num = min(data.num_train_problems, data.max_problems or data.num_train_problems)
        problems, over = _within(limits, num, seed), data.num_train_problems - num
    else:
        problems = _fixed(limits, role == "held_out_templates")
    aside = (SetAside(_over(data), over),) if over else ()
    return ProblemSet(f"{GENERATED} {role}", problems, demonstration=True, aside=aside)


def _within(limits: tuple[int, int, int], num: int, seed: int, **which: Any) -> tuple[Problem, ...]:
    least, most, operand = limits
    problems = generate_problems(num, seed, min_steps=least, max_steps=most, max_operand=operand, **which)
    return tuple(problems)


@functools.cache
def _fixed(limits: tuple[int, int, int], unseen_templates: bool) -> tuple[Problem, ...]:
    """One set whatever the run's seed: runs are compared on the same problems."""
    return _within(limits, _NUM_HELD_OUT, 0, side="held_out", unseen_templates=unseen_templates)


def _generated_demonstrations(config: Config, side: Side) -> ProblemSet:
    sft, seed = config.sft, derive_seed(config.run.seed, "demonstrations")
    generate = partial(generate_problems, side=side, max_operand=config.data.max_operand)
    num_drills = round(sft.num_problems * sft.drill_fraction) if side == "train" else 0
    num = sft.num_problems - num_drills if side == "train" else _NUM_HELD_OUT_DEMONSTRATIONS
    num_longer = round(num * sft.longer_fraction) if side == "train" else 0
    problems = generate(num - num_longer, seed, min_steps=sft.min_steps, max_steps=sft.max_steps)
    if side == "train":
        problems += generate(num_longer, seed, min_steps=sft.max_steps + 1, max_steps=sft.max_steps + 1)
        taken = {p.question for p in _generated(config.data, "train", config.run.seed).problems}
        problems = [p for p in problems if p.question not in taken]
        problems += generate_drills(num_drills, seed, max_operand=config.data.max_operand)
    random.Random(seed).shuffle(problems)
    return ProblemSet(f"{GENERATED} demonstrations", tuple(problems), demonstration=True)


def _over(data: DataConfig) -> str:
    return f"over data.max_problems {data.max_problems}"


def _not_empty(found: ProblemSet, purpose: str) -> ProblemSet:
    if not found.problems:
        account = found.account()
        where = f", {account}" if account else ""
        such = f": such as {found.skipped[0]}" if found.skipped else ""
        raise UserError(f"no problem is left of {found.name} to {purpose}{where}{such}")
    return found
