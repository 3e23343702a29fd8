"""The rule book: what counts as the same answer, in small functions with a sentence each.

The fast path and the full path ask the same functions, so that a rule that changes here changes everywhere.
They take numbers, units and words, never trees: the rules do not depend on how an answer was read. The last
lines list them in order; `python -m verifiers policy` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

ONE, HUNDREDTH = Fraction(1), Fraction(1, 100)

MIN_TOLERANT_DIGITS = 3
"""A decimal reference with fewer significant digits than this says too little to tell a rounding by."""

Dimension = tuple[tuple[str, int], ...]
"""(base unit, exponent) pairs, sorted, without zeros: (("m", 1), ("s", -2))."""
Unit = tuple[Fraction, Dimension]
"""A unit as its factor to the base units, and its dimension."""


# Percentages


def percent_readings(
    reference_is_percent: bool, given_is_percent: bool, reference_is_share: bool
) -> tuple[tuple[Fraction, Fraction, bool], ...]:
    """p% is the number p/100: where the reference says percent, a bare p is read as p%; where it does not, p%
    is not p, and only a reference of at most 1 in size, which can be a share, may be written as a percentage.

    Each reading is (factor of the reference, factor of the given value, whether the reference's own digits
    allow a rounding); the values agree if they do so in one of them.
    """
    if reference_is_percent == given_is_percent:
        return ((ONE, ONE, True),)
    if reference_is_percent:
        return ((ONE, ONE, True), (HUNDREDTH, ONE, False))
    return ((ONE, HUNDREDTH, False),) if reference_is_share else ()


def is_share(value: Fraction | None) -> bool:
    """A share is a rational number of at most 1 in size."""
    return value is not None and abs(value) <= 1


_SENTENCE = re.compile(r"(?<=[?!])\s+|(?<=\.)\s+(?=\D)")
_PERCENT_WORD = r"per ?cent(?:age)?(?! ?points?)\b"
_DESCRIBED = (
    r"(?:(?:the|his|her|their|its|this|your|our|an?|average|mean|total|overall|combined|approximate|exact|final"
    r"|new|minimum|maximum|least|greatest|smallest|largest|highest|lowest|net|relative|probability|chance|change"
    r"|increase|decrease|win|winning|success|in|of|as|answer) ){0,4}"
)
_ASKS_FOR_PERCENT = re.compile(
    rf"\b(?:what|which|how many)(?:'s| is| are| was| were| will be| would be)? {_DESCRIBED}{_PERCENT_WORD}"
    rf"|\b(?:find|calculate|determine|compute|give|state|express|write|estimate) {_DESCRIBED}{_PERCENT_WORD}"
    rf"|\b(?:as|in) (?:an? )?{_PERCENT_WORD}"
)
_ASKS_FOR_SOMETHING = re.compile(
    r"\?|\b(?:find|calculate|determine|compute|give|state|express|write|estimate|what|how)\b"
)
_ANOTHER_FORM = re.compile(
    r"\bas an? (?:\w+ )?(?:decimal|fraction|ratio|integer)\b|\band (?:what|how|which)\b"
)
_BARE_NUMBER = re.compile(r"-?(\d[\d,]*(?:\.\d+)?)(?:\\[dt]?frac\{\d+\}\{\d+\}| \d+/\d+)?")
_QUESTION_CHARS = 1000


def asks_for_percent(question: str) -> bool:
    """A question asks for a percentage where its last sentences that ask for anything do: "What percentage of
    the flowers are roses?" does, "What is 60 percent of 80?" does not, nor do several questions in one.
    """
    text = " ".join(question[-_QUESTION_CHARS:].lower().split())
    if "percent" not in text and "per cent" not in text:
        return False
    sentences = _SENTENCE.split(text)
    asking = [i for i, sentence in enumerate(sentences) if _ASKS_FOR_SOMETHING.search(sentence)]
    marked = [i for i in asking if "?" in sentences[i]]
    if not asking:
        return False
    asked = " ".join(sentences[(marked or asking)[-1] :])
    return bool(_ASKS_FOR_PERCENT.search(asked)) and not _ANOTHER_FORM.search(asked)


def as_asked(answer: str, question: str, answer_type: str = "auto", options: Sequence[str] = ()) -> str:
    """A bare number above 1 that answers a question for a percentage is that many percent, with the sign or
    without it; a smaller one may be a share and stays as it is.

    The reference as `verify` is to have it: no verifier sees the question. Only of the types auto and number,
    without options.
    """
    found = _BARE_NUMBER.fullmatch(answer.strip())
    if found is None or answer_type not in ("auto", "number") or options:
        return answer
    is_asked_for = float(found[1].replace(",", "")) > 1 and asks_for_percent(question)
    return answer.strip() + "\\%" if is_asked_for else answer


# Rounding


def stated_decimals(fraction: str) -> int | None:
    """Digits after the point say how exact a number is; "18.0" is how programs write the integer 18."""
    return None if fraction in ("", "0") else len(fraction)


def may_round(reference: Fraction, decimals: int) -> bool:
    """A decimal of one significant digit says too little: it is met exactly only (0.54 is not 0.5)."""
    return _significant_digits(reference, decimals) >= MIN_TOLERANT_DIGITS - 1


def within_own_digits(reference: Fraction, decimals: int, given: Fraction, given_terminates: bool) -> bool:
    """A decimal reference allows half a unit of its last digit, if it has three significant digits or more;
    one of two digits is met by a value that no decimal writes exactly, or by a decimal with two places more
    (0.2902 is 0.29, 0.54 is not 0.5).
    """
    unit = Fraction(10) ** -decimals
    if _significant_digits(reference, decimals) < MIN_TOLERANT_DIGITS:
        finer = not given_terminates or (given / unit * 10).denominator > 1
        if not may_round(reference, decimals) or not finer:
            return reference == given
    return abs(given - reference) * 2 <= unit


def _significant_digits(value: Fraction, decimals: int) -> int:
    return len(str(int(abs(value) * 10**decimals)))


# Units


def unit_factor(reference: Unit | None, given: Unit | None) -> Fraction | None:
    """A missing unit is forgiven on either side; units of one dimension are converted exactly, and another
    dimension is another answer. Bare "units", square or cubic ones too, stand for any unit of length to that
    power.

    What the given value is multiplied by before it is compared; None: the answers differ.
    """
    if reference is None or given is None:
        return ONE
    (ours, our_dimension), (theirs, their_dimension) = reference, given
    if our_dimension == their_dimension:
        return theirs / ours
    if _unnamed(our_dimension) or _unnamed(their_dimension):
        same_power = max(_power(our_dimension), 1) == max(_power(their_dimension), 1)
        return ONE if same_power else None
    return None


def _unnamed(dimension: Dimension) -> bool:
    return len(dimension) == 1 and dimension[0][0] == "unit"


def _power(dimension: Dimension) -> int:
    """The exponent of the only length or unit in a dimension; 0 for any other."""
    return dimension[0][1] if len(dimension) == 1 and dimension[0][0] in ("unit", "m") else 0


def may_be_left_out(unit: str) -> bool:
    """Minutes and seconds of arc are never left out: 10' is a sixth of a degree, and not 10."""
    return unit not in ("arcminute", "arcsecond")


