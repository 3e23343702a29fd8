"""Units of measurement: one normal form, exact factors, and their dimension."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from verifiers.grammar.nodes import Node, Num, Quantity
from verifiers.grammar.vocabulary import words

_INCH = Fraction(254, 10000)
_POUND = Fraction(45359237, 10**8)
_GALLON = 231 * _INCH**3

# name: (dimension, factor to the base unit of that dimension, spellings)
_TABLE: dict[str, tuple[str, Fraction, str]] = {
    "mm": ("length", Fraction(1, 1000), "millimeter millimetre"),
    "cm": ("length", Fraction(1, 100), "centimeter centimetre"),
    "dm": ("length", Fraction(1, 10), "decimeter decimetre"),
    "m": ("length", Fraction(1), "meter metre"),
    "km": ("length", Fraction(1000), "kilometer kilometre"),
    "in": ("length", _INCH, "inch inche"),
    "ft": ("length", 12 * _INCH, "foot feet"),
    "yd": ("length", 36 * _INCH, "yard"),
    "mi": ("length", 63360 * _INCH, "mile"),
    "mg": ("mass", Fraction(1, 10**6), "milligram"),
    "g": ("mass", Fraction(1, 1000), "gram gm"),
    "kg": ("mass", Fraction(1), "kilogram kilo"),
    "tonne": ("mass", Fraction(1000), "metricton"),
    "oz": ("mass", _POUND / 16, "ounce"),
    "lb": ("mass", _POUND, "pound"),
    "ton": ("mass", 2000 * _POUND, ""),
    "ms": ("time", Fraction(1, 1000), "millisecond"),
    "s": ("time", Fraction(1), "second sec"),
    "min": ("time", Fraction(60), "minute"),
    "h": ("time", Fraction(3600), "hour hr"),
    "day": ("time", Fraction(86400), "d"),
    "week": ("time", Fraction(604800), "wk"),
    "month": ("month", Fraction(1), "mo"),
    "year": ("month", Fraction(12), "yr"),
    "ml": ("length^3", Fraction(1, 10**6), "milliliter millilitre cc"),
    "l": ("length^3", Fraction(1, 1000), "liter litre"),
    "gal": ("length^3", _GALLON, "gallon"),
    "qt": ("length^3", _GALLON / 4, "quart"),
    "pt": ("length^3", _GALLON / 8, "pint"),
    "cup": ("length^3", _GALLON / 16, ""),
    "dollar": ("dollar", Fraction(1), "usd buck"),
    "cent": ("dollar", Fraction(1, 100), "penny pennies pennie"),
    "euro": ("euro", Fraction(1), "eur"),
    "pound_sterling": ("pound_sterling", Fraction(1), "gbp"),
    "degree": ("angle", Fraction(1), "deg"),
    "degreeC": ("celsius", Fraction(1), "celsius degreescelsius degreecelsius"),
    "degreeF": ("fahrenheit", Fraction(1), "fahrenheit degreesfahrenheit degreefahrenheit"),
    "radian": ("radian", Fraction(1), "rad"),
    "nm": ("length", Fraction(1, 10**9), "nanometer nanometre"),
    "um": ("length", Fraction(1, 10**6), "micrometer micrometre micron"),
    "K": ("kelvin", Fraction(1), "kelvin"),
    "N": ("newton", Fraction(1), "newton"),
    "kN": ("newton", Fraction(1000), "kilonewton"),
    "J": ("joule", Fraction(1), "joule"),
    "kJ": ("joule", Fraction(1000), "kilojoule"),
    "W": ("watt", Fraction(1), "watt"),
    "kW": ("watt", Fraction(1000), "kilowatt"),
    "V": ("volt", Fraction(1), "volt"),
    "A": ("ampere", Fraction(1), "ampere amp"),
    "Hz": ("hertz", Fraction(1), "hertz"),
    "kHz": ("hertz", Fraction(1000), "kilohertz"),
    "MHz": ("hertz", Fraction(10**6), "megahertz"),
    "Pa": ("pascal", Fraction(1), "pascal"),
    "kPa": ("pascal", Fraction(1000), "kilopascal"),
    "dozen": ("dozen", Fraction(12), ""),
    "%": ("percent", Fraction(1), "percent percentage pct"),
}
_NAMES: dict[str, str] = {name: name for name in _TABLE} | {
    spelling: name for name, (_, _, spellings) in _TABLE.items() for spelling in spellings.split()
}
_COMPOUND = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "sqft": "ft^2"}
_FILLER = frozenset(
    {"of", "the", "a", "an", "in", "total", "each", "approximately", "about", "unit", "units", "long"}
)
_WORD = re.compile(r"[A-Za-z_%]+|\^|-?\d+|/")


def _one(word: str) -> str:
    """The normal name of one unit word; an unknown noun is its own unit, in the singular."""
    if word in _NAMES:
        return _NAMES[word]
    lower = word.lower()
    for form in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if form in _COMPOUND:
            return _COMPOUND[form]
        if form in _NAMES:
            return _NAMES[form]
    return lower.removesuffix("s") if len(lower) > 3 else lower


@lru_cache(maxsize=1024)
def normal_unit(text: str) -> str:
    """The normal form of a unit: "square feet" -> "ft^2", "miles per hour" -> "mi/h"; "" for fillers only."""
    parts: list[str] = []
    prefix = ""
    for word in _WORD.findall(text.replace("\\", " ").replace("per cent", "percent")[:200]):
        lower = word.lower()
        if lower in ("square", "sq"):
            prefix = "^2"
        elif lower in ("cubic", "cu"):
            prefix = "^3"
        elif lower in ("squared", "cubed"):
            if parts:
                parts[-1] += "^2" if lower == "squared" else "^3"
            else:
                parts.append(lower)
        elif lower in ("per", "/"):
            parts.append("/")
        elif word == "^" or word.lstrip("-").isdigit():
            if parts and parts[-1] != "/":
                parts[-1] += word
        elif lower in ("unit", "units") and not prefix and not parts:
            parts.append("unit")
        elif lower in _FILLER and not (lower in ("in",) and not parts and text.strip() == "in"):
            if prefix and lower in ("unit", "units"):
                parts.append(f"unit{prefix}")
                prefix = ""
        else:
            parts.append(_one(word) + prefix)
            prefix = ""
    joined = " ".join(parts).replace(" / ", "/").replace("/ ", "/").strip(" /")
    return joined


_NO_UNITS = words(
    """
    tens tenth tenths hundredth hundredths thousandth thousandths third thirds halve half lakh crore gross
    gros score mille squared cubed doubled tripled halved plus minus below base over divided choose through or
    if otherwise wrong incorrect false not no none negative impossible undefined cannot least most
    """
)
_COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_SPELLED = {word: number for number, word in enumerate(_COUNTS, start=1)}
_STRAY_DIGIT = re.compile(r"(?<![\^\d-])\d")


def changes_value(value: Node, unit: str) -> bool:
    """Whether words after a number are part of its value ("42 tenths", "42 plus one") or deny it."""
    for part in unit.split():
        if part in _SPELLED and value != Num(Fraction(_SPELLED[part])):
            return True
    return bool(_STRAY_DIGIT.search(unit)) or any(
        part.partition("^")[0] in _NO_UNITS for part in unit.replace("/", " ").split()
    )


@lru_cache(maxsize=1024)
def convert(unit: str) -> tuple[Fraction, tuple[tuple[str, int], ...]]:
    """The factor to base units and the dimension, as sorted (base, exponent) pairs without zeros."""
    factor = Fraction(1)
    dimension: dict[str, int] = {}
    sign = 1
    for part in re.split(r"([ /])", unit):
        if part in ("", " "):
            continue
        if part == "/":
            sign = -1
            continue
        name, _, exponent = part.partition("^")
        power = sign * (int(exponent) if exponent.lstrip("-").isdigit() and len(exponent) < 4 else 1)
        base, scale, _ = _TABLE.get(name, (name, Fraction(1), ""))
        base, _, inner = base.partition("^")
        factor *= scale**power
        dimension[base] = dimension.get(base, 0) + power * int(inner or 1)
    return factor, tuple(sorted((base, power) for base, power in dimension.items() if power))


def add_quantities(parts: Sequence[Node]) -> Quantity | None:
    """1 hour and 30 minutes as one quantity in the first unit; None where it is a list of several.

    It is one quantity only if all parts have the same dimension and each unit is smaller than the one before.
    """
    total: Quantity | None = None
    last = Fraction(0)
    for part in parts:
        if not isinstance(part, Quantity) or not isinstance(part.value, Num):
            return None
        factor, dimension = convert(part.unit)
        if total is None:
            total = part
        else:
            first, first_dimension = convert(total.unit)
            if dimension != first_dimension or factor >= last or not isinstance(total.value, Num):
                return None
            total = Quantity(Num(total.value.value + part.value.value * factor / first), total.unit)
        last = factor
    return total


def known(text: str) -> bool:
    """Whether every word of a unit is in the table: "square feet" and "km/h" are, "apples" is not."""
    parts = [part.partition("^")[0] for part in re.split(r"[ /]", normal_unit(text)) if part]
    return bool(parts) and all(part in _TABLE for part in parts)
