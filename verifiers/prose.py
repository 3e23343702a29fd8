r"""Answers that sentences name: "the answer is 42", "therefore there are 42 ways", a heading "Answer".

Everything here takes text without thinking and without boxes, and time linear in its length.
"""

from __future__ import annotations

import re

MAX_BARE_CHARS = 4000
MAX_BARE_WORDS = 12
MAX_CONCLUSION_CHARS = 300

WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\s*\d[\d,.]*\s+[a-z]{3})([^$\n]+?)(?<!\\)\$|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)",
    re.DOTALL,
)
_NUMBER = r"-?(?:\\?\$)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_NUMBER_IN_TEXT = re.compile(rf"(?<![\w.\\]){_NUMBER}(?:/\d+)?(?:\\?%)?(?![\w^])")
# 5+7=12, written out in a sentence: the sides must agree, so all of it is the answer.
_SUM_IN_TEXT = re.compile(
    rf"(?<![\w.\\]){_NUMBER}(?:\s*[-+*/×÷x]\s*\(?{_NUMBER}\)?){{1,10}}\s*=\s*{_NUMBER}(?![\w^])(?!\s*[-+*/=×÷])"
)

_NOUN = r"(?:answer|(?<=correct )(?:option|choice)|(?<=final )(?:result|solution))"
_ANCHOR = re.compile(
    rf"(?:\b(?:final\s+|correct\s+)?{_NOUN}(?:\s+choice)?[ \t]{{0,3}}\*{{0,3}}\s{{0,3}}"
    r"(?:\b(?:is|are|would be|will be|must be)\b|=|:)"
    r"|\bfinal answer\b|\banswer(?=\s[-$]?\d)|\bans\s?[:=]"
    r"|答案[是为：:]|^[^\w\n]{0,9}(?:final )?answer[^\w\n]{0,9}\n)"
    r"(?:\s*(?:equal to|therefore|thus|simply|exactly)\b)?[\s:*]*",
    re.IGNORECASE | re.MULTILINE,
)
CANDIDATE_AFTER = re.compile(
    r"[\s$*)\]\\]*[,.;]?\s{0,3}"
    r"(?:or|and/or|alternatively,?|(?:but |or )?(?:it |this )?(?:could|might|may) also be)\s+"
    r"(?:maybe\s+|perhaps\s+)?[$\\(]*\s*(-?\d[\d,./]*(?<![.,]))",
    re.IGNORECASE,
)
"""Another candidate that is offered after an answer."""
_NOT = re.compile(r"(?:not|n't|never|neither)\b", re.IGNORECASE)
NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot)\b|n't\b", re.IGNORECASE)
_LATER_NOT = re.compile(r"[,;]\s*(?:and\s+)?not\b.*$", re.IGNORECASE | re.DOTALL)
_REASON = re.compile(r"[,;]?\s{1,3}(?:since|because)\b.*$", re.IGNORECASE | re.DOTALL)
_REMARK = re.compile(r"\s{0,3}\([^()$\d\\]{0,60}[A-Za-z]{3}[^()$\d\\]{0,60}\)$")
_ABOUT = re.compile(
    r"^(?:approximately|approx\.?|about|around|roughly|nearly|exactly|precisely|simply|just|option|choice)\s+"
    r"(?=[-\d.$\\(A-J])",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence|so|consequently)\b[,\s]", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|equals|equal to|becomes)\b\s*:?\s*", re.IGNORECASE)


def prose(text: str) -> str | None:
    """What follows the last "the answer is", to the end of that sentence; "is not 42" names nothing."""
    if not any(word in text for word in ("nswer", "ans", "Ans", "NSWER", "correct", "inal", "答案")):
        return None
    anchors = list(_ANCHOR.finditer(text))
    for anchor in reversed(anchors):
        rest = text[anchor.end() : anchor.end() + MAX_BARE_CHARS]
        sentence = first_sentence(rest)
        answer = tidy(_LATER_NOT.sub("", sentence))
        if answer and not _NOT.match(answer):
            named = value_named(without_remarks(answer))
            # "The answer is 42. Or 43." names two.
            other = CANDIDATE_AFTER.match(rest, len(sentence))
            return named if other is None or other[1] == named else f"{named}, {other[1]}"
    return None


def without_remarks(answer: str) -> str:
    """Without the reason, the remark in brackets and the "about" around what a sentence names."""
    for pattern in (_REASON, _REMARK, _ABOUT):
        shorter = tidy(pattern.sub("", answer))
        answer = shorter or answer
    return answer


