"""What the words around a value say of it: denied, taken back, one of several, or not the value itself."""

from __future__ import annotations

import re

_NUMBER = r"-?(?:\\?\$)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
NUMBER_IN_TEXT = re.compile(rf"(?<![\w.\\^]){_NUMBER}(?:/\d+)?(?:\\?%)?(?![\w^])")
SUM_IN_TEXT = re.compile(
    rf"(?<![\w.\\]){_NUMBER}(?:\s*[-+*/×÷x]\s*\(?{_NUMBER}\)?){{1,10}}\s*=\s*{_NUMBER}(?![\w^])(?!\s*[-+*/=×÷])"
)
"""5+7=12, written out in a sentence: the sides must agree, so all of it is the answer."""

NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|false|wrong|incorrect)\b|n't\b", re.IGNORECASE)
NOT_AT_START = re.compile(r"(?:not|n't|never|neither|cannot|anything but)\b", re.IGNORECASE)
HYPOTHETICAL = re.compile(r"\s*(?:if|suppose|assum(?:e|ing))\b", re.IGNORECASE)
BOUND = re.compile(
    r"\b(?:least|most|than|under|over|below|above|nearly|almost|half|twice|double|between|from|not|no)\b",
    re.IGNORECASE,
)
"""Words of a short sentence whose number is a bound or a part, and not the answer."""

CANDIDATE_AFTER = re.compile(
    r"""
    [\s$*)\]\\]*[,.;]?\s{0,3}\(?
    (?:or|and/or|alternatively,?|(?:but\ |or\ )?(?:it\ |this\ )?(?:could|might|may)(?:\ also)?\ be)\s+
    (?:maybe\s+|perhaps\s+)?[$\\(]*\s*(-?\d[\d,./]*(?<![.,]))
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Another candidate that is offered after an answer."""

_NOT_ITSELF = re.compile(
    r"""
    (?:\bthan|\bthan\ or\ equal\ to|\bup\ to|\bhalf|\btwice|\bbut|\bexcept|\bclose\ to|\bnearly|\balmost
    | \b(?:third|quarter|fourth|fifth|tenth|square|square\ root|cube|cube\ root|half|double|triple|negative
         |reciprocal|opposite|complement|inverse|one|multiple|factor|power|either)\ of
    )\s+\$?$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_DENIED = re.compile(
    r"(?:\b(?:false|untrue|incorrect|wrong|not true|if|suppose|assum(?:e|ing)|unless|whether|doubt|unlikely)"
    r"|n't think|(?:^|[.!?\n]\s*)is)"
    r"(?:\s+to say)?(?:\s+that)?(?:\s+the)?\s+$",
    re.IGNORECASE,
)
_RETRACTED = re.compile(
    r"""
    [\s.?!…*$)\]\\]*(?:oh,?\s+|but\s+)?
    (?:no|wait|actually|hmm+|oops|sorry|correction|not\ at\ all)\b[^\n]{0,160}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_WITHDRAWN = re.compile(
    r"""
    [\s.?!…,;*$)\]\\]*(?:oh,?\s+|(?:but|i)\s+)?
    (?:(?:they\ are|this\ is|that\ is|that's|it\ is|it's)\s+(?:wrong|incorrect|false)\b
     |(?:strike|scratch|withdraw)\s+(?:that|this)\b|(?:disregard|ignore)\s+th(?:at|is|e)\b|just\ kidding\b)
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MAX_REST_CHARS = 400
HAD_IT_BEEN = re.compile(r"\b(?:if|had|unless|were)\b", re.IGNORECASE)


def not_itself(before: str) -> bool:
    """Whether the words before a number make another one of it: "one less than 42", "the square of 42"."""
    return _NOT_ITSELF.search(before[-40:]) is not None


def denied(text: str, position: int) -> bool:
    """Whether what stands before "answer is" denies or supposes it: "it is false that the ..."."""
    return _DENIED.search(text[max(0, position - 40) : position]) is not None


def retracted(rest: str, answer: str) -> bool:
    """Whether what follows an answer takes it back: "No wait, it is 43"."""
    rest = rest[:_MAX_REST_CHARS]
    if _WITHDRAWN.match(rest):
        return True
    found = _RETRACTED.match(rest)
    if found is None:
        return False
    others = NUMBER_IN_TEXT.findall(found[0])
    if rest.lstrip().startswith("?") and not others:
        return True
    return any(number not in answer for number in others) and not any(number in answer for number in others)
