"""References that are lists: of alternatives (any one is right) and of several answers (all are needed).

A reference is a JSON list of texts, numbers and booleans: `["1/2", "0.5"]`; a text that is no list is a list
of one. A list inside of a list is of the other kind: any of `[["2", "3"], "no solution"]` is both 2 and 3, or
none. Items are read as `auto` reads a reference, true and false as yes and no.
"""

from __future__ import annotations

import ast
import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from verifiers.answers.auto import Auto
from verifiers.answers.stated import parse_stated
from verifiers.answers.structured import Answer
from verifiers.answers.text import Boolean
from verifiers.base import AnswerType, ParseError
from verifiers.grammar.clean import clean

MAX_SEVERAL = 64
MAX_LIST_CHARS = 20_000
_STRING = re.compile(r"""'(?:\\.|[^'\\])*'|["](?:\\.|[^"\\])*["]""", re.DOTALL)

_auto, _boolean = Auto(), Boolean()


@dataclass(frozen=True)
class Several:
    """A reference: its text, its items, and the items as one list in a row where that can be read."""

    text: str
    items: tuple[Any, ...]
    together: Answer | None = None


@dataclass(frozen=True)
class Given:
    """An answer: its text, and what it reads as; None where only its parts are read."""

    text: str
    answer: Answer | None


class _ListType(AnswerType):
    """What both kinds share: how a list is read."""

    def parse(self, text: str) -> Given:
        """A model's answer. Raises `ParseError` where neither it nor all of its parts can be read."""
        try:
            return Given(text, _auto.parse(text))
        except ParseError:
            if any(_read_all(parts) for parts in _partitions(text)):
                return Given(text, None)
            raise

    def parse_reference(self, text: str) -> Several:
        """The items of a reference. Raises `ParseError` for an empty or too long list, or an unread item."""
        values = _json_list(text)
        if values is None:
            return Several(text, (parse_stated(_auto, text),))
        if not 0 < len(values) <= MAX_SEVERAL:
            raise ParseError(f"a list of {len(values)} answers; one to {MAX_SEVERAL} are read")
        return Several(text, tuple(self._item(value) for value in values), _together(values))

    def as_answer(self, reference: str) -> str:
        """The first alternative, or all that is needed with commas between."""
        values = _json_list(reference)
        if not values:
            return reference
        texts = [
            self.other()().as_answer(json.dumps(v)) if isinstance(v, list) else _in_words(v) for v in values
        ]
        return self._stated(texts)

    def equal(self, reference: Several | Given, given: Several | Given) -> bool:
        if reference.text.strip() == given.text.strip():
            return True
        if not isinstance(given, Given):
            return False
        if not isinstance(reference, Several):  # an answer in the place of a reference
            return _item_equal(reference.answer, given) if reference.answer else False
        if len(reference.items) == 1:
            return _item_equal(reference.items[0], given)
        return self._met(reference, given)

    def _item(self, value: Any) -> Any:
        if isinstance(value, list):
            return self.other()().parse_reference(json.dumps(value)), self.other()()
        if isinstance(value, bool):
            return value
        if isinstance(value, str | int | float):
            return parse_stated(_auto, str(value))
        raise ParseError(
            f"an answer in a list must be a text, a number or a list, got {type(value).__name__}"
        )

    @abstractmethod
    def other(self) -> type[_ListType]:
        """The kind that a list inside of this one is."""

    @abstractmethod
    def _stated(self, texts: Sequence[str]) -> str:
        """An answer of these items."""

    @abstractmethod
    def _met(self, reference: Several, given: Given) -> bool:
        """Whether an answer meets a reference of at least two items."""


class AnyOf(_ListType):
    """A JSON list of alternatives; an answer is right that equals one of them."""

    name: ClassVar[str] = "any_of"

    def other(self) -> type[_ListType]:
        return AllOf

    def _stated(self, texts: Sequence[str]) -> str:
        return texts[0]

    def _met(self, reference: Several, given: Given) -> bool:
        return any(_item_equal(item, given) for item in reference.items)


class AllOf(_ListType):
    """A JSON list of several answers; right is each of them once, in any order, and nothing else."""

    name: ClassVar[str] = "all_of"

    def other(self) -> type[_ListType]:
        return AnyOf

    def _stated(self, texts: Sequence[str]) -> str:
        return ", ".join(texts)

    def _met(self, reference: Several, given: Given) -> bool:
        count = len(reference.items)
        for parts in _partitions(given.text):
            if len(parts) == count and (answers := _read_all(parts)) and _matched(reference.items, answers):
                return True
        return reference.together is not None and _item_equal(reference.together, given)