def may_mean_both(reference: str, given: str) -> bool:
    """The word pounds means the mass and the money, and the sign of the yen is the yuan's too; each is met by
    what means both, and not by the other.
    """
    both = ({"pound", "lb"}, {"pound", "pound_sterling"}, {"yen_sign", "yen"}, {"yen_sign", "yuan"})
    return {reference, given} in both


_CHANGES_VALUE = frozenset(
    re.findall(
        r"\w+",
        """
        tens tenth tenths hundredth hundredths thousandth thousandths third thirds halve half lakh
        crore gross gros score mille squared cubed doubled tripled halved plus minus below base over
        divided choose through or if otherwise wrong incorrect false not no none negative impossible
        undefined cannot least most
        """,
    )
)
_COUNTS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def changes_value(value: Fraction | None, words: Sequence[str]) -> bool:
    """Words after a number that are part of its value, or deny it, are no unit: 42 tenths, 42 plus one, 42 is
    wrong.
    """
    return any(
        word in _CHANGES_VALUE or (word in _COUNTS and value != _COUNTS.index(word) + 1) for word in words
    )


# Hedging and order


def one_value(num_different: int) -> bool:
    """A value may be said in several forms; several different values never meet a single one."""
    return num_different == 1


def order_counts(
    reference_brackets: str, given_brackets: str, is_labelled: bool, num_items: int
) -> bool | None:
    """Lists and sets have no order, points and vectors have one; labels (x = 1, y = 2) give a list the order
    of the names, and a bare list may be a point. Other brackets mean the same from three items on, where none
    is an interval.

    None: such brackets never mean the same.
    """
    kinds = (reference_brackets, given_brackets)
    if all(kind in UNORDERED for kind in kinds) and not is_labelled:
        return False
    if "\\{\\}" in kinds:
        return None
    if any(kind in BARE for kind in kinds):
        bare = ("", "and") if is_labelled else ("",)
        return True if all(kind in POINTS or kind in bare for kind in kinds) else None
    alike = reference_brackets == given_brackets or all(kind in POINTS for kind in kinds)
    return True if alike or num_items > 2 else None


