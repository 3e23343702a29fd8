"""Grade-school word problems made from templates: data for a demonstration, offline and exact.

A problem is a chain: a start number and one to three events, each + − × or ÷ on the running total. The
worked solution shows one equation a line and ends in ``#### N``. Scenes (a set of sentences about one
thing: pockets, a bus, a price …) are divided into seen ones, for training, and unseen ones, never trained on.

Every total is a whole number >= 1 and every division is exact. A problem belongs to the training side or to
the held-out side for ever, by a hash of its scene, events and numbers, whatever seed asks: two generations
can share problems within a side, never across.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, TypeVar

from mathrl.errors import UserError
from mathrl.types import Problem, derive_seed

Side = Literal["train", "held_out"]
Number = TypeVar("Number", int, Decimal)

HELD_OUT_SHARE = 10
"""One problem in so many is held out."""

_MAX_FRUITLESS = 5000  # draws in a row without a new problem before giving up

MAX_FACTOR = 3
"""Largest × or ÷ operand (and never above max_operand)."""

_NAMES = ("Anna", "Ben", "Clara", "David", "Ella", "Frank", "Grace", "Henry", "Ivy", "Jack", "Kate", "Leo")
_THINGS = ("apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pencils", "shells", "stickers")
_DRILL = "drill"  # where a story names its template
_DRILL_WORDS = {"+": "add {n}", "-": "subtract {n}", "*": "multiply by {n}", "/": "divide by {n}"}


@dataclass(frozen=True, slots=True)
class Scene:
    """The sentences of one kind of story; {n} is the number; name, friend and thing are drawn."""

    name: str
    start: str
    events: Mapping[str, tuple[str, ...]]  # "+", "-", "*", "/" -> ways to say it
    question: str


SEEN = (
    Scene(
        "pocket",
        "{name} has {n} {thing}.",
        {
            "+": ("{friend} gives {name} {n} more {thing}.", "{name} finds {n} more {thing}."),
            "-": ("{name} gives {n} {thing} to {friend}.", "{name} loses {n} {thing}."),
            "*": ("Then {name} gets {n} times as many {thing}.",),
            "/": ("{name} keeps one of {n} equal bags of {thing}.",),
        },
        "How many {thing} does {name} have now?",
    ),
    Scene(
        "shop",
        "In the morning a shop has {n} {thing}.",
        {
            "+": ("A friend brings {n} more {thing}.", "The shop buys {n} more {thing}."),
            "-": ("{name} buys {n} {thing}.", "The shop sells {n} {thing}."),
            "*": ("Then there are {n} times as many {thing}.",),
            "/": ("Only one of {n} equal boxes of {thing} stays.",),
        },
        "How many {thing} are in the shop now?",
    ),
    Scene(
        "bus",
        "A bus starts with {n} people.",
        {
            "+": ("At the next stop {n} people get on.", "Then {n} more people get on the bus."),
            "-": ("At the next stop {n} people get off.", "Then {n} people leave the bus."),
            "*": ("In the city there are {n} times as many people.",),
            "/": ("Only one of {n} equal groups of people stays.",),
        },
        "How many people are on the bus now?",
    ),
    Scene(
        "price",
        "One of the {thing} costs {n} dollars.",
        {
            "+": ("The price goes up by {n} dollars.", "Then {n} dollars are added to the price."),
            "-": ("The price goes down by {n} dollars.", "Then {name} takes {n} dollars off the price."),
            "*": ("Then the price is {n} times as large.",),
            "/": ("The price is divided by {n}.",),
        },
        "What is the price in dollars now?",
    ),
    Scene(
        "game",
        "{name} starts a game with {n} points.",
        {
            "+": ("{name} wins {n} points.", "A good card adds {n} points."),
            "-": ("{name} loses {n} points.", "A bad card takes {n} points off."),
            "*": ("The points are multiplied by {n}.",),
            "/": ("The points are divided by {n}.",),
        },
        "How many points does {name} have at the end?",
    ),
    Scene(
        "box",
        "There are {n} {thing} in a box.",
        {
            "+": ("{name} puts {n} more {thing} in the box.", "Then {n} {thing} are added."),
            "-": ("{name} takes {n} {thing} out of the box.", "Then {n} {thing} are lost."),
            "*": ("{friend} makes it {n} times as many.",),
            "/": ("Then one group of {n} equal groups stays in the box.",),
        },
        "How many {thing} are in the box at the end?",
    ),
)

# Told only with words of the seen scenes: what is new is the story, not the vocabulary.
UNSEEN = (
    Scene(
        "morning",
        "In the morning {name} finds {n} {thing} in the city.",
        {
            "+": ("{name} buys {n} more.", "{friend} brings {n} more {thing}."),
            "-": ("{friend} takes {n} of the {thing}.", "Then {n} of the {thing} are lost."),
            "*": ("Then {name} has {n} times as many.",),
            "/": ("The {thing} are divided by {n} and {name} keeps one of the equal boxes.",),
        },
        "How many {thing} are there at the end?",
    ),
    Scene(
        "group",
        "There are {n} people in a group.",
        {
            "+": ("In the morning {n} more people are added.", "{name} brings {n} people."),
            "-": ("Then {n} of the people leave.", "{name} takes {n} people out of the group."),
            "*": ("Then the group is {n} times as large.",),
            "/": ("Then {name} stays in one of {n} equal groups.",),
        },
        "What is the number of people in the group now?",
    ),
    Scene(
        "bank",
        "{name} has {n} dollars.",
        {
            "+": ("{name} wins {n} dollars.", "{friend} gives {n} more dollars to {name}."),
            "-": (
                "{name} buys {thing} in a shop, the price is {n} dollars.",
                "{name} loses {n} dollars in the city.",
            ),
            "*": ("In a game the dollars are multiplied by {n}.",),
            "/": ("The dollars are divided by {n} and {name} keeps one of the equal bags.",),
        },
        "How many dollars does {name} have at the end?",
    ),
)


def generate_problems(
    num: int,
    seed: int,
    *,
    side: Side = "train",
    unseen_templates: bool = False,
    min_steps: int = 1,
    max_steps: int = 3,
    max_operand: int = 10,
) -> list[Problem]:
    """``num`` different problems (by question), equally many of each number of steps up to rounding.

    Args:
        side: problems of one side never occur on the other, whatever the seeds.
        unseen_templates: tell them in the scenes that are never trained on.
        min_steps, max_steps: events of a problem, 1 to 3.
        max_operand: the start and every + or − operand is at most this; × and ÷ are by 2 or 3. The largest
            total is ``10 · max_operand``.

    Raises:
        UserError: so many different problems do not exist within these limits.
    """
    scenes = UNSEEN if unseen_templates else SEEN
    rng = random.Random(derive_seed(seed, "wordproblems", side, int(unseen_templates)))
    steps = range(min_steps, max_steps + 1)
    problems: list[Problem] = []
    asked: set[str] = set()
    fruitless = 0
    while len(problems) < num:
        fruitless += 1
        if fruitless > _MAX_FRUITLESS:
            raise UserError(
                f"only {len(problems)} different word problems were found of {num} asked for: ask for fewer, "
                f"or raise max_steps ({max_steps}) or max_operand ({max_operand})"
            )
        problem = _story(rng, rng.choice(scenes), steps[len(problems) % len(steps)], max_operand)
        if problem.question not in asked and side_of(problem) == side:
            asked.add(problem.question)
            problems.append(problem)
            fruitless = 0
    return problems


def problem_lines(
    *, n: int, seed: int = 0, min_steps: int = 1, max_steps: int = 3, max_operand: int = 10
) -> str:
    """``n`` generated training-side problems as JSON lines that ``--data.path`` reads.

    Raises:
        UserError: limits out of range.
    """
    if not (n >= 1 and 1 <= min_steps <= max_steps <= 3 and max_operand >= 2):
        raise UserError(
            f"cannot generate {n} problems of {min_steps} to {max_steps} steps with operands up to "
            f"{max_operand}: n >= 1, 1 <= min-steps <= max-steps <= 3 and max-operand >= 2 are needed"
        )
    problems = generate_problems(n, seed, min_steps=min_steps, max_steps=max_steps, max_operand=max_operand)
    rows = ({"question": p.question, "answer": p.answer, "solution": p.solution, **p.meta} for p in problems)
    return "".join(json.dumps(row) + "\n" for row in rows)


def generate_drills(num: int, seed: int, *, max_steps: int = 3, max_operand: int = 10) -> list[Problem]:
    """``num`` chains of bare arithmetic without a story ("Start with 5, add 3 and multiply by 2.").

    For supervised training only. They may repeat; none has the text of a word problem.
    """
    rng = random.Random(derive_seed(seed, "drills"))
    drills = []
    for index in range(num):
        start, chain = _chain(rng, 1 + index % max_steps, max_operand)
        words = [_DRILL_WORDS[op].format(n=operand) for op, operand in chain]
        question = f"Start with {start}, {' and '.join(words)}. What is the number at the end?"
        drills.append(_problem(_DRILL, question, start, chain))
    return drills


def is_drill(problem: Problem) -> bool:
    """Whether a problem comes from ``generate_drills``."""
    return problem.meta.get("template") == _DRILL


def side_of(problem: Problem) -> Side:
    """The side a generated problem belongs to: decided by its template and numbers, not by its names."""
    key = derive_seed("side", str(problem.meta["template"]), str(problem.solution))
    return "held_out" if key % HELD_OUT_SHARE == 0 else "train"


def corpus() -> Iterator[str]:
    """Prompts with solutions in which every word of the seen scenes and drills occurs: a tokenizer's food."""
    for problem in [*generate_problems(2000, 0, min_steps=3), *generate_drills(200, 0)]:
        yield f"Question: {problem.question}\nAnswer: {problem.solution}"


