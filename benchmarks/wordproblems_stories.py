"""Generated stories of the kinds that school books have, with the equation: for supervised training only.

The kinds are those of the literature on word problems (Riley, Greeno and Heller 1983): combine, change,
compare, equal groups, and two of them in a row; the sentences are our own. Every result is a
whole number >= 0.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mathrl.types import Problem, derive_seed
from mathrl.wordproblems import apply_operation

NAMES = (
    "Amy", "Bob", "Carl", "Dana", "Emma", "Finn", "Gina", "Hugo", "Iris", "Joe", "Karen", "Liam", "Mary",
    "Nick", "Olga", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe", "Tom", "Sara", "Mike", "Jenny",
)  # fmt: skip
THINGS = (
    "apples", "balls", "balloons", "books", "boxes", "cakes", "candies", "cards", "coins", "cookies",
    "crayons", "cups", "dolls", "eggs", "erasers", "flowers", "games", "hats", "marbles", "oranges",
    "pencils", "photos", "pies", "plants", "plates", "roses", "seashells", "shirts", "songs", "stamps",
    "stickers", "toys", "trees",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Story:
    """A text and what to do with its numbers: ``n-m x+k``, one after another; x is the result so far."""

    text: str
    equations: str


STORIES = tuple(
    Story(*line.rsplit(" | ", 1))
    for line in """
{A} has {n} {t} and {B} has {m} {t}. How many {t} do they have together? | n+m
There are {n} red {t} and {m} blue {t} on a table. How many {t} are there in all? | n+m
{A} picked {n} {t}, {B} picked {m} {t} and {C} picked {k} {t}. How many {t} were picked in total? | n+m x+k
{A} walked {n} miles on Monday and {m} miles on Tuesday. How many miles did {A} walk altogether? | n+m
{A} spent {n} dollars on {t} and {m} dollars on {u}. How much did {A} spend in total? | n+m
A class has {n} girls and {m} boys. How many children are in the class? | n+m
{A} had {n} {t}. Then {B} gave {A} {m} more. How many {t} does {A} have now? | n+m
{A} made {n} {t} in the morning and {m} more in the afternoon. How many {t} did {A} make? | n+m
A farmer has {n} sheep and buys {m} more. How many sheep does the farmer have now? | n+m
{A} gave {m} {t} to {B} and has {n} {t} left. How many {t} did {A} have at first? | n+m
After {A} sold {m} {t}, {n} {t} were left. How many {t} were there before? | n+m
{B} has {n} {t}. {A} has {m} more {t} than {B}. How many {t} does {A} have? | n+m
{A} had {n} {t} and gave {m} of them to {B}. How many {t} does {A} have left? | n-m
There were {n} {t} in a bag. {A} took {m} out. How many {t} are in the bag now? | n-m
{A} starts with {n} {t} and loses {m}. How many {t} does {A} end with? | n-m
A shop had {n} {t} and sold {m} of them. How many {t} are left? | n-m
{A} had {n} {t}. {A} gave some to {B} and now has {m}. How many {t} did {A} give to {B}? | n-m
{A} had {m} {t}. {B} gave {A} some more, and now {A} has {n}. How many {t} did {B} give? | n-m
{A} wants to buy {u} for {n} dollars and has {m} dollars. How many more dollars does {A} need? | n-m
{n} people were on a bus. At a stop some got off, and {m} were left. How many got off? | n-m
{A} has {n} {t} and {B} has {m} {t}. How many more {t} does {A} have than {B}? | n-m
{A} has {n} {t} and {m} {u}. How many fewer {u} than {t} does {A} have? | n-m
{A} has {n} {t}, which is {m} more than {B} has. How many {t} does {B} have? | n-m
{A} has {n} {t}. {B} has {m} fewer {t} than {A}. How many {t} does {B} have? | n-m
One rope is {n} feet long and another is {m} feet long. How much longer is the first one? | n-m
{A} and {B} have {n} {t} together. {A} has {m} of them. How many {t} does {B} have? | n-m
There are {p} boxes with {q} {t} in each box. How many {t} are there? | p*q
{A} buys {p} {t} for {q} dollars each. How much does {A} pay? | p*q
Each of {p} children has {q} {t}. How many {t} do they have in all? | p*q
{A} reads {q} pages a day. How many pages does {A} read in {p} days? | p*q
{A} has {p} times as many {t} as {B}, who has {q}. How many {t} does {A} have? | p*q
A page holds {q} {t}, and an album has {p} pages. How many {t} fit in the album? | p*q
{A} earns {q} dollars an hour. How much does {A} earn in {p} hours? | p*q
{A} shares {r} {t} equally among {p} friends. How many {t} does each friend get? | r/p
{A} puts {r} {t} in bags with {p} {t} in each bag. How many bags are needed? | r/p
There are {r} {t} in {p} equal groups. How big is each group? | r/p
{A} paid {r} dollars for {p} {t} of the same price. How much did one cost? | r/p
{A} plants {r} {t} in rows of {p}. How many rows are there? | r/p
{A} wrote {r} pages in {p} days, the same number each day. How many pages a day is that? | r/p
{A} had {n} {t}, gave {m} of them to {B} and then bought {k} more. How many {t} does {A} have now? | n-m x+k
{A} had {n} {t}, found {m} more and lost {j}. How many {t} does {A} have at the end? | n+m x-j
There are {p} boxes with {q} {t} each. {j} of the {t} are broken. How many are not broken? | p*q x-j
{A} had {p} bags with {q} {t} each and {k} {t} more. How many {t} did {A} have? | p*q x+k
{A} has {p} red and {q} green {t} that cost {s} dollars each. How much do all of them cost? | p+q x*s
{A} had {n} {t}, but {m} did not work. {A} sold the others for {s} dollars each. What did {A} get? | n-m x*s
{A} bought {p} {t} and {q} {u} for {s} dollars each. How much did {A} pay? | p+q x*s
{A} scored {n} points in one game and {m} in the next. {A} wants {w} points. How many are missing? | n+m w-x
{A} had {v} dollars and bought {p} {t} for {q} dollars each. How much is left? | p*q v-x
{A} has {p} {t} and {k} {u}. {B} has {q} {t}. How many {t} do they have together? | p+q
{A} has {n} {t} and {k} {u}. {A} gives {m} {t} away. How many {t} are left? | n-m
{A} ate {k} {u}. {A} had {n} {t} and {B} had {m} {t}. How many more {t} did {A} have than {B}? | n-m
""".strip().splitlines()
)


def generate_stories(num: int, seed: int) -> list[Problem]:
    """``num`` different stories with their equations, one a line, and ``#### N``."""
    rng, asked = random.Random(derive_seed(seed, "stories")), dict[str, Problem]()
    while len(asked) < num:
        story = rng.choice(STORIES)
        size = rng.choice((10, 20, 50, 100))
        m, n = sorted((rng.randint(1, size), rng.randint(2, size)))
        if "n-m" not in story.equations and rng.random() < 0.5:
            m, n = n, m
        p, q = rng.randint(2, 12), rng.randint(2, rng.choice((10, 10, 30)))
        numbers: dict[str, int | None] = {
            "n": n,
            "m": m,
            "k": rng.randint(2, size),
            "p": p,
            "q": q,
            "r": p * q,
        }
        numbers |= {"s": rng.randint(2, 10), "w": n + m + rng.randint(1, size)}
        numbers |= {"v": p * q + rng.randint(1, size), "j": rng.randint(1, min(p * q, n + m))}
        lines = []
        for left, op, right in story.equations.split():
            a, b = numbers[left], numbers[right]
            numbers["x"] = apply_operation(a, op, b)
            lines.append(f"{a}{op}{b}={numbers['x']}")
        names = dict(zip("ABC", rng.sample(NAMES, 3), strict=True))
        things = dict(zip("tu", rng.sample(THINGS, 2), strict=True))
        question = story.text.format(**numbers, **names, **things)
        answer = str(numbers["x"])
        solution = "\n".join([*lines, f"#### {answer}"])
        asked[question] = Problem(question, question, answer, "number", solution=solution)
    return list(asked.values())
