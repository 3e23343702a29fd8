"""Yes and no as answers: alone, or at the head of a sentence ("yes, it is always possible")."""

from __future__ import annotations

import re

_FONT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf)|mbox)(?![A-Za-z])|[{}$*\"“”]")
_SPACING = re.compile(r"\\(?:[,;:! ]|q?quad(?![A-Za-z]))|~")
_MEANING = {"yes": True, "true": True, "no": False, "false": False}
_ALONE = re.compile(r"(yes|no|true|false)[^\w?]*")
# "No solution" is no denial; "no, it is not" and "no they cannot" are.
_HEAD = re.compile(
    r"""
    (yes|true|false
     |no(?=\s*[,.;:!–—-]|\s+(?:it|they|he|she|we|you|this|that|these|there\ (?:is|are)|since|because)\b))
    \b[\s,.;:!–—-]*(.*)
    """,
    re.DOTALL | re.VERBOSE,
)
_REASON = re.compile(
    r"(?:^|[\s,;.])(?:since|because|as|for example|for instance|e\.g\.|namely|due to|by)\b.*", re.DOTALL
)
_ANOTHER = re.compile(
    r"""
    ^(?:and|or|but|then|to|/)\b | \b(?:yes|true|false)\b | \b(?:and|or|but|then|/)\s*no\b
    | ^\W*no\b | \(\s*no\W
    | \b(?:if|when|whenever|unless|only|provided|except|iff|until|depends?|depending|otherwise|some|sometimes
        |maybe|perhaps|possibly|probably|partly|mostly|often|rarely|almost|sure|certain|likely|unclear|assuming
        |suppose|supposing|though|although|however|but|question)\b
    | \?
    """,
    re.VERBOSE,
)
_NEGATION = re.compile(
    r"\b(?:not|never|cannot|impossible|neither|none|nor|nobody|incorrect|wrong|fails?)\b|n['’]t\b"
)
_AFFIRMATION = re.compile(
    r"^(?:it|they|he|she|we|this|that|these|there) (?:is|are|does|do|can|has|have|was|will|holds?)"
    r"(?! not|n['’]t)"
    r"(?: (?:always|indeed|true|possible|correct|so))*\W*$"
)


def says_yes(text: str) -> bool | None:
    """True for yes, False for no, None for a text that says neither, or more than one of them.

    The first word decides, and the sentence after it must agree up to its reason: a yes that is denied, a no
    that is affirmed, a condition, a part of the cases or a doubt make it neither.
    """
    if len(text) > 500:
        return None
    plain = " ".join(_SPACING.sub(" ", _FONT.sub("", text)).lower().split())
    if alone := _ALONE.fullmatch(plain):
        return _MEANING[alone[1]]
    sentence = _HEAD.fullmatch(plain)
    if sentence is None:
        return None
    meaning, claim = _MEANING[sentence[1]], _REASON.sub("", sentence[2])
    against = _NEGATION if meaning else _AFFIRMATION
    return None if _ANOTHER.search(claim) or against.search(claim) else meaning


def asks_yes_or_no(reference: str) -> bool:
    """Whether a reference is yes or no and says nothing that an answer would have to say too."""
    meaning = says_yes(reference)
    return meaning is not None and not re.search(r"[\d=<>^\\]", _REASON.sub("", _FONT.sub("", reference)))
