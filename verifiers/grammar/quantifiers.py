r"""What an answer says of its letters: "k \in \mathbb{Z}", "where C is a constant", "for all real x".

Such a clause ends an answer. It is taken off, so that the grammar reads what it speaks of, and what it says
of the letters is kept. The end of the answer is cut into words first, whatever of it stands in \text{...}.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CLAUSES = 4
MAX_CLAUSE_CHARS = 160

INTEGER, NATURAL, POSITIVE, CONSTANT = "integer", "natural", "positive integer", "constant"

Declared = frozenset[tuple[str, str]]
"""(letter, kind) pairs."""

_WORD = re.compile(
    r"""
    \\(?:text(?:rm|normal)?|mbox|mathrm)\s*\{ | [}~\s$]+ | \\[,;:!\ ] | \\q?quad(?![a-zA-Z])  # between words
    | (?P<set>\\(?:mathbb|mathbf|Bbb)\s*\{?\s*[A-Z]\s*\}?|\\[NZRC](?![a-zA-Z]))
      (?P<plus>\s*\^\s*\{?\s*[+*]\s*\}?|\s*_\s*\{?\s*\+\s*\}?)?
    | (?P<name>(?:\\(?!in(?![a-z])|forall|[lc]?dots|pm(?![a-z]))[a-zA-Z]+|[A-Za-z](?![A-Za-z]))
              (?:_(?:\{\w{1,3}\}|\w))?)
    | (?P<word>\\[a-zA-Z]+|[A-Za-z]+(?:-[a-z]+)?|\d+|\.\.\.|.)
    """,
    re.VERBOSE | re.DOTALL,
)
_SET_KINDS = {"Z": INTEGER, "N": NATURAL, "R": CONSTANT, "C": CONSTANT}
_N = r"@[^ ]+"
_NAMES = rf"(?P<names>{_N}(?: (?:,|and) {_N})*)"
_NOUNS = {
    INTEGER: "integers?",
    NATURAL: "(?:natural numbers?|non-?negative integers?)",
    POSITIVE: "positive integers?",
    CONSTANT: "(?:(?:(?:real|arbitrary|complex|any|fixed) )*(?:constants?|numbers?|reals?|parameters?)"
    "|(?:real|arbitrary))",
}
_DOTS = r"(?:\\[lc]?dots\w?|\.\.\.)"
_ANY = "(?:(?:any|all|every|each|some) )?"
_WORTH_A_LOOK = re.compile(
    r"\b(?:for|where|with|any|all|integer|constants?|is|an?)\b|\\in(?![a-z])|dots|\.\.\.|forall"
)


def _clauses() -> Iterator[tuple[str, re.Pattern[str]]]:
    """The clauses, over words with a blank between them; names of letters have @ before them."""

    def ending(clause: str) -> re.Pattern[str]:
        return re.compile(rf"(?:^| )(?P<clause>(?:[,;.:(] )*{clause}(?: [).])*)$")

    for kind, noun in _NOUNS.items():
        yield kind, ending(f"(?:for|where|with) {_ANY}{noun} {_NAMES}")
        article = "(?:(?:is|are|being) )?(?:(?:an|@a|any|some) )?"
        yield kind, ending(f"(?:for|where|with|and) {_NAMES} {article}{noun}")
        yield (
            kind,
            ending(rf"[,;(] {_NAMES} (?:(?:is|are|being) (?:(?:an|@a|any|some) )?|an |@a |any ){noun}"),
        )
    for kind in (*_SET_KINDS.values(), POSITIVE):
        lead = rf"(?:[,;.:(]|(?:[,;.:(] )*(?:for|where|with|and|\\forall)) {_ANY}(?:\\forall )?"
        yield kind, ending(rf"{lead}{_NAMES} \\in #{kind.replace(' ', '_')}")
    for kind, first in ((NATURAL, 0), (POSITIVE, 1)):
        yield kind, ending(rf"[,;:(] {_NAMES} = {first} , {first + 1} (?:, \d+ )*(?:, )?{_DOTS}")
    yield INTEGER, ending(rf"[,;:(] {_NAMES} = 0 , \\pm 1 (?:, \\pm \d+ )*(?:, )?{_DOTS}")
    yield CONSTANT, ending(f"(?:for|where) (?:any|all|every|each) {_NAMES}")


_CLAUSES = tuple(_clauses())


def without_quantifiers(text: str) -> tuple[str, Declared]:
    """A cleaned answer without the clauses that end it, and what these say of its letters."""
    declared: set[tuple[str, str]] = set()
    for _ in range(MAX_CLAUSES):
        found = _last_clause(text)
        if found is None:
            break
        text, names, kind = found
        declared |= {(name, kind) for name in names}
    return text, frozenset(declared)


def _last_clause(text: str) -> tuple[str, list[str], str] | None:
    """The text before its last clause, the letters of the clause, and what it says of them."""
    start = max(0, len(text) - MAX_CLAUSE_CHARS)
    if not _WORTH_A_LOOK.search(text, start):
        return None
    words, places = _words(text, start)
    line = " ".join(words)
    for kind, pattern in _CLAUSES:
        match = pattern.search(line)
        if match is None:
            continue
        place = places[line.count(" ", 0, match.start("clause"))]
        body = _without_open_text(text[:place])
        if body and re.search(r"[^\w\s,\\]|\d", body) and body.count("{") == body.count("}"):
            return body, re.findall(r"@([^ ]+)", match["names"]), kind
    return None


def _words(text: str, start: int) -> tuple[list[str], list[int]]:
    """The words of a text from a place on, and where each begins."""
    words: list[str] = []
    places: list[int] = []
    for token in _WORD.finditer(text, start):
        if domain := token["set"]:
            letter = re.sub(r"[^A-Z]", "", domain)[-1:]
            kind = _SET_KINDS.get(letter, letter)
            word = f"#{POSITIVE if token['plus'] and letter in 'ZN' else kind}".replace(" ", "_")
        elif name := token["name"]:
            word = "@" + name.lstrip("\\").replace("{", "").replace("}", "")
            if words[-1:] == ["\\in"] and name in _SET_KINDS:
                word = "#" + _SET_KINDS[name]
        elif token["word"]:
            word = token["word"] if token["word"].startswith("\\") else token["word"].lower()
        else:
            continue
        words.append(word)
        places.append(token.start())
    return words, places


def _without_open_text(body: str) -> str:
    r"""The body without blanks at its end, and without the \text{ that only the clause stood in."""
    return re.sub(
        r"(?:\\(?:text(?:rm|normal)?|mbox|mathrm)\s*\{|[\s,;.(~]|\\[,;:! ]|\\q?quad(?![a-z]))+$", "", body
    )