def joins_texts(text: str) -> bool:
    """Whether texts stand side by side, as numpy prints a list: Python would make 67 of ['6' '7']."""
    return re.search(r"\0\s*\0", _STRING.sub("\0", text)) is not None


def _json_list(text: str) -> list[Any] | None:
    """The list that a text writes in JSON (or as Python shows one); None for any other text.

    Raises `ParseError` for a text that is too long.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    if len(text) > MAX_LIST_CHARS:
        raise ParseError(f"a list of {len(text)} characters, at most {MAX_LIST_CHARS} are read")
    if joins_texts(text):
        return None
    for read in (json.loads, ast.literal_eval):  # neither runs anything
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list) else None
    return None


def _in_words(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _together(values: Sequence[Any]) -> Answer | None:
    if len(values) < 2 or not all(
        isinstance(v, str | int | float) and not isinstance(v, bool) for v in values
    ):
        return None
    try:
        return _auto.parse(" \\text{ and } ".join(str(value) for value in values))
    except ParseError:
        return None


def _item_equal(item: Any, given: Given) -> bool:
    if isinstance(item, bool):
        try:
            return _boolean.parse(given.text) is item
        except ParseError:
            return False
    if isinstance(item, tuple):
        inner, kind = item
        return bool(kind.equal(inner, given))
    return given.answer is not None and _auto.equal(item, given.answer)


def _read_all(parts: Sequence[str]) -> list[Given]:
    try:
        return [Given(part, _auto.parse(part)) for part in parts]
    except ParseError:
        return []


def _matched(items: Sequence[Any], answers: Sequence[Given]) -> bool:
    """Whether items and answers can be paired off, each equal to its own (Kuhn's augmenting paths)."""
    taken: dict[int, int] = {}  # answer -> item

    def place(item: int, seen: set[int]) -> bool:
        for index in range(len(answers)):
            if index in seen or not equal[item][index]:
                continue
            seen.add(index)
            if index not in taken or place(taken[index], seen):
                taken[index] = item
                return True
        return False

    equal = [[_item_equal(item, answer) for answer in answers] for item in items]
    return all(place(item, set()) for item in range(len(items)))


_SEPARATORS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\s*;\s*(?:\\text\s*\{\s*)?(?:and\b|or\b)?\s*\}?",
        r"\s*(?:\n|\\\\|\\q?quad\b)\s*",
        r"\s*(?:\\q?quad\s*)?(?:\\(?:text|mbox|textrm|mathrm)\s*\{[\s~]*(?:and|or)[\s~]*\}|\b(?:and|or)\b|&|\\vee|\\lor)"
        r"(?:\s*\\q?quad)?\s*",
        r"\s*,\s*(?:(?:\\text\s*\{\s*)?\b(?:and|or)\b\s*\}?)?\s*|\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b)\s*",
    )
)
_OPENING, _CLOSING = "([{", ")]}"
_WRAPPED = re.compile(r"(?:\\left)?\s*(?:\\\{|[\[({])(.*?)(?:\\right)?\s*(?:\\\}|[\])}])", re.DOTALL)


def _partitions(text: str) -> Iterator[list[str]]:
    """The parts of a text at each sort of separator outside of brackets; also of what brackets hold whole."""
    try:
        text = clean(text).strip("$").strip()
    except ParseError:
        return
    inner = _WRAPPED.fullmatch(text)
    for whole in (text, inner[1] if inner else ""):
        for separator in _SEPARATORS:
            parts = _split(whole, separator)
            if len(parts) > 1:
                yield parts


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    depths, depth = [], 0
    for char in text:
        # \text{ and } separates where it stands, so the braces of a separator count as outside
        if char in _CLOSING:
            depth -= 1
        depths.append(depth)
        if char in _OPENING:
            depth += 1
    parts, start = [], 0
    for found in separator.finditer(text):
        if found.end() > found.start() and depths[found.start()] <= 0:
            parts.append(text[start : found.start()].strip(" $"))
            start = found.end()
    return [part for part in (*parts, text[start:].strip(" $")) if part]
