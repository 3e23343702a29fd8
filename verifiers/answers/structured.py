"""What the structured answer types share: a parsed answer, and its comparison."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from verifiers import policy
from verifiers.base import AnswerType, ParseError
from verifiers.equality.exact import children, free_symbols
from verifiers.equality.families import same_families
from verifiers.equality.function_letters import settled
from verifiers.equality.parameters import kinds_agree, renamed, without_domains
from verifiers.equality.same import same
from verifiers.equality.simplify import Inconsistent, comparable, simplify
from verifiers.grammar import parse
from verifiers.grammar.clean import clean
from verifiers.grammar.nodes import MAX_ITEMS, Group, Node, Num, Op, Sym
from verifiers.grammar.normal_words import normal_words
from verifiers.grammar.quantifiers import Declared, without_quantifiers

_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_TEXT_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|operatorname)[a-z]*\s*\{")
# Blanks mean something only between digits: 1 4/5 is not 14/5.
_OPERATOR = re.compile(r"[-+*/=^<>|!]")
_BLANKS = re.compile(r"(?<!\d)\s+|\s+(?!\d)")
# A reference of two numbers is a list, but 0,5 and 1000,99 are hardly one.
_SURELY_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,\d+|\d{3,},\d{1,2}|\d+,\d{4,})")
_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,\d+|\d+,(?:\d{1,2}|\d{4,}))")


@dataclass(frozen=True)
class Answer:
    """A parsed answer: its text without blanks, its words, its tree (None for plain words), what is said of
    letters.
    """

    key: str
    words: str
    node: Node | None
    contradicts: bool = False
    cleaned: str = field(default="", compare=False)
    declared: Declared = field(default=frozenset(), compare=False)


def read_answer(text: str) -> Answer:
    """Read any answer. Raises `ParseError` where it is neither mathematics within the bounds nor words."""
    cleaned = clean(text)
    key = _BLANKS.sub("", cleaned)
    words = normal_words(cleaned)
    contradicts = False
    node: Node | None = None
    declared: Declared = frozenset()
    try:
        meaning = policy.meaning_of(words)
        if meaning:
            node = Sym(meaning)
        else:
            body, declared = without_quantifiers(cleaned)
            node = _tree(body if declared else text)
    except Inconsistent:
        contradicts = True
    except ParseError:
        if not _reads_as_words(cleaned):
            raise
    except RecursionError:
        raise ParseError("an answer nested too deeply") from None
    return Answer(key, words, node, contradicts, cleaned, declared)


def _tree(text: str) -> Node | None:
    """The simplified tree of a text; None for a phrase. Raises `ParseError`."""
    node = parse(text)
    return None if _is_prose(node) else simplify(node)


def _reads_as_words(cleaned: str) -> bool:
    """Whether what the grammar refuses is still a phrase: words, and braces in balance."""
    if len(cleaned) > 1000 or cleaned.count("{") != cleaned.count("}"):
        return False
    return bool(_TEXT_COMMAND.search(cleaned) or _WORD.search(cleaned))


def is_word(node: object) -> bool:
    return isinstance(node, Sym) and node.name.startswith('"')


def _is_prose(node: object) -> bool:
    """Whether words stand inside an expression: then it is a phrase, and no product of its words."""
    if isinstance(node, Op):
        return any(is_word(arg) or _is_prose(arg) for arg in node.args)
    return any(_is_prose(part) for part in children(node))


def answers_equal(reference: Answer, given: Answer) -> bool:
    """Whether two answers are the same; the reference decides what is forgiven."""
    if reference.contradicts or given.contradicts:
        return reference.contradicts and reference.key == given.key
    if reference.key == given.key or (is_word(reference.node) and reference.node == given.node):
        return True
    if reference.node is None or is_word(reference.node):
        return _same_words(reference, given)
    if is_word(given.node):
        return _OPERATOR.search(reference.cleaned) is None and _same_words(reference, given)
    if given.node is None:
        return False
    if _same_trees(reference.node, given.node, reference.declared, given.declared):
        return True
    return _same_with_decimal_comma(reference, given)


def _same_trees(reference: Node, given: Node, declared: Declared, also: Declared) -> bool:
    """Whether two trees are the same answer, with what the answers say of their letters."""
    (ours, our_kinds), (theirs, their_kinds) = (
        without_domains(reference, declared),
        without_domains(given, also),
    )
    ours, theirs = settled(comparable(ours), comparable(theirs))
    if kinds_agree(our_kinds, their_kinds) and same(ours, theirs):
        return True
    if not free_symbols(ours):
        return False
    if same_families(ours, theirs, our_kinds, their_kinds):
        return True
    return any(same(ours, other) for other in renamed(ours, theirs, our_kinds, their_kinds))


def _same_words(reference: Answer, given: Answer) -> bool:
    """The same words, or the same run of letters without an operator between them ("y + es" is not yes)."""
    if not reference.words or bool(_OPERATOR.search(reference.cleaned)) != bool(
        _OPERATOR.search(given.cleaned)
    ):
        return False
    parts = [_named_parts(side.cleaned) for side in (reference, given)]
    if len(parts[0]) > 1 and parts[0] == parts[1]:
        return True
    if policy.says_yes_or_no(reference.words, given.words):
        return True
    return policy.same_words(reference.words, given.words)


_SEPARATOR = re.compile(r",|;|\band\b|&")


def _named_parts(cleaned: str) -> list[str]:
    """The names in "Amy and Bob", sorted: their order says nothing."""
    return sorted(filter(None, map(normal_words, _SEPARATOR.split(cleaned))))


def _same_with_decimal_comma(reference: Answer, given: Answer) -> bool:
    """1000,99 for 1000.99: two numbers would be no answer here, so the comma is a decimal one."""
    if (
        isinstance(reference.node, Num)
        and reference.node.decimals
        and _DECIMAL_COMMA.fullmatch(given.cleaned)
    ):
        return read_answer(given.key.replace(",", ".")).node == reference.node
    if isinstance(given.node, Num) and _SURELY_DECIMAL_COMMA.fullmatch(reference.cleaned):
        return read_answer(reference.key.replace(",", ".")).node == given.node
    return False


class Structured(AnswerType):
    """A type whose answers the grammar reads; a subclass says in `accepts` which trees are of its kind."""

    name = ""
    wanted = "an answer"

    def accepts(self, node: Node) -> bool:
        """Whether a tree is an answer of this type."""
        raise NotImplementedError

    def parse(self, text: str) -> Answer:
        """The answer. Raises `ParseError` for text that is not one of this type."""
        answer = read_answer(text)
        if answer.node is None or not self.accepts(answer.node):
            raise ParseError(f"expected {self.wanted}, got {text.strip()[:60]!r}")
        return answer

    def equal(self, reference: Answer, given: Answer) -> bool:
        return answers_equal(reference, given)


__all__ = ["MAX_ITEMS", "Answer", "Group", "Structured", "answers_equal", "is_word", "read_answer"]
