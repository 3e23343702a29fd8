"""Generated stories of the kinds that school books have, with their equations: for supervised training only.

The kinds are those of the literature on word problems (Riley, Greeno and Heller 1983): combine, change,
compare, equal groups, and two of them in a row; the sentences are our own and stand in
wordproblems_stories.txt, their words in wordproblems_words.toml. What a reader must learn is which numbers
count and how, whatever the story is about; so each has one of several wordings, drawn names and things, at
times numbers that nobody asks for, spaces before its punctuation, prices in cents or numbers in words. Every
answer is >= 0, and whole but for cents and tenths.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from mathrl.data.wordproblems import apply_operation
from mathrl.types import Problem, derive_seed

WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("wordproblems_words.toml").read_text())
FEW, MANY = (12, 12, 12, 12, 12, 30, 100), (10, 10, 12, 30, 100)  # most groups, and most in each
MEASURED = re.compile(r"\{w\}|\{\$|inches|feet|tons|ounces|liters|share")  # may have decimals
SIZES = (10, 10, 20, 50, 100, 100, 100, 1000, 10_000)


@dataclass(frozen=True, slots=True)
class Story:
    """A text, its question, and what to do with the numbers, as wordproblems_stories.txt says."""

    text: str
    question: str
    equations: tuple[tuple[str, str, str], ...]

    @property
    def sums_only(self) -> bool:
        return all(op in "+-" for _, op, _ in self.equations)


def read_stories() -> tuple[Story, ...]:
    lines = Path(__file__).with_suffix(".txt").read_text().splitlines()
    stories = []
    for line in lines:
        if line and not line.startswith("#"):
            text, question, equations = line.split(" | ")
            parts = (re.fullmatch(r"(\w+)([-+*/])(\w+)", part) for part in equations.split())
            stories.append(Story(text, question, tuple(part.groups() for part in parts)))  # type: ignore[union-attr,misc]
    return tuple(stories)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What stories are about: names of people, and things in the plural."""

    names: tuple[str, ...]
    things: tuple[str, ...]

    @classmethod
    def of(cls, questions: Iterable[str]) -> Vocabulary:
        """Own words and those that ``questions`` use twice: what is counted, and who does something."""
        things, names = Counter[str](), Counter[str]()
        for question in questions:
            things.update(set(re.findall(r"\b\d+ ([a-z]{3,}s)\b", question)))
            names.update(
                set(re.findall(r"\b([A-Z][a-z]{2,}) (?:has|had|buys|bought|wants|made)\b", question))
            )
        known = {plural(thing) for thing in WORDS["single"]}
        own = {
            word
            for word, count in things.items()
            if count > 1 and word not in (*WORDS["distances"], *WORDS["volumes"])
        }
        people = {word for word, count in names.items() if count > 1 and word not in ("She", "They", "Each")}
        return cls(tuple(sorted({*WORDS["names"], *people})), tuple(sorted(known | own)))


def plural(thing: str) -> str:
    if thing == "fish":
        return thing
    if thing.endswith(("x", "ch", "sh")):
        return thing + "es"
    return thing[:-1] + "ies" if thing.endswith("y") and thing[-2] not in "aeo" else thing + "s"


def generate_stories(num: int, seed: int, vocabulary: Vocabulary | None = None) -> list[Problem]:
    """``num`` different stories with their equations, one a line, and ``#### N``."""
    rng, asked = random.Random(derive_seed(seed, "stories")), dict[str, Problem]()
    stories, vocabulary = read_stories(), vocabulary or Vocabulary.of(())
    while len(asked) < num:
        told = tell(rng.choice(stories), rng, vocabulary)
        if told:
            question, lines, answer = told
            solution = "\n".join([*lines, f"#### {answer}"])
            asked[question] = Problem(question, question, answer, "number", solution=solution)
    return list(asked.values())


