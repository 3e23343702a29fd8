"""Rewritings that change what an answer means, and some that do not: units, names, families of solutions."""

from __future__ import annotations

import itertools
import json
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from verifiers import Outcome, ParseError, verify
from verifiers.answers.structured import read_answer
from verifiers.equality.exact import free_symbols
from verifiers.grammar.nodes import Num, Op, Quantity

UNITS: dict[str, tuple[str, Fraction]] = {
    "mm": ("m", Fraction(1, 1000)), "cm": ("m", Fraction(1, 100)), "m": ("m", Fraction(1)),
    "km": ("m", Fraction(1000)), "in": ("m", Fraction(254, 10000)), "ft": ("m", Fraction(3048, 10000)),
    "cm^2": ("m2", Fraction(1, 10**4)), "m^2": ("m2", Fraction(1)), "in^2": ("m2", Fraction(254**2, 10**8)),
    "cm^3": ("m3", Fraction(1, 10**6)), "mL": ("m3", Fraction(1, 10**6)), "L": ("m3", Fraction(1, 1000)),
    "s": ("s", Fraction(1)), "ms": ("s", Fraction(1, 1000)), "min": ("s", Fraction(60)),
    "h": ("s", Fraction(3600)), "g": ("kg", Fraction(1, 1000)), "kg": ("kg", Fraction(1)),
    "N": ("N", Fraction(1)), "kN": ("N", Fraction(1000)), "J": ("J", Fraction(1)),
    "kJ": ("J", Fraction(1000)),
    "m/s": ("m/s", Fraction(1)), "km/h": ("m/s", Fraction(5, 18)), "Hz": ("1/s", Fraction(1)),
    "kHz": ("1/s", Fraction(1000)), "m/s^2": ("m/s2", Fraction(1)), "mol": ("mol", Fraction(1)),
    "lb/in^2": ("lb/m2", Fraction(10**8, 254**2)), "dollars": ("$", Fraction(1)),
    "cents": ("$", Fraction(1, 100)),
    "apples": ("apple", Fraction(1)), "marbles": ("marble", Fraction(1)),
}  # fmt: skip
PLACES = [
    "{}", "Q = {}", "v_0 = {}", "\\text{{Area}} = {}", "3 \\text{{ K}}, {}", "{{\\{{1 \\text{{ K}}, {}\\}}}}",
    "({}, 0)", "x \\ge {}", "[0, {}]", "Q = R = {}", "{} \\text{{ or }} 5", "AB = {}, CD = 1",
]  # fmt: skip


def accepts(reference: str, given: str) -> bool:
    verdict = verify(f"\\boxed{{{given}}}", reference)
    assert verdict.outcome in (Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED), (reference, given, verdict)
    return verdict.outcome is Outcome.CORRECT


def written(value: Fraction, unit: str) -> str:
    number = (
        str(value.numerator)
        if value.denominator == 1
        else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    )
    base, _, power = unit.partition("^") if "/" not in unit else (unit, "", "")
    return f"{number} \\text{{ {base}}}" + (f"^{power}" if power else "")


@pytest.mark.parametrize("place", PLACES)
def test_another_unit_is_another_value_wherever_it_stands(place: str) -> None:
    """Every unit for every other one: refused, and accepted where the number is converted with it."""
    wrong = []
    # Units of another dimension take turns: each pair stands in every third place.
    turn = PLACES.index(place) % 3
    for number, (ours, theirs) in enumerate(itertools.permutations(UNITS, 2)):
        (our_dimension, our_factor), (their_dimension, their_factor) = UNITS[ours], UNITS[theirs]
        if our_dimension != their_dimension and number % 3 != turn:
            continue
        value = Fraction(7)
        reference = place.format(written(value, ours))
        equal = our_dimension == their_dimension and our_factor == their_factor
        if accepts(reference, place.format(written(value, theirs))) is not equal:
            wrong.append((reference, theirs))
        if our_dimension == their_dimension:
            converted = place.format(written(value * our_factor / their_factor, theirs))
            if not accepts(reference, converted):
                wrong.append((reference, converted))
    assert wrong == []


