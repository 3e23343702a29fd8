"""Numbers as people write them without formulas, read exactly: `-1,234.50`, `$40`, `25%`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 2000
"""A number with more digits than this is refused unread."""

MIN_TOLERANT_DIGITS = 3
"""A decimal reference with fewer significant digits than this says too little to tell a rounding by."""

_PLAIN = re.compile(
    r"([-+]?)(\\?\$|[€£¥])?([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?\s*(\\?%|\\?\$|[€£¥])?\.?", re.ASCII
)
CURRENCIES = {"$": "dollar", "\\$": "dollar", "€": "euro", "£": "pound_sterling", "¥": "yen"}


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """value: exact. decimals: digits after the point, None for an integer. mark: "%", a currency or ""."""

    value: Fraction
    decimals: int | None = None
    mark: str = ""


@functools.lru_cache(maxsize=4096)
def read_plain(text: str) -> PlainNumber | None:
    """Read a plain number, None where the text is anything else or longer than `MAX_DIGITS`."""
    if len(text) > MAX_DIGITS:
        return None
    match = _PLAIN.fullmatch(text.strip())
    if match is None:
        return None
    sign, before, inner_sign, whole, fraction, after = match.groups()
    if (not whole and not fraction) or (sign and inner_sign) or (before and after):
        return None
    if whole and len(whole) > 1 and whole[0] == "0" and "," in whole:
        return None
    digits = (whole or "").replace(",", "") + (fraction or "")
    value = Fraction(int(digits), 10 ** len(fraction or ""))
    if "-" in (sign, inner_sign):
        value = -value
    mark = before or after or ""
    mark = CURRENCIES.get(mark, "%" if "%" in mark else "")
    return PlainNumber(value, stated_decimals(fraction or ""), mark)


def stated_decimals(fraction: str) -> int | None:
    """Digits after the point that say how exact a number is; "18.0" is how programs write the integer 18."""
    return None if fraction in ("", "0") else len(fraction)


def within_own_digits(reference: Fraction, decimals: int, given: Fraction, given_terminates: bool) -> bool:
    """Whether a value rounds to a decimal reference: |given - reference| <= half a unit of its last digit.

    A reference with fewer than `MIN_TOLERANT_DIGITS` significant digits says little to tell a rounding from
    another number (0.54 is not 0.5): one digit is met exactly only; two by a value that no decimal writes
    exactly, or by a decimal with at least two places more (0.2902 is 0.29).
    """
    unit = Fraction(10) ** -decimals
    significant = len(str(int(abs(reference) / unit)))
    if significant < MIN_TOLERANT_DIGITS:
        finer = not given_terminates or (given / unit * 10).denominator > 1
        if significant < MIN_TOLERANT_DIGITS - 1 or not finer:
            return reference == given
    return abs(given - reference) * 2 <= unit


def terminates(value: Fraction) -> bool:
    """Whether a finite decimal writes this value exactly."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def same_plain(reference: PlainNumber, given: PlainNumber) -> bool:
    """Whether two plain numbers agree, marks included.

    A percentage p% is the number p/100. Where the reference says percent, a given p without the sign means
    p%; where it does not, p% is not p, and only a number up to 1 may be written as a percentage. A missing
    currency is forgiven on either side, a different one is not.
    """
    ours, theirs = reference.value, given.value
    if reference.mark != given.mark and "%" in (reference.mark, given.mark):
        if reference.mark == "%":
            return given.mark == "" and (ours == theirs or ours == theirs * 100)
        return reference.mark == "" and abs(ours) <= 1 and ours * 100 == theirs
    if reference.mark and given.mark and reference.mark != given.mark:
        return False
    if ours == theirs:
        return True
    return reference.decimals is not None and within_own_digits(
        ours, reference.decimals, theirs, terminates(theirs)
    )