def tell(story: Story, rng: random.Random, vocabulary: Vocabulary) -> tuple[str, list[str], str] | None:
    """A story's question, its equations and its answer; None where the drawn numbers do not fit it."""
    template = story.text + story.question
    values = {letter: Decimal(number) for letter, number in draw_numbers(rng).items()}
    if story.sums_only and MEASURED.search(template) and rng.random() < 0.35:
        for letter in "nmkjg":
            places = 2 if "{$" in template else rng.randint(0, 2)
            values[letter] = values[letter].scaleb(-places)
        if values["n"] < values["m"]:
            values["n"], values["m"] = values["m"], values["n"]
    lines = []
    for step, (left, op, right) in enumerate(story.equations, 1):
        a, b = (Decimal(side) if side.isdigit() else values[side] for side in (left, right))
        result = apply_operation(a, op, b)
        if b < 0 or result is None or (result == 0 and rng.random() < 0.9):
            return None
        if result < 0 and (step == len(story.equations) or not story.sums_only):
            return None  # 12 customers, 15 leave and 14 come: data sets have that, and it can be worked out
        values["y"], values["x"] = values.get("x", result), result
        lines.append(f"{written(a)}{op}{written(b)}={written(result)}")
    slots = draw_slots(story, rng, vocabulary)
    text, question = expand(story.text, rng), expand(story.question, rng)
    if text.endswith(".") and rng.random() < 0.12:
        sentences = text.split(". ")
        sentences.insert(rng.randrange(len(sentences)), expand(slots["aside"], rng).removesuffix("."))
        text = ". ".join(sentences)
    if rng.random() < 0.12:
        text = f"{slots['lead']} {text}"
    if text.endswith(".") and not re.search(r"\bIf\b", text) and rng.random() < 0.2:
        *before, last = text.removesuffix(".").split(". ")
        text = ". ".join([*before, f"If {lower(last)},"])
        question = lower(question)
    in_words, commas = rng.random() < 0.06, rng.random() < 0.5
    coin = rng.choice(("${}", "$ {}", "{} dollars", "${}"))

    def number(match: re.Match[str]) -> str:
        value = values[match[2]]
        if in_words and value < len(WORDS["in_words"]) and value % 1 == 0 and not match[1]:
            return str(WORDS["in_words"][int(value)])
        plain = f"{value:f}" if match[1] else written(value)
        if commas and len(plain.partition(".")[0]) > 3:
            plain = f"{Decimal(plain):,}"
        return coin.format(plain) if match[1] else plain

    asked = f"{text} {question}"
    asked = re.sub(r"\{(\$?)([a-z])\}", lambda m: number(m) if m[2] in values else m[0], asked)
    for _ in range(2):  # slots name slots
        asked = re.sub(r"\{(\w+)\}", lambda m: slots[m[1]], asked)
    asked = re.sub(r"\s+", " ", asked).replace(" ?", "?").replace(" ,", ",").replace(" .", ".").strip()
    asked = re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), asked)
    if rng.random() < 0.25:
        asked = spaced(asked)
    return asked, lines, written(values["x"])


def draw_numbers(rng: random.Random) -> dict[str, int]:
    """The numbers of a story by their letters; p*q = r = a+b and c = r+j hold."""
    size = rng.choice(SIZES)
    m, n = sorted((rng.randint(1, size), rng.randint(2, size)))
    if rng.random() < 0.3:
        m, n = n, m
    k, j = rng.randint(2, size), rng.randint(1, size)
    p, q = (rng.randint(2, rng.choice(most)) for most in (FEW, MANY))
    if rng.random() < 0.3:
        p, q = q, p
    a = rng.randint(1, p * q - 1)
    numbers = {"n": n, "m": m, "k": k, "j": j, "p": p, "q": q, "s": rng.randint(2, 10), "r": p * q, "a": a}
    goal = rng.choice((n + m, p * q)) + rng.randint(1, size)
    return numbers | {"b": p * q - a, "c": p * q + j, "g": goal, "i": rng.randint(2, rng.choice((10, 100)))}


def draw_slots(story: Story, rng: random.Random, vocabulary: Vocabulary) -> dict[str, str]:
    """A word for every slot but the numbers."""
    slots: dict[str, str] = {}
    for names, choices in WORDS["together"].items():
        words = rng.choice(choices).split("/")
        if names == "when then" and rng.random() < 0.5:
            words.reverse()
        slots |= dict(zip(names.split(), words, strict=True))
    slots |= {name: rng.choice(choices) for name, choices in WORDS["slots"].items()}
    slots |= dict(zip("ABCD", rng.sample(vocabulary.names, 4), strict=True))
    if rng.random() < 0.15:
        slots["B"] = slots["relation"].replace("{his}", slots["his"])
    slots |= dict(zip("tuo", rng.sample(vocabulary.things, 3), strict=True))
    single = rng.sample(WORDS["single"], 3)
    slots |= dict(zip(("thing", "thing2", "thing3"), single, strict=True))
    if "{thing}" in story.text + story.question:
        slots |= {"t": plural(single[0]), "u": plural(single[1])}
    measured = re.search(r"\{stuff\}|\{w\} of", story.text + story.question)
    slots["w"] = rng.choice(WORDS["volumes" if measured else "distances"])
    return slots


def expand(text: str, rng: random.Random) -> str:
    """``text`` with one of the wordings of each ``[a~b]``, inner ones first."""
    while re.search(r"\[", text):
        text = re.sub(r"\[([^][]*)\]", lambda m: rng.choice(m[1].split("~")), text)
    return text


def written(value: Decimal) -> str:
    """Its digits, without zeros at the end of a fraction."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def lower(sentence: str) -> str:
    """A sentence that goes on within another; names keep their capitals."""
    if sentence.startswith("{") and not sentence.startswith("{He}"):
        return sentence
    first = 1 if sentence.startswith("{") else 0
    return sentence[:first] + sentence[first : first + 1].lower() + sentence[first + 1 :]


def spaced(text: str) -> str:
    """``text`` with a space before its punctuation, as several data sets have it."""
    return re.sub(r"(?<=\w)([?]|[,.](?!\d))", r" \1", text)
