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
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\s*\d[\d,.]*\s+[a-z]{3})((?:\\\$|[^$\n])+?)(?<![\\=+*/×-])(?<![=+*/×-] )\$"
    r"|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)",
    re.DOTALL,
)
_NUMBER = r"-?(?:\\?\$)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_NUMBER_IN_TEXT = re.compile(rf"(?<![\w.\\^]){_NUMBER}(?:/\d+)?(?:\\?%)?(?![\w^])")
# 5+7=12, written out in a sentence: the sides must agree, so all of it is the answer.
_SUM_IN_TEXT = re.compile(
    rf"(?<![\w.\\]){_NUMBER}(?:\s*[-+*/×÷x]\s*\(?{_NUMBER}\)?){{1,10}}\s*=\s*{_NUMBER}(?![\w^])(?!\s*[-+*/=×÷])"
)

_NOUN = r"(?:answer|(?<=correct )(?:option|choice)|(?<=final )(?:result|solution))"
_ANCHOR = re.compile(
    rf"(?:\b(?:final\s+|correct\s+)?{_NOUN}(?:\s+choice)?[ \t]{{0,3}}\*{{0,3}}\s{{0,3}}"
    r"(?:\b(?:is|are|would be|will be|must be)\b|=|:|：|-(?=\s\d))"
    r"|\bfinal answer\b|\banswer(?=\s[-$]?\d)|\bans(?:\s?[:=]|\.)"
    r"|(?:答案|故选|选)[是为：:]{1,2}\s?|故?选(?=\s?[A-J])|\b(?:respuesta|réponse|antwort|ответ)\s?[:：]|^[^\w\n]{0,9}(?:final )?answer[^\w\n]{0,9}\n)"
    r"(?:\s*(?:equal to|therefore|thus|simply|exactly|indeed)\b)?[\s:*]*",
    re.IGNORECASE | re.MULTILINE,
)
CANDIDATE_AFTER = re.compile(
    r"[\s$*)\]\\]*[,.;]?\s{0,3}\(?"
    r"(?:or|and/or|alternatively,?|(?:but |or )?(?:it |this )?(?:could|might|may)(?: also)? be)\s+"
    r"(?:maybe\s+|perhaps\s+)?[$\\(]*\s*(-?\d[\d,./]*(?<![.,]))",
    re.IGNORECASE,
)
"""Another candidate that is offered after an answer."""
_NOT = re.compile(r"(?:not|n't|never|neither|cannot|anything but)\b", re.IGNORECASE)
# "no more than 42", "one less than 42" and "the square of 42" are not 42.
_NOT_ITSELF = re.compile(
    r"(?:\bthan|\bthan or equal to|\bup to|\b(?:third|quarter|fourth|fifth|tenth) of|\b(?:square|square root|cube|cube root|half|double|triple) of|\bhalf|\btwice"
    r"|\b(?:negative|reciprocal|opposite|complement|inverse|one|multiple|factor|power|either) of|\bbut|\bexcept"
    r"|\bclose to|\bnearly|\balmost)\s+\$?$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\b(?:false|untrue|incorrect|wrong|not true|if|suppose|assum(?:e|ing)|unless|whether)|n't think)"
    r"(?:\s+to say)?(?:\s+that)?(?:\s+the)?\s+$",
    re.IGNORECASE,
)
_HYPOTHETICAL = re.compile(r"\s*(?:if|suppose|assum(?:e|ing))\b", re.IGNORECASE)
_RETRACTED = re.compile(
    r"[\s.?!…*$)\]\\]*(?:oh,?\s+|but\s+)?(?:(?:no|wait|actually|hmm+|oops|sorry|correction|not at all)\b"
    r"|(?:they are|this is|that is|that's|it is)\s+(?:wrong|incorrect)\b)[^\n]{0,160}",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"\s+(?:in total|in all|altogether|overall)$|,\s*(?:as (?:required|desired|claimed|expected|needed|wanted|stated)|"
    r"and we are done|q\.?e\.?d)$",
    re.IGNORECASE,
)
_PER = re.compile(r"\ba (day|week|month|year|hour|minute)$")
_UNIT_AFTER = re.compile(
    r"((?:-?\$[^$\n]{1,200}\$|\\\([^\n]{1,200}?\\\)))\s*((?!(?:or|and|if|when|for|as|is|mod)\b)[A-Za-z]+"
    r"(?:(?:\s?[/*·]\s?|\s)[A-Za-z]+){0,2}(?:\^\{?-?\d\}?)?)"
)
NEGATION = re.compile(r"\b(?:not|never|neither|nor|cannot|false|wrong|incorrect)\b|n't\b", re.IGNORECASE)
_LATER_NOT = re.compile(r"[,;]\s*(?:and\s+)?not\b.*$", re.IGNORECASE | re.DOTALL)
_REASON = re.compile(r"[,;]?\s{1,3}(?:since|because)\b.*$", re.IGNORECASE | re.DOTALL)
_REMARK = re.compile(r"\s{0,3}\([^()$\d\\]{0,60}[A-Za-z]{3}[^()$\d\\]{0,60}\)$")
_ABOUT = re.compile(
    r"^(?:approximately|approx\.?|about|around|roughly|exactly|precisely|simply|just|option|choice)\s+"
    r"(?=[-\d.$\\(A-J])",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence|so|consequently)\b[,\s]", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|equals|equal to|becomes)\b\s*:?\s*", re.IGNORECASE)