def value_named(sentence: str) -> str:
    """The answer in a sentence of several words: what stands after its last "is", else its only number."""
    words = WORD.findall(FORMULA.sub(" ", sentence))
    if len(words) < 3 or "\\text" in sentence:
        return sentence
    copulas = list(_COPULA.finditer(sentence))
    tail = tidy(sentence[copulas[-1].end() :]) if copulas else ""
    if (
        any(char.isdigit() for char in tail)
        or FORMULA.search(tail)
        or (tail and len(WORD.findall(tail)) <= 2)
    ):
        if len(WORD.findall(FORMULA.sub(" ", tail))) < 3:
            return _ABOUT.sub("", tail)
        sentence = tail
    return only_value(sentence) or sentence


def only_value(sentence: str) -> str | None:
    """The only formula, number or written-out sum of a sentence; None where there are several or none."""
    formulas = list(FORMULA.finditer(sentence))
    outside = FORMULA.sub(" ", sentence)
    numbers = _NUMBER_IN_TEXT.findall(outside)
    if formulas:
        return tidy(formulas[0][0]) if len(formulas) == 1 and not numbers else None
    if len(numbers) == 1:
        return str(numbers[0])
    sums = list(_SUM_IN_TEXT.finditer(outside))
    if len(sums) == 1 and not _NUMBER_IN_TEXT.search(_SUM_IN_TEXT.sub(" ", outside)):
        return sums[0][0]
    return None


def conclusion(text: str) -> str | None:
    """What the last sentence that starts with "therefore" (thus, hence, so) names, if it ends the text."""
    starts = list(_CONCLUSION.finditer(text[-MAX_CONCLUSION_CHARS:]))
    if not starts:
        return None
    tail = text[-MAX_CONCLUSION_CHARS:][starts[-1].end() :]
    sentence = tidy(first_sentence(tail))
    if NEGATION.search(sentence):
        return None
    formulas = list(FORMULA.finditer(sentence))
    if formulas and not _COPULA.search(sentence[: formulas[-1].start()]):
        return None
    named = value_named(sentence)
    return None if named == sentence and len(WORD.findall(FORMULA.sub(" ", sentence))) >= 3 else named


def short_sentence(text: str) -> str | None:
    """The only number of a line of few words ("He has 10 left"); None for questions and denials."""
    if (
        len(text) > MAX_CONCLUSION_CHARS
        or "\n" in text
        or NEGATION.search(text)
        or "?" in text
        or "\\" in text
        or FORMULA.search(text)
    ):
        return None
    return only_value(text) if 3 <= len(WORD.findall(text)) <= MAX_BARE_WORDS else None


def first_sentence(text: str) -> str:
    """Text up to the first full stop, line end or sentence mark that is outside braces and formulas."""
    depth = 0
    in_formula = False
    index = 0
    while index < len(text):
        char = text[index]
        if char == "\\":
            if text[index + 1 : index + 2] in ("(", "["):
                in_formula = True
            elif text[index + 1 : index + 2] in (")", "]"):
                in_formula = False
            index += 2
            continue
        if char == "$" and ("$" in text[index + 1 :] or in_formula):
            in_formula = not in_formula
        elif char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
        elif depth <= 0 and not in_formula:
            if char == "\n" and text[:index].strip():
                return text[:index]
            if char in ".!?" and (index + 1 == len(text) or text[index + 1] in " \n\t*\"'<" or char != "."):
                # "5!" is a factorial, "5! " too: only a mark after a letter or a bracket ends a sentence.
                is_factorial = char == "!" and text[:index].rstrip()[-1:].isalnum()
                if not is_factorial:
                    return text[:index]
            if char == "<" and text.startswith(("<|", "</"), index):
                return text[:index]
        index += 1
    return text


_EDGE = re.compile(r"^[\s*_`\"']+|[\s*_`\"']+$")
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>).*$", re.DOTALL)


def tidy(text: str) -> str:
    """Without end-of-text marks, Markdown emphasis, quotes and a closing full stop."""
    if "<" in text:
        text = _END_TOKEN.sub("", text)
    text = _EDGE.sub("", text)
    if text[-1:] in (".", ",", ";", ":", "。") and not text.endswith("\\,") and not text.endswith("\\;"):
        text = _EDGE.sub("", text[:-1])
    return text