def _story(rng: random.Random, scene: Scene, num_steps: int, max_operand: int) -> Problem:
    start, chain = _chain(rng, num_steps, max_operand)
    name, friend = rng.sample(_NAMES, 2)
    words = {"name": name, "friend": friend, "thing": rng.choice(_THINGS)}
    sentences = [scene.start.format(n=start, **words)]
    ways = []
    for op, operand in chain:
        way = rng.randrange(len(scene.events[op]))
        ways.append(f"{op}{way}")
        sentences.append(scene.events[op][way].format(n=operand, **words))
    sentences.append(scene.question.format(**words))
    return _problem(f"{scene.name}{''.join(ways)}", " ".join(sentences), start, chain)


def _chain(rng: random.Random, num_steps: int, max_operand: int) -> tuple[int, list[tuple[str, int]]]:
    """A start number and ``num_steps`` operations; each total is a whole number in [1, 10·max_operand]."""
    while True:
        start = total = rng.randint(2, max_operand)
        chain: list[tuple[str, int]] = []
        while len(chain) < num_steps:
            op = rng.choice("+-*/")
            operand = rng.randint(2, max_operand if op in "+-" else min(MAX_FACTOR, max_operand))
            after = apply_operation(total, op, operand)
            if after is None or not 1 <= after <= 10 * max_operand:
                break  # start afresh: retrying this step alone would favour the operations that always work
            total = after
            chain.append((op, operand))
        else:
            return start, chain


def apply_operation(total: Number, op: str, operand: Number) -> Number | None:
    """The total after one of ``+ - * /``; None where a division is not exact."""
    if op == "+":
        return total + operand
    if op == "-":
        return total - operand
    if op == "*":
        return total * operand
    return None if total % operand else total // operand


def _problem(template: str, question: str, start: int, chain: Sequence[tuple[str, int]]) -> Problem:
    total = start
    lines = []
    for op, operand in chain:
        after = apply_operation(total, op, operand)
        assert after is not None
        lines.append(f"{total}{op}{operand}={after}")
        total = after
    return Problem(
        id=f"wordproblems/{derive_seed(question):016x}",
        question=question,
        answer=str(total),
        answer_type="number",
        solution="\n".join([*lines, f"#### {total}"]),
        meta={"num_steps": len(chain), "template": template, "operations": "".join(op for op, _ in chain)},
    )
