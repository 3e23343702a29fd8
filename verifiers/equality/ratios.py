"""Times of day and ratios: 6:30, 08:34 PM, 3 : 2."""

from __future__ import annotations

from verifiers.equality.values import values_equal
from verifiers.grammar.nodes import Node, Num, Op, Ratio


def same_ratios(reference: Node, given: Node) -> bool:
    """Times digit for digit, with am and pm; ratios up to a common factor; a : b also as a / b."""
    if isinstance(reference, Ratio) and isinstance(given, Ratio):
        ours, theirs = _minutes(reference), _minutes(given)
        if ours is not None and theirs is not None:
            if (reference.suffix and given.suffix) or (not reference.suffix and not given.suffix):
                return ours == theirs
            # Without am or pm the clock's face decides; 20:34 can only be 8:34 pm, and 0:00 is no noon.
            theirs_says = bool(given.suffix)
            on_the_face = 60 <= (ours if theirs_says else theirs) < 780
            return ours == theirs or (on_the_face and abs(ours - theirs) == 720)
        if ours is not None and not all(given.digits):
            return False  # 9:24+1 is no time
        if (ours is None) != (theirs is None) and _padded(reference if theirs is None else given):
            return False
        if reference.suffix or given.suffix or len(reference.parts) != len(given.parts):
            return False
        first = zip(reference.parts, given.parts, strict=True)
        a, b = reference.parts[0], given.parts[0]
        return all(values_equal(Op("mul", (part, b)), Op("mul", (other, a))) for part, other in first)
    ratio, other = (reference, given) if isinstance(reference, Ratio) else (given, reference)
    if (
        not isinstance(ratio, Ratio)
        or len(ratio.parts) != 2
        or ratio.suffix
        or not isinstance(other, Op | Num)
    ):
        return False
    return values_equal(Op("div", ratio.parts), other)


def _padded(ratio: Ratio) -> bool:
    """3:05 can only be a time; 3:5 and 6:30 may be ratios."""
    return ratio.digits[-1].startswith("0")


def _minutes(time: Ratio) -> int | None:
    """Minutes since midnight of hh:mm, None where it can be no time of day."""
    if len(time.digits) != 2 or not all(digit.isdigit() for digit in time.digits) or len(time.digits[1]) != 2:
        return None
    hours, minutes = int(time.digits[0][:4]), int(time.digits[1])
    if hours > 24 or minutes > 59 or (time.suffix and hours > 12):
        return None
    if time.suffix:
        hours = hours % 12 + (12 if time.suffix == "pm" else 0)
    return hours * 60 + minutes
