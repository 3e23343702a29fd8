"""Units of measurement: one normal form, exact factors, and their dimension."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from verifiers import policy
from verifiers.grammar.nodes import Node, Num, Quantity
from verifiers.policy import Unit

_INCH = Fraction(254, 10000)
_POUND = Fraction(45359237, 10**8)
_GALLON = 231 * _INCH**3
_ATMOSPHERE = Fraction(101325)

# name: (factor to the base units, dimension, spellings). The SI units take prefixes.
_SI: dict[str, tuple[Fraction, str, str]] = {
    "m": (Fraction(1), "m", "meter metre"),
    "g": (Fraction(1, 1000), "kg", "gram gramme"),
    "s": (Fraction(1), "s", "second sec"),
    "A": (Fraction(1), "A", "ampere amp"),
    "K": (Fraction(1), "K", "kelvin"),
    "mol": (Fraction(1), "mol", "mole"),
    "N": (Fraction(1), "kg m s^-2", "newton"),
    "J": (Fraction(1), "kg m^2 s^-2", "joule"),
    "W": (Fraction(1), "kg m^2 s^-3", "watt"),
    "Pa": (Fraction(1), "kg m^-1 s^-2", "pascal"),
    "Hz": (Fraction(1), "s^-1", "hertz"),
    "C": (Fraction(1), "A s", "coulomb"),
    "V": (Fraction(1), "kg m^2 s^-3 A^-1", "volt"),
    "F": (Fraction(1), "kg^-1 m^-2 s^4 A^2", "farad"),
    "ohm": (Fraction(1), "kg m^2 s^-3 A^-2", "Omega"),
    "T": (Fraction(1), "kg s^-2 A^-1", "tesla"),
    "H": (Fraction(1), "kg m^2 s^-2 A^-2", "henry henrie"),
    "S": (Fraction(1), "kg^-1 m^-2 s^3 A^2", "siemens"),
    "Wb": (Fraction(1), "kg m^2 s^-2 A^-1", "weber"),
    "eV": (Fraction(1602176634, 10**28), "kg m^2 s^-2", "electronvolt"),
    "cal": (Fraction(4184, 1000), "kg m^2 s^-2", "calorie"),
    "bar": (Fraction(10**5), "kg m^-1 s^-2", ""),
    "l": (Fraction(1, 1000), "m^3", "L liter litre"),
}
_PREFIXES = {
    "f": ("femto", -15), "p": ("pico", -12), "n": ("nano", -9), "u": ("micro", -6), "m": ("milli", -3),
    "c": ("centi", -2), "d": ("deci", -1), "h": ("hecto", 2), "k": ("kilo", 3), "M": ("mega", 6),
    "G": ("giga", 9), "T": ("tera", 12),
}  # fmt: skip
_OTHER: dict[str, tuple[Fraction, str, str]] = {
    "in": (_INCH, "m", "inch inche"),
    "ft": (12 * _INCH, "m", "foot feet"),
    "yd": (36 * _INCH, "m", "yard"),
    "mi": (63360 * _INCH, "m", "mile"),
    "um": (Fraction(1, 10**6), "m", "micron"),
    "acre": (43560 * (12 * _INCH) ** 2, "m^2", ""),
    "ha": (Fraction(10**4), "m^2", "hectare"),
    "ml": (Fraction(1, 10**6), "m^3", "cc"),
    "gal": (_GALLON, "m^3", "gallon"),
    "qt": (_GALLON / 4, "m^3", "quart"),
    "pt": (_GALLON / 8, "m^3", "pint"),
    "cup": (_GALLON / 16, "m^3", ""),
    "psi": (_POUND / _INCH**2, "kg m^-2", ""),
    "mM": (Fraction(1), "mol m^-3", ""),
    "uM": (Fraction(1, 1000), "mol m^-3", ""),
    "gm": (Fraction(1, 1000), "kg", ""),
    "kg": (Fraction(1), "kg", "kilo"),
    "tonne": (Fraction(1000), "kg", "metricton"),
    "oz": (_POUND / 16, "kg", "ounce"),
    "lb": (_POUND, "kg", ""),
    "pound": (_POUND, "kg", ""),
    "ton": (2000 * _POUND, "kg", ""),
    "min": (Fraction(60), "s", "minute"),
    "h": (Fraction(3600), "s", "hour hr"),
    "day": (Fraction(86400), "s", "d"),
    "week": (Fraction(604800), "s", "wk"),
    "month": (Fraction(1), "month", "mo"),
    "year": (Fraction(12), "month", "yr"),
    "atm": (_ATMOSPHERE, "kg m^-1 s^-2", "atmosphere"),
    "torr": (_ATMOSPHERE / 760, "kg m^-1 s^-2", "Torr"),
    "dollar": (Fraction(1), "dollar", "usd buck"),
    "cent": (Fraction(1, 100), "dollar", "penny pennies pennie"),
    "euro": (Fraction(1), "euro", "eur"),
    "pound_sterling": (Fraction(1), "pound_sterling", "gbp"),
    "pence": (Fraction(1, 100), "pound_sterling", ""),
    "paisa": (Fraction(1, 100), "rupee", "paise"),
    "yen": (Fraction(1), "yen", "jpy"),
    "yuan": (Fraction(1), "yuan", "cny rmb"),
    "rupee": (Fraction(1), "rupee", "inr rs"),
    "degree": (Fraction(1), "degree", "deg"),
    "arcminute": (Fraction(1, 60), "degree", ""),
    "arcsecond": (Fraction(1, 3600), "degree", ""),
    "degreeC": (Fraction(1), "degreeC", "celsius degreescelsius degreecelsius"),
    "degreeF": (Fraction(1), "degreeF", "fahrenheit degreesfahrenheit degreefahrenheit"),
    "radian": (Fraction(1), "radian", "rad"),
    "dozen": (Fraction(12), "dozen", ""),
    "%": (Fraction(1), "%", "percent percentage pct"),
}  # fmt: skip


def _table() -> tuple[dict[str, Unit], dict[str, str]]:
    """Units by their normal name, and the normal name of every spelling."""
    units: dict[str, Unit] = {}
    names: dict[str, str] = {}

    def add(name: str, factor: Fraction, dimension: str, spellings: list[str]) -> None:
        units.setdefault(name, (factor, _dimension(dimension)))
        for spelling in (name, *spellings):
            names.setdefault(spelling, name)

    for name, (factor, dimension, spellings) in (_OTHER | _SI).items():
        add(name, factor, dimension, spellings.split())
    for name, (factor, dimension, spellings) in _SI.items():
        for letter, (word, power) in _PREFIXES.items():
            spelled = [word + spelling for spelling in spellings.split() if spelling.islower()]
            prefixed = [letter + spelling for spelling in spellings.split() if len(spelling) == 1]
            add(letter + name, factor * Fraction(10) ** power, dimension, spelled + prefixed)
    return units, names


def _dimension(text: str) -> policy.Dimension:
    powers = (part.partition("^") for part in text.split())
    return tuple(sorted((base, int(power or 1)) for base, _, power in powers))


_UNITS, _NAMES = _table()
_COMPOUND = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "sqft": "ft^2", "mps": "m/s"}
_RUN_TOGETHER = {"Nm": "N m", "kNm": "kN m", "Ns": "N s", "Js": "J s", "Wh": "W h", "kWh": "kW h"}
_PER_SECOND = re.compile(r"\b([kc]?m)s(?=\s*\^\s*\{?\s*-)")
"""The m s^-1 of ms^-1; a number of something in a millisecond is written 1/ms."""
_FILLER = frozenset(
    {"of", "the", "a", "an", "in", "total", "each", "approximately", "about", "unit", "units", "long"}
)
_WORD = re.compile(r"[A-Za-z_%]+|\^|-?\d+|/")


def _one(word: str) -> str:
    """The normal name of one unit word; an unknown noun is its own unit, in the singular."""
    if word in _NAMES or word in _RUN_TOGETHER:
        return _NAMES.get(word) or _RUN_TOGETHER[word]
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
    text = _PER_SECOND.sub(r"\1 s", text.replace("\\Omega", "ohm")[:200])
    words = _WORD.findall(text.replace("\\", " ").replace("per cent", "percent"))
    for word, following in itertools.pairwise([*words, ""]):
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
        elif lower in _FILLER and word != "A" and not (lower == "in" and _ends_unit(following)):
            if prefix and lower in ("unit", "units"):
                parts.append(f"unit{prefix}")
                prefix = ""
        else:
            parts.append(_one(word) + prefix)
            prefix = ""
    joined = " ".join(parts).replace(" / ", "/").replace("/ ", "/").strip(" /")
    return joined


def _ends_unit(following: str) -> bool:
    """Whether "in" is an inch: in^2, in/s, lb/in; "in the box" goes on in words."""
    return following in ("", "^", "/", "per", "squared", "cubed") or following.lstrip("-").isdigit()


_STRAY_DIGIT = re.compile(r"(?<![\^\d-])\d")


def changes_value(value: Node, unit: str) -> bool:
    """Whether what follows a number is part of its value or denies it: a number, or a word of `policy`'s."""
    number = value.value if isinstance(value, Num) else None
    words = [part.partition("^")[0] for part in unit.replace("/", " ").split()]
    return bool(_STRAY_DIGIT.search(unit)) or policy.changes_value(number, words)


@lru_cache(maxsize=1024)
def convert(unit: str) -> Unit:
    """The factor to base units and the dimension of a unit in normal form."""
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
        scale, bases = _UNITS.get(name, (Fraction(1), ((name, 1),)))
        factor *= scale**power
        for base, inner in bases:
            dimension[base] = dimension.get(base, 0) + power * inner
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
            more = part.value.value * factor / first
            total = Quantity(Num(total.value.value + (-more if total.value.value < 0 else more)), total.unit)
        last = factor
    return total


def known(text: str) -> bool:
    """Whether every word of a unit is in the table: "square feet" and "km/h" are, "apples" is not."""
    parts = [part.partition("^")[0] for part in re.split(r"[ /]", normal_unit(text)) if part]
    return bool(parts) and all(part in _UNITS for part in parts)
