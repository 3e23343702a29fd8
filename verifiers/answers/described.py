r"""Answers in words around mathematics: "concave up on $(0,\infty)$", "The current is 2 amps.".

Such a text is read as its runs of words and the formulas between them: another one is the same where the
words are, and each formula equals its counterpart. A reference that is one sentence about one value names
that value as well, and is met by it alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from verifiers.answers.structured import Answer, answers_equal, is_word, read_answer
from verifiers.base import ParseError
from verifiers.extraction.markup import FORMULA
from verifiers.extraction.wording import NEGATION
from verifiers.grammar.normal_words import normal_words

MAX_DESCRIBED_CHARS = 1500
OTHER_SCRIPTS = "\u0400-\u04ff\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Letters that are words wherever they stand; Greek ones are not among them."""
MAX_CLAUSES, MAX_FORMULAS = 12, 24


@dataclass(frozen=True)
class Clause:
    """A part of a description: its words, with a mark where each formula stands, and the formulas."""

    words: str
    formulas: tuple[Answer, ...]


@dataclass(frozen=True)
class Described(Answer):
    """An answer in words: its clauses where they hold formulas, and the one value that it names."""

    clauses: tuple[Clause, ...] = ()
    value: Answer | None = None


def describe(answer: Answer, text: str, *, is_reference: bool = False) -> Answer:
    """An answer that is read as words, with what its formulas say; any other answer as it is."""
    worded = answer.node is None or is_word(answer.node) or answer.contradicts
    if not worded or len(text) > MAX_DESCRIBED_CHARS:
        return answer
    if isinstance(answer, Described):
        clauses = answer.clauses
    else:
        clauses = _clauses(text if _FORMULA_MARK.search(text) else answer.cleaned)
    value = _value(text) if is_reference else None
    if not clauses and value is None:
        return answer
    return Described(
        answer.key,
        answer.words,
        answer.node,
        answer.contradicts,
        answer.cleaned,
        answer.declared,
        clauses,
        value,
    )