def prose(text: str) -> str | None:
    """What follows the last "the answer is", to the end of that sentence; "is not 42" names nothing."""
    if not any(
        word in text
        for word in (
            "nswer",
            "ans",
            "Ans",
            "NSWER",
            "correct",
            "inal",
            "答案",
            "选",
            "espuesta",
            "éponse",
            "твет",
            "ntwort",
        )
    ):
        return None
    anchors = list(_ANCHOR.finditer(text))
    for anchor in reversed(anchors):
        if _DENIED.search(text[max(0, anchor.start() - 40) : anchor.start()]):
            continue
        rest = text[anchor.end() : anchor.end() + MAX_BARE_CHARS]
        sentence = first_sentence(rest)
        answer = tidy(_LATER_NOT.sub("", sentence))
        if answer and not _NOT.match(answer):
            if retracted(rest[len(sentence) :], answer):
                return None
            named = with_unit(value_named(without_remarks(answer)))
            # "The answer is 42. Or 43." names two.
            other = CANDIDATE_AFTER.match(rest, len(sentence))
            return named if other is None or other[1] == named else f"{named}, {other[1]}"
    return None


def retracted(rest: str, answer: str) -> bool:
    """Whether what follows an answer takes it back: "No wait, it is 43"."""
    found = _RETRACTED.match(rest[:400])
    if found is None:
        return False
    others = _NUMBER_IN_TEXT.findall(found[0])
    if rest.lstrip().startswith("?") and not others:
        return True
    return any(number not in answer for number in others) and not any(number in answer for number in others)


def without_remarks(answer: str) -> str:
    """Without the reason, the remark in brackets and the "about" around what a sentence names."""
    for pattern in (_REASON, _REMARK, _TAIL, _ABOUT):
        shorter = tidy(pattern.sub("", answer))
        answer = shorter or answer
    return _PER.sub(r"per \1", answer)


def with_unit(answer: str) -> str:
    r"""`$5$ erg/s` with the unit as text, so that its letters are not variables."""
    found = _UNIT_AFTER.fullmatch(answer)
    return rf"{found[1]}\text{{ {found[2]}}}" if found else answer


