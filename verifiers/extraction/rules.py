r"""Take one final answer out of a completion, by one named rule; None means that there is no answer.

Every rule first drops `<think>...</think>`; an unclosed `<think>` leaves no answer. Then

- `boxed`: the last complete `\boxed{}` or `\fbox{}`; a later unclosed box means no answer. Boxes that
  follow each other with nothing but connectives between them are one answer with several parts ("1, 2"): a
  list reference accepts it, a single-valued one never does, so naming candidates does not pay. What is glued
  to the box counts: a minus before it and a unit after it belong to the answer, a factor, a power or "no
  wait, it is 43" make it no answer.
- `gsm8k`: the rest of the line after the last `####`, else after the last line that starts with `A:`.
- `prose`: what follows the last "the answer is" (or "answer:"), to the end of its sentence.
- `tag`: the last `<answer>...</answer>`.
- `bare`: the whole text.
- `auto`: `boxed`, else `gsm8k`, else `prose`, else the letter of "option C is correct", else the text's
  conclusion ("therefore ... is 3"), else what its last line sets apart (in bold, or as "total: 3"), else the
  number before an explanation, else what a single short sentence says, else the last formula of a short
  text, else the text if it is short.

All rules take time linear in the length of the completion.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable

from verifiers import plugins
from verifiers.extraction.boxes import boxed, boxed_without_placeholders, joined, without_placeholders
from verifiers.extraction.lines import (
    choice_named,
    closing_line,
    conclusion,
    first_line,
    leading_number,
    named_before,
    short_sentence,
)
from verifiers.extraction.markup import FORMULA, WORD, tidy, with_unit
from verifiers.extraction.prose import MAX_BARE_CHARS, MAX_BARE_WORDS, prose, value_named, without_remarks
from verifiers.extraction.thoughts import without_thinking
from verifiers.extraction.wording import NEGATION, NUMBER_IN_TEXT, retracted

Rule = Callable[[str], str | None]

_HASHES = re.compile(r"####[ \t]*(?:(?:Final )?Answer:?[ \t]*)?\n?([^\n]*)")
_PLAIN_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_LABEL = re.compile(r"^(?:the\s+)?(?:final\s+)?(?:answer|total|result)\s*[:=]\s*(?=\S)", re.IGNORECASE)
_MAX_LINE_CHARS = 8000  # more than the grammar reads
_A_LINE = re.compile(r"^[ \t]*A:[ \t]*([^\n]*)", re.MULTILINE)


def gsm8k(text: str) -> str | None:
    """What the last `####` names, else what the last line starting with `A:` names."""
    for mark, pattern in (("####", _HASHES), ("A:", _A_LINE)):
        if mark in text:
            found = list(pattern.finditer(text))
            if found:
                if retracted(text[found[-1].end() :], found[-1][1]):
                    return None
                line = found[-1][1][:_MAX_LINE_CHARS]
                named = tidy(line)
                if _PLAIN_NUMBER.fullmatch(named):
                    return named
                named = _LABEL.sub("", named) or named
                first = NUMBER_IN_TEXT.search(named[:MAX_BARE_CHARS])
                if first and retracted(named[first.end() :], first[0]):
                    return None
                if len(named) > MAX_BARE_CHARS or NEGATION.search(named):
                    return named or None
                named = named.replace("**", "")
                plain = without_remarks(named)
                value = leading_number(named) or leading_number(plain) or value_named(plain)
                return leading_number(value) or value or None
    return None


_TAG = re.compile(
    r"<(final_)?answer>((?:(?!<(?:final_)?answer>).)*?)</(?:final_)?answer>", re.DOTALL | re.IGNORECASE
)
_OPEN_TAG = re.compile(r"<(?:final_)?answer>", re.IGNORECASE)
_EMPTY_TAG = re.compile(r"<(?:final_)?answer>[\s.…]*</(?:final_)?answer>(?=[^<]*\w)", re.IGNORECASE)


def tag(text: str) -> str | None:
    """The content of the last `<answer>...</answer>`; None where a later one is still open."""
    if "nswer>" not in text and "NSWER>" not in text:
        return None
    text = _EMPTY_TAG.sub("", text)  # shows where an answer will stand
    found = list(_TAG.finditer(text))
    if not found or _OPEN_TAG.search(text, found[-1].end()):
        return None
    content = tidy(found[-1][2])
    if len(content) > MAX_BARE_CHARS:
        return content
    return (boxed(content) if "\\boxed" in content else prose(content) or value_named(content)) or None


def bare(text: str) -> str | None:
    """The whole text, without blanks around it."""
    return text.strip() or None


_CONDITION = re.compile(r"\b(?:when|where|if|since|because|for|with|as)\b", re.IGNORECASE)


def last_formula(text: str) -> str | None:
    """The last formula (or joined formulas) of a short text; the text itself if it is a line of few words."""
    text = text.strip()
    if not text or len(text) > MAX_BARE_CHARS:
        return None
    formulas = list(FORMULA.finditer(text))
    while len(formulas) > 1 and _CONDITION.search(text[formulas[-2].end() : formulas[-1].start()]):
        text = text[: formulas.pop().start()]  # "$64$ when $x = 2$"
    if formulas:
        outside = FORMULA.sub(" ", text)
        words = [w for w in WORD.findall(outside) if w.lower() not in ("and", "or")]
        if words and not _short_unit(text[formulas[-1].end() :]):
            if len(formulas) > 1 and joined(text[formulas[-2].end() : formulas[-1].start()]):
                return tidy(text[formulas[-2].start() : formulas[-1].end()])
            return tidy(formulas[-1][0])
        if words and len(formulas) == 1 and WORD.search(text[: formulas[0].start()]):
            return with_unit(tidy(text[formulas[0].start() :]))
    elif "\n" in text or len(WORD.findall(text)) > MAX_BARE_WORDS:
        return None
    return without_remarks(with_unit(tidy(text)))


def _short_unit(tail: str) -> bool:
    """Whether what follows the last formula can be its unit ("miles", "square feet", "m/s")."""
    return _UNIT_TAIL.fullmatch(tail) is not None and len(WORD.findall(tail)) <= 2


_UNIT_TAIL = re.compile(r"\s*(?!(?:as|if|when|where)\b)[A-Za-z][A-Za-z/^*{}\d .]{0,27}")


def auto(text: str) -> str | None:
    r"""The later one of the last box and the last `<answer>`, else the first rule that finds something.

    An unclosed box or tag is no answer, whatever else is there.
    """
    box = -1
    if "boxed" in text or "fbox" in text:
        text = without_placeholders(text)
        box = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    tags = [mark.start() for mark in _OPEN_TAG.finditer(text)] if "nswer>" in text or "NSWER>" in text else []
    if box < 0 and not tags:
        return next((found for rule in _AUTO if (found := rule(text)) is not None), None)
    # A box in the last tag is the tag's; one behind it, or in a tag that is still open, stands by itself.
    in_tag = bool(tags) and (box < tags[-1] or text.lower().find("answer>", box) >= 0)
    return tag(text) if in_tag else boxed_without_placeholders(text)


_AUTO: tuple[Rule, ...] = (
    gsm8k,
    prose,
    named_before,
    choice_named,
    conclusion,
    closing_line,
    first_line,
    short_sentence,
    last_formula,
)
_RULES: dict[str, Rule] = {
    "auto": auto,
    "boxed": boxed,
    "gsm8k": gsm8k,
    "tag": tag,
    "prose": prose,
    "bare": bare,
}


def rule_names() -> list[str]:
    """The names of the known rules, sorted."""
    return sorted(_RULES)


@functools.lru_cache(maxsize=64)
def _imported(path: str) -> Rule:
    try:
        rule = plugins.load(path)
    except ValueError as error:
        raise ValueError(f"cannot import extraction rule {path!r}: {error}") from None
    if not callable(rule):
        raise ValueError(f"extraction rule {path!r} is not a function")
    return rule


def find_rule(name: str) -> Rule:
    """The rule of this name, or the function that `module:function` names.

    Raises `ValueError` for an unknown one, or one that cannot be imported.
    """
    if name in _RULES:
        return _RULES[name]
    if plugins.is_module_path(name):
        return _imported(name)
    near = difflib.get_close_matches(name, rule_names(), n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(rule_names())}"
    raise ValueError(f"unknown extraction rule {name!r}; {hint}")


def extract(completion: str, rule: str = "auto", prompt: str = "") -> str | None:
    """One final answer by a named rule (or the function `module:function`), None where there is none.

    prompt: what stood before the completion, or its last `PROMPT_TAIL_CHARS`; where it opened a thought, a
    completion that does not close it has no answer. Raises `ValueError` for an unknown rule; what a function
    of the user's own raises, and `TypeError` where it returns neither a text nor None.
    """
    function = find_rule(rule)
    # "\\b" that a string literal swallowed.
    text = without_thinking(completion.replace("\x08oxed", "\\boxed"), prompt)
    if text is None:
        return None
    if "<<" in text:
        text = _CALCULATOR.sub("", text)
    if "~~" in text or "</" in text or "\\sout" in text:
        text = _STRUCK_OUT.sub("", text)
    if "$^" in text:
        text = _RAISED_UNIT.sub(r"\1", text)
    found: object = function(text)
    if found is None or isinstance(found, str):
        return found
    raise TypeError(f"extraction rule {rule!r} returned a value of type {type(found).__name__}, no text")


_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's <<48/2=24>>
_STRUCK_OUT = re.compile(
    r"~~[^~\n]{0,200}~~|<(s|del|strike)>[^<>\n]{0,200}</\1>|\\sout\{[^{}\n]{0,200}\}", re.IGNORECASE
)
_RAISED_UNIT = re.compile(r"(?<=[A-Za-z])\$(\^(?:\{-?\d\}|-?\d))\$")  # cm$^2$