def same_description(reference: Answer, given: Answer) -> bool:
    """Whether two answers in words say the same, clause by clause; clauses with words have no order."""
    if not isinstance(reference, Described) or not isinstance(given, Described):
        return False
    if not reference.clauses or len(reference.clauses) != len(given.clauses):
        return False
    if not all(clause.words.replace("#", "").strip() for clause in (*reference.clauses, *given.clauses)):
        return all(map(_same_clause, reference.clauses, given.clauses))
    left = list(given.clauses)
    for clause in reference.clauses:
        match = next((other for other in left if _same_clause(clause, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_clause(ours: Clause, theirs: Clause) -> bool:
    return (
        ours.words == theirs.words
        and len(ours.formulas) == len(theirs.formulas)
        and all(map(answers_equal, ours.formulas, theirs.formulas))
    )


_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"(?<!\\)\\(?:[,;:! ]|q?quad(?![A-Za-z]))|~")
_FORMULA_MARK = re.compile(r"(?<!\\)\$")
_MATH_MARK = re.compile(r"(?<!\\)\$+|\\[()\[\]]")
# In $a$ it is a name.
_ARTICLE = re.compile(r"(?<![$\w\\{(=,])(?:[aA]|[Aa]n|[Tt]he)\s+(?=[A-Za-z]{2,}\b)")
_FUNCTIONS = frozenset(
    {
        "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log",
        "ln", "exp", "lim", "sup", "inf", "gcd", "lcm", "mod", "det", "dim", "ker", "deg", "arg", "Re", "Im",
        "sgn", "pi", "sqrt", "frac",
    }
)  # fmt: skip
# A run of words: at least two letters each, not the name of a command and not its argument.
_WORD_RUN = re.compile(
    r"(?<![\\A-Za-z{_^])(?:@|[A-Za-z][a-z]+(?:'[a-z]+)?(?![A-Za-z(_^}])[.:]?)"
    rf"|[{OTHER_SCRIPTS}]+"
)
_IDLE = re.compile(r"\b(?:is|are)\b ?")
_SAME_WORD = {
    "min": "minimum", "max": "maximum", "pt": "point", "pts": "points", "approx": "approximately", "@": "at",
    "wherever": "where", "when": "where", "for": "where", "if": "where", "whenever": "where",
}  # fmt: skip


def _clauses(text: str) -> tuple[Clause, ...]:
    """The clauses of a text; () where none of them holds a formula, or a formula cannot be read."""
    plain = _SPACING.sub(" ", _TEXT.sub(r" \1 ", text))
    plain = _with_part_words(_MATH_MARK.sub(" ", _ARTICLE.sub("", plain)).strip().rstrip("."))
    if all(run[0].rstrip(".:") in _FUNCTIONS for run in _WORD_RUN.finditer(plain)):
        return ()
    clauses: list[Clause] = []
    found = 0
    for part in filter(str.strip, plain.split(";")):
        try:
            clause = _clause(part)
        except ParseError:
            return ()
        found += len(clause.formulas)
        clauses.append(clause)
    if not 0 < found <= MAX_FORMULAS or len(clauses) > MAX_CLAUSES:
        return ()
    return tuple(clauses) if any(c.words.replace("#", "").strip() for c in clauses) else ()


_PART = re.compile(
    r"(?:(?<=[\s,;.])|\A)(?:\(\s*([a-f]|i{1,3}|i?v|[1-6])\s*\)|([a-f]|i{1,3}|i?v|[1-6])[).](?=\s))\s*"
)
_PART_NUMBERS = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5} | {c: n for n, c in enumerate("abcdef", 1)}


def _with_part_words(text: str) -> str:
    """(a) 3 (b) 4 and the like with a word and a clause for each of at least two parts in their order."""
    parts = list(_PART.finditer(text))
    labels = [part[1] or part[2] for part in parts]
    numbers = [int(label) if label.isdigit() else _PART_NUMBERS[label] for label in labels]
    if len(parts) < 2 or parts[0].start() > 0 or numbers != list(range(1, len(parts) + 1)):
        return text
    ends = [*(part.start() for part in parts[1:]), len(text)]
    answers = (text[part.end() : end].strip(" ,;.") for part, end in zip(parts, ends, strict=True))
    return "; ".join(f"part{'abcdef'[n - 1]} {answer}" for n, answer in zip(numbers, answers, strict=True))


def _clause(part: str) -> Clause:
    words: list[str] = []
    formulas: list[Answer] = []
    position = 0
    runs = [run for run in _WORD_RUN.finditer(part) if run[0].rstrip(".:") not in _FUNCTIONS]
    for run in [*runs, None]:
        between = part[position : run.start() if run else len(part)]
        if run and between.endswith("-"):
            between = between[:-1]  # the hyphen of "y-intercept"
        formula = _balanced(between, between.strip(" ,.:()\n\t~"))
        if formula and re.search(r"[^\s,.;:()\[\]{}&-]", formula):
            answer = read_answer(formula)
            if answer.node is None or is_word(answer.node):
                raise ParseError("words in a formula")
            formulas.append(answer)
            words.append("#")
        if run:
            word = run[0].rstrip(".:").lower()
            words.append(_SAME_WORD.get(word, word))
            position = run.end()
    return Clause(" ".join(_IDLE.sub("", " ".join(words)).split()), tuple(formulas))


def _balanced(raw: str, stripped: str) -> str:
    """A formula without the commas around it, and with the brackets that it needs."""
    kept = raw.strip(" ,.:;\n\t~")
    return kept if kept.startswith("(") or stripped.count(")") != stripped.count("(") else stripped


# Another sentence, a yes or no, one of many answers.
_MORE = re.compile(
    r"[.!?;]\s+(?-i:[A-Z])|^(?:yes|no|true|false)\b|\bfor example\b|\be\.g\."
    r"|\b(?:many|several|infinitely)\b|\bone (?:is|of)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"[$\\()\s]*\\?[A-Za-z]+(?:_\{?\w{1,6}\}?)?(?:\([a-z]\))?[$\\()\s]*")
_NAMES = re.compile(
    r"""
    (?: \b(?:is|are|was|equals?|becomes|gives|be)(?:\ (?:about|approximately|exactly|only|given\ by))?
      | \b(?:has|have|with)\ (?:an?\ |the\ )?
        (?:length|area|volume|measure|value|slope|height|radius|width|mass|speed|magnitude|degree|rank|dimension
         |period|probability|mean|median|mode|variance)(?:\ of)?
      | [:=是为] | ^(?:about|approximately|exactly|approx\.?)
    )\s*\Z
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OTHER_VALUE = re.compile(
    r"\b(?:than|times|at least|at most|if|when|where|unless|or|and|each|every|half|twice|between|from"
    r"|per ?cent of|multiple|factor|divisible|either|neither|both|row|column|question|problem|part)\b",
    re.IGNORECASE,
)
_NUMBER = re.compile(r"(?<![\w.\\^])-?(?:\\?\$\s?)?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?![\w^])")
_UNIT_TAIL = re.compile(r"\s*(?:\\?%|[A-Za-z]+(?:\s(?:per\s)?[A-Za-z]+){0,3})?")


def _value(text: str) -> Answer | None:
    """The one value that a sentence names at its end, with its unit; None where it says more, or less."""
    sentence = " ".join(_TEXT.sub(r" \1 ", text).split()).rstrip(" .")
    if len(sentence) > 300 or NEGATION.search(sentence) or _MORE.search(sentence):
        return None
    formulas = list(FORMULA.finditer(sentence))
    if len(formulas) > 1:
        # formulas before the verb only name things: "the value of $a_{10}$ is $248$"
        named = sentence[: formulas[-1].start()]
        if not all(_NAME.fullmatch(formula[0]) for formula in formulas[:-1]):
            return None
    elif not formulas:
        numbers = list(_NUMBER.finditer(sentence))
        if len(numbers) != 1:
            return None
        formulas = numbers
        named = sentence[: numbers[0].start()]
    else:
        named = sentence[: formulas[0].start()]
    last = formulas[-1]
    tail = sentence[last.end() :]
    words = FORMULA.sub(" ", named)
    if not _NAMES.search(words) or _OTHER_VALUE.search(words) or not _UNIT_TAIL.fullmatch(tail):
        return None
    if _NUMBER.search(words) or _OTHER_VALUE.search(tail):
        return None
    unit = f"\\text{{{tail}}}" if tail.strip() and tail.strip() not in ("%", "\\%") else tail
    try:
        value = read_answer(last[0].strip() + unit)
    except ParseError:
        return None
    return None if value.node is None or is_word(value.node) or value.contradicts else value


__all__ = ["Clause", "Described", "describe", "normal_words", "same_description"]
