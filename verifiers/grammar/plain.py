"""Numbers as people write them without formulas, read exactly: `-1,234.50`, `$40`, `25%`."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from verifiers import policy

MAX_DIGITS = 2000
"""A number with more digits than this is refused unread."""

_PLAIN = re.compile(
    r"([-+]?)(\\?\$|[€£¥₹])?([-+]?)(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?\s*(\\?%|\\?\$|[€£¥₹])?\.?", re.ASCII
)
CURRENCIES = {
    "$": "dollar",
    "\\$": "dollar",
    "€": "euro",
    "£": "pound_sterling",
    "¥": "yen_sign",
    "₹": "rupee",
}


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
    return PlainNumber(value, policy.stated_decimals(fraction or ""), mark)


def terminates(value: Fraction) -> bool:
    """Whether a finite decimal writes this value exactly."""
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def same_plain(reference: PlainNumber, given: PlainNumber) -> bool:
    """Whether two plain numbers agree, marks included; the rules are `policy`'s."""
    if "%" not in (reference.mark, given.mark):
        if reference.mark and given.mark and reference.mark != given.mark:
            return False
    elif reference.mark not in ("", "%") or given.mark not in ("", "%"):
        return False
    for ours, theirs, rounds in policy.percent_readings(
        reference.mark == "%", given.mark == "%", policy.is_share(reference.value)
    ):
        a, b = reference.value * ours, given.value * theirs
        if a == b:
            return True
        tolerant = rounds and reference.decimals is not None
        if tolerant and policy.within_own_digits(a, reference.decimals or 0, b, terminates(b)):
            return True
    return False