def values() -> list[tuple[str, str, bool]]:
    """(reference, given, label) of the tables' cases where both are one number, formula or quantity."""
    found = []
    for table in sorted((Path(__file__).parent / "tables").glob("*.jsonl")):
        for line in table.read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            given = re.fullmatch(r"\\boxed\{((?:(?!boxed).)*)\}", case["completion"], re.DOTALL)
            if given is None or case.keys() & {"type", "extract", "options", "prompt"}:
                continue
            try:
                nodes = [read_answer(text).node for text in (case["answer"], given[1])]
            except ParseError:
                continue
            names = frozenset().union(*map(free_symbols, nodes))
            one_value = all(isinstance(node, Num | Op | Quantity) for node in nodes)
            plain = not any(
                re.search(r"[=,;~$`]|\*\*|\\text|or\b|[A-Z]{2}", text) for text in (case["answer"], given[1])
            )
            if one_value and plain and not names & {"Q", "S_n"}:
                found.append((case["answer"], given[1], case["expected"]))
    return found


VALUES = values()


NAMES = ["Q", "S_n", "Q(1)"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_before_a_value_changes_no_verdict(name: str) -> None:
    changed = []
    for reference, given, label in VALUES[NAMES.index(name) :: len(NAMES)]:
        for ours, theirs in (
            (f"{name} = {reference}", f"{name} = {given}"),
            (reference, f"{name} = {given}"),
        ):
            if accepts(ours, theirs) is not label:
                changed.append((ours, theirs))
    assert changed == []


def test_another_name_is_another_answer() -> None:
    for reference, _, _ in VALUES[::10]:
        assert not accepts(f"Q = {reference}", f"R = {reference}")


def test_there_are_many_values() -> None:
    assert len(VALUES) > 800
    assert 0.3 < sum(label for _, _, label in VALUES) / len(VALUES) < 0.7


def family(offset: Fraction, step: Fraction, letter: str, domain: str = "") -> str:
    def turns(value: Fraction) -> str:
        return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}\\pi}}{{{value.denominator}}}"

    plus = "+" if step > 0 else ""
    return f"x = {turns(offset)} {plus} {turns(step)} {letter}{domain}"


DOMAINS = ["", ", {}\\in\\mathbb{{Z}}", " \\text{{ for any integer }} {}", "\\ ({} \\in \\mathbb{{Z}})"]


@pytest.mark.parametrize("seed", range(20))
def test_families_are_sets(seed: int) -> None:
    """Renamed, shifted and turned they stay what they are; another step or another offset is another set."""
    rng = random.Random(seed)
    offset = Fraction(rng.randrange(-11, 12), rng.choice([1, 2, 3, 4, 6, 12]))
    step = Fraction(rng.randrange(1, 5), rng.choice([1, 2, 3]))
    letters = rng.sample(["k", "n", "m"], 2)
    domains = [domain.format(letter) for domain, letter in zip(rng.sample(DOMAINS, 2), letters, strict=True)]
    reference = family(offset, step, letters[0], domains[0])
    shift = rng.randrange(-4, 5)
    same = [(offset, step), (offset + shift * step, step), (offset, -step), (offset + shift * step, -step)]
    for start, by in same:
        assert accepts(reference, family(start, by, letters[1], domains[1])), (reference, start, by)
    others = [(offset, 2 * step), (offset, step / 2), (offset + step / 2, step), (offset + step / 3, -step)]
    for start, by in others:
        assert not accepts(reference, family(start, by, letters[1], domains[1])), (reference, start, by)
    if domains[0]:
        natural = family(offset, step, letters[0], f", {letters[0]}\\in\\mathbb{{N}}")
        assert not accepts(reference, natural)
    # Two branches of twice the step are one of the step, and one of them is not.
    halves = [family(offset + part * step, 2 * step, letters[1]) for part in (0, 1)]
    assert accepts(reference, f"{halves[0]} \\text{{ or }} {halves[1]}")
    assert accepts(f"{halves[1]}, {halves[0]}", reference)
    assert not accepts(reference, halves[0])