def value_named(sentence: str) -> str:
    """The answer in a sentence of several words: what stands after its last "is", else its only number."""
    words = WORD.findall(FORMULA.sub(" ", sentence))
    if "\\text" in sentence:
        return sentence
    if len(words) < 3:
        # "Tom has $42" names a number, "sin 30" is one.
        counts = len(words) == 2 and sentence[0].isalpha() and words[0].lower() not in _MATHEMATICAL
        return (_lone_number(sentence) if counts else None) or sentence
    copulas = [c for c in _COPULA.finditer(sentence) if not _NOT_ITSELF.search(sentence[: c.end()])]
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
    first = _NUMBER_IN_TEXT.search(outside)
    if first and _NOT_ITSELF.search(outside[: first.start()]):
        return None
    if formulas:
        return tidy(formulas[0][0]) if len(formulas) == 1 and not numbers else None
    if len(numbers) == 1:
        return str(numbers[0])
    sums = list(_SUM_IN_TEXT.finditer(outside))
    if len(sums) == 1 and not _NUMBER_IN_TEXT.search(_SUM_IN_TEXT.sub(" ", outside)):
        return sums[0][0]
    return None


_MATHEMATICAL = frozenset(
    "sin cos tan cot sec csc log ln exp sqrt pi min max gcd lcm base room option choice no not".split()
)


_BOUND = re.compile(
    r"\b(?:least|most|than|under|over|below|above|nearly|almost|half|twice|double|between|from|not|no)\b",
    re.IGNORECASE,
)


def _lone_number(sentence: str) -> str | None:
    numbers = _NUMBER_IN_TEXT.findall(sentence)
    if _BOUND.search(sentence):
        return None
    return str(numbers[0]) if len(numbers) == 1 and not re.search(r"[-+*/=^<>]\s*[\d$(]", sentence) else None


def conclusion(text: str) -> str | None:
    """What the last sentence that starts with "therefore" (thus, hence, so) names, if it ends the text."""
    starts = list(_CONCLUSION.finditer(text[-MAX_CONCLUSION_CHARS:]))
    if not starts:
        return None
    tail = text[-MAX_CONCLUSION_CHARS:][starts[-1].end() :]
    sentence = tidy(without_remarks(tidy(first_sentence(tail.replace("**", "")))))
    if NEGATION.search(sentence):
        return None
    formulas = list(FORMULA.finditer(sentence))
    if formulas and not _COPULA.search(sentence[: formulas[-1].start()]):
        return None
    named = with_unit(value_named(sentence))
    return None if named == sentence and len(WORD.findall(FORMULA.sub(" ", sentence))) >= 3 else named


def short_sentence(text: str) -> str | None:
    """What a line of few words names ("He has 10 left", "The roots are 2 and 3"); None for questions, denials."""
    text = text.strip()
    if "\\$" in text:
        text = text.replace("\\$", "$")
    if (
        len(text) > MAX_CONCLUSION_CHARS
        or "\n" in text
        or NEGATION.search(text)
        or "?" in text
        or "\\" in text
        or FORMULA.search(text)
        or _TWO_SENTENCES.search(text)
        or _HYPOTHETICAL.match(text)
    ):
        return None
    text = text.replace("**", "")
    words = WORD.findall(text)
    if len(words) > MAX_BARE_WORDS:
        return None
    labelled = _LABELLED_LINE.fullmatch(text)
    if labelled:
        return value_named(tidy(labelled[1]))
    if len(words) >= 3 and (value := only_value(text)) is not None:
        return value
    if (
        len(words) == 2
        and text[0].isalpha()
        and words[0].lower() not in _MATHEMATICAL
        and not _BOUND.search(text)
    ):
        value = only_value(text)
        if value is not None:
            return value
    copulas = list(_SAYS.finditer(text))
    if len(copulas) != 1 or not text[0].isalpha() or _NUMBER_IN_TEXT.search(text[: copulas[0].start()]):
        return None
    tail = tidy(text[copulas[0].end() :])
    few = len(WORD.findall(tail)) <= (3 if _NUMBER_IN_TEXT.search(tail) else 2)
    return _ABOUT.sub("", tail) if tail and few and not _NOT_ITSELF.search(tail + " ") else None


