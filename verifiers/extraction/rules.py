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
import importlib
import re
from collections.abc import Callable

from verifiers.extraction.boxes import boxed, joined
from verifiers.extraction.lines import (
    choice_named,
    closing_line,
    conclusion,
    first_line,
    named_before,
    short_sentence,
)
from verifiers.extraction.markup import FORMULA, WORD, tidy, with_unit
from verifiers.extraction.prose import MAX_BARE_CHARS, MAX_BARE_WORDS, prose, value_named, without_remarks
from verifiers.extraction.wording import NEGATION, retracted

Rule = Callable[[str], str | None]

_THINK_TAG = re.compile(r"<\s*(/?)\s*think(?:ing)?\s*>", re.IGNORECASE)


def without_thinking(completion: str) -> str | None:
    """The completion after its `<think>` blocks; None where a block is still open at the end."""
    if "think" not in completion and "THINK" not in completion and "Think" not in completion:
        return completion
    kept: list[str] = []
    depth = position = 0
    for tag in _THINK_TAG.finditer(completion):
        if tag[1]:
            # A closing tag without its opening one: the prompt opened the block; all before it was thinking.
            if depth == 0:
                kept.clear()
            depth = max(depth - 1, 0)
        else:
            if depth == 0:
                kept.append(completion[position : tag.start()])
            depth += 1
        position = tag.end()
    return None if depth else "".join(kept) + completion[position:]


_HASHES = re.compile(r"####[ \t]*(?:(?:Final )?Answer:?[ \t]*)?\n?([^\n]*)")
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
                named = _LABEL.sub("", tidy(line)) or tidy(line)
                plain = len(named) > MAX_BARE_CHARS or NEGATION.search(named)
                return (named if plain else value_named(without_remarks(named))) or None
    return None


_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)


def tag(text: str) -> str | None:
    """The content of the last `<answer>...</answer>`; None where a later one is still open."""
    found = list(_TAG.finditer(text)) if "<answer>" in text else []
    if not found or "<answer>" in text[found[-1].end() :]:
        return None
    content = tidy(found[-1][1])
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
    r"""The first rule that finds something; an unclosed box is no answer, whatever else is there."""
    if "\\boxed" in text or "\\fbox" in text:
        return boxed(text)
    if "<answer>" in text:
        return tag(text)
    for rule in _AUTO:
        found = rule(text)
        if found is not None:
            return found
    return None


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
    module, _, function = path.partition(":")
    try:
        rule = getattr(importlib.import_module(module), function)
    except Exception as error:  # noqa: BLE001  importing a module runs code that may raise anything
        raise ValueError(f"cannot import extraction rule {path!r}: {type(error).__name__}: {error}") from None
    if not callable(rule):
        raise ValueError(f"extraction rule {path!r} is not a function")
    return rule


def _rule(name: str) -> Rule:
    if name in _RULES:
        return _RULES[name]
    if ":" in name:
        return _imported(name)
    near = difflib.get_close_matches(name, rule_names(), n=3)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(rule_names())}"
    raise ValueError(f"unknown extraction rule {name!r}; {hint}")


def extract(completion: str, rule: str = "auto") -> str | None:
    """One final answer by a named rule (or the function `module:function`), None where there is none.

    Raises `ValueError` for an unknown rule.
    """
    function = _rule(rule)
    # "\\b" that a string literal swallowed.
    text = without_thinking(completion.replace("\x08oxed", "\\boxed"))
    if text is None:
        return None
    if "<<" in text:
        text = _CALCULATOR.sub("", text)
    if "~~" in text:
        text = _STRUCK_OUT.sub("", text)
    if "$^" in text:
        text = _RAISED_UNIT.sub(r"\1", text)
    return function(text)


_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's <<48/2=24>>
_STRUCK_OUT = re.compile(r"~~[^~\n]{0,200}~~")
_RAISED_UNIT = re.compile(r"(?<=[A-Za-z])\$(\^(?:\{-?\d\}|-?\d))\$")  # cm$^2$