BARE = frozenset({"", "or", "and"})
UNORDERED = BARE | {"\\{\\}"}
POINTS = frozenset({"()", "langlerangle"})


# Letters


_INTEGER_PARAMETERS = frozenset("kmnlj")
_FREE_CONSTANT = re.compile(r"[CcKk](?:_\{?\w{1,3}\}?)?")


def is_integer_parameter(name: str) -> bool:
    """k, m, n, l and j run over the integers of a general solution such as k pi; other letters need the
    words.
    """
    return name in _INTEGER_PARAMETERS


def is_free_constant(name: str) -> bool:
    """C, c, K and k, also indexed, are constants that may be renamed one to one; a, b and others need the
    words.
    """
    return _FREE_CONSTANT.fullmatch(name) is not None


_FUNCTIONS = frozenset("fghFGH") | {"phi", "varphi", "psi", "Phi", "Psi", "Gamma", "zeta"}


def is_function_letter(name: str) -> bool:
    """f, g, h, F, G, H, phi, psi, Gamma and zeta before a bracket are functions; where one also stands
    without, it is a factor.
    """
    return name.rstrip("'").partition("_")[0] in _FUNCTIONS


def is_function_value(name: str, is_number: bool, stands_bare: bool) -> bool:
    """A letter before a bracketed number is the value of a function, a symbol of its own: f(0) is not 0 and
    g(2) is not 2g(1). It is a factor where the reference also has the letter without brackets, or in x(x +
    1).
    """
    return not stands_bare and (is_number or is_function_letter(name))


def may_be_factor(name: str, with_variables: bool) -> bool:
    """g, h and others, but not f, before a bracket with variables are factors where the given answer has them
    bare: h(a + b)/2 is (a + b)h/2, but f(x + y) and g(2) stay what they are.
    """
    return with_variables and name.rstrip("'") not in ("f", "F")


def may_divide_by(reference: frozenset[str], given: frozenset[str]) -> bool:
    """An answer divides by no letters that its reference lacks, not even such as cancel: 42x/x is not 42."""
    return given <= reference


# Words


_MEANINGS = {
    "emptyset": (
        "no solution", "no solutions", "no real solution", "no real solutions", "there is no solution",
        "there are no solutions", "none", "empty set", "the empty set", "no value", "no values",
        "no such value",
    ),
    "set R": (
        "all real numbers", "all reals", "the real numbers", "real numbers", "all real x",
        "all real numbers x",
    ),
    '"undefined"': ("does not exist", "dne", "undefined", "not defined", "is undefined"),
}  # fmt: skip
_MEANING_OF = {phrase: meaning for meaning, phrases in _MEANINGS.items() for phrase in phrases}


def meaning_of(words: str) -> str | None:
    """Phrases for the empty set, the real line and a value that is not there mean these, and nothing else
    does.
    """
    return _MEANING_OF.get(words)


_YES_IT_IS = re.compile(
    r"(?:yes|no) (?:it|they|he|she|there|we) (?:is|are|does|do|can|has|have|was|will)(?: not)?"
)


def says_yes_or_no(reference: str, given: str) -> bool:
    """Yes is met by "yes, it is" and No by "no, it is not"; a denial after yes is none."""
    if reference not in ("yes", "no") or not _YES_IT_IS.fullmatch(given):
        return False
    return given.startswith(reference) and given.endswith("not") <= (reference == "no")


_ARTICLE = re.compile(r"^(?:an?|the) (?=\w{2})")


def same_words(reference: str, given: str) -> bool:
    """Words are the same whatever their blanks, a leading article and the "and" between them."""
    ours, theirs = (_ARTICLE.sub("", words.replace(" and ", " ")) for words in (reference, given))
    return ours == theirs or ours.replace(" ", "") == theirs.replace(" ", "")


RULES: dict[str, tuple[Callable[..., object], ...]] = {
    "percentages": (percent_readings, is_share, asks_for_percent, as_asked),
    "rounding": (stated_decimals, may_round, within_own_digits),
    "units": (unit_factor, may_be_left_out, may_mean_both, changes_value),
    "hedging and order": (one_value, order_counts),
    "letters": (
        is_integer_parameter, is_free_constant, is_function_letter, is_function_value, may_be_factor,
        may_divide_by,
    ),
    "words": (meaning_of, says_yes_or_no, same_words),
}  # fmt: skip


def rule_book() -> str:
    """The rules as text: a heading for each subject, and the sentence of each of its functions."""
    lines: list[str] = []
    for subject, rules in RULES.items():
        lines += ["", subject.capitalize()]
        for rule in rules:
            sentence = " ".join((rule.__doc__ or "").strip().partition("\n\n")[0].split())
            lines.append(f"  {rule.__name__}: {sentence}")
    return "\n".join(lines[1:])