_TWO_SENTENCES = re.compile(r"[.!]\s+[A-Z]")
_LABELLED_LINE = re.compile(
    r"(?:the\s+)?(?:final\s+)?(?:total|result|solution|sum|output|final|value|number)(?:\s+[a-z]+){0,3}\s*[:=]\s*(.+)",
    re.IGNORECASE,
)
_SAYS = re.compile(
    r"(?:\b(?:is|are|was|were|equals|equal to|becomes|gives|get|will be|would be|must be)\b|'s\b)\s*:?\s*",
    re.IGNORECASE,
)


def choice_named(text: str) -> str | None:
    """The letter in "so option C is correct" at the end of a text."""
    found = _CHOICE_NAMED.search(text[-MAX_CONCLUSION_CHARS:])
    return found[1] if found else None


_CHOICE_NAMED = re.compile(
    r"(?:\b[Oo]ption\s+|\b[Cc]hoice\s+|(?<![\w ]) ?|^)\(?\b([A-J])\b\)?\s+is\s+(?:the\s+)?(?:correct|right|best)"
    r"(?:\s+(?:answer|option|choice|one))?\s*[.!]?\s*$"
)


def closing_line(text: str) -> str | None:
    """What the last line of a worked solution sets apart: in bold, or after "total =", "cost:"."""
    text = text.strip()
    start = text.rfind("\n") + 1
    line = text[start:].strip()
    if start == 0 or len(line) > MAX_CONCLUSION_CHARS or NEGATION.search(line) or "?" in line or "\\" in line:
        return None
    bold = _BOLD_END.search(line)
    if bold:
        named = tidy(bold[1])
        labelled = _ANY_LABEL.fullmatch(named)
        return value_named(tidy(labelled[1]) if labelled else named) or None
    if text[:start].rstrip().endswith(":") and _BARE_SUM.fullmatch(line):
        return tidy(line)
    labelled = _ANY_LABEL.fullmatch(line)
    if labelled and "=" not in labelled[1]:
        return value_named(tidy(labelled[1])) or None
    return None


_BOLD_END = re.compile(r"\*\*([^*\n]+)\*\*[^*\n\d]{0,60}$")
_BARE_SUM = re.compile(r"[\d\s+*/×÷.,$()-]{3,200}=\s*\$?-?[\d.,]+")
_ANY_LABEL = re.compile(
    r"[A-Za-z][^=:\n\d]{0,80}(?::|=(?:[^=\n]{0,80}=)?)\s*\$?(-?[\d.,]+(?:\s+[a-z]+){0,2})\.?"
)


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


_FIRST_LINE = re.compile(
    r"\s*\**((?:\\?\$)?-?\d[^\n*]{0,40}?)\**\.?[ \t]*\n\s*\**(?:explanation|reason(?:ing)?|justification|working|---)\b",
    re.IGNORECASE,
)


def first_line(text: str) -> str | None:
    """The number that an explanation follows."""
    found = _FIRST_LINE.match(text)
    return tidy(found[1]) if found else None


_DECORATION = re.compile(r"^(?:#{1,6}\s+|>\s+|•\s*|-\s+(?=\*\*)|<b>)+|(?:\s*[✅✓✔☑🎉]\ufe0f?|</b>)+$")
_EDGE = re.compile(r"^[\s*_`\"']+|[\s*_`\"']+$")
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>).*$", re.DOTALL)


def tidy(text: str) -> str:
    """Without end-of-text marks, Markdown emphasis, quotes and a closing full stop."""
    if "<" in text:
        text = _END_TOKEN.sub("", text)
    text = _DECORATION.sub("", text)
    text = _EDGE.sub("", text)
    if text[-1:] in (".", ",", ";", ":", "。") and not text.endswith("\\,") and not text.endswith("\\;"):
        text = _EDGE.sub("", text[:-1])
    return text
