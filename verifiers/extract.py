r"""Take one final answer out of a completion, by one named rule; None means that there is no answer.

Every rule first drops `<think>...</think>`; an unclosed `<think>` leaves no answer. Then

- `boxed`: the last complete `\boxed{}` or `\fbox{}`; a later unclosed box means no answer. Boxes that
  follow each other with nothing but connectives between them are one answer with several parts ("1, 2"): a
  list reference accepts it, a single-valued one never does, so naming candidates does not pay.
- `gsm8k`: the rest of the line after the last `####`, else after the last line that starts with `A:`.
- `prose`: what follows the last "the answer is" (or "answer:"), to the end of its sentence.
- `tag`: the last `<answer>...</answer>`.
- `bare`: the whole text.
- `auto`: `boxed`, else `gsm8k`, else `prose`, else the text's conclusion ("therefore ... is 3"), else the
  last formula of a short text, else the text if it is short.

All rules take time linear in the length of the completion.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from verifiers.prose import (
    CANDIDATE_AFTER,
    FORMULA,
    MAX_BARE_CHARS,
    MAX_BARE_WORDS,
    NEGATION,
    WORD,
    choice_named,
    closing_line,
    conclusion,
    first_line,
    prose,
    retracted,
    short_sentence,
    tidy,
    value_named,
    with_unit,
    without_remarks,
)

Rule = Callable[[str], str | None]

MAX_DIFFERENT_BOXES = 10
"""More different boxes than this is naming candidates, not self-correction."""

# A doubled backslash is the trace of a string that was escaped twice.
_BOX_TOKEN = re.compile(
    r"\\{1,2}(?:boxed|fbox)\s*\{|\\{1,2}(?:boxed|fbox)[ \t]+(?=[^\s{])|\\.|[{}]", re.DOTALL
)
_THINK_TAG = re.compile(r"<\s*(/?)\s*think(?:ing)?\s*>", re.IGNORECASE)
_SPACING = re.compile(r"\\(?:quad|qquad|text|mathrm|mbox|[,;:! ])|[\s${}().*~|&:]|\\[\[\]()]|\\\\")
_CONNECTIVE = re.compile(r"(?:,|;|/|\band\b|\bor\b|\bas well as\b)+", re.IGNORECASE)
_JOINING_PHRASE = re.compile(r"[^.!?\n=]{0,40}\b(?:and|or)\b[^.!?\n=\w]*", re.IGNORECASE)
_ALTERNATIVE = re.compile(
    r"[\s$.,;*)\]\\]*\b(?:or|or else|alternatively|otherwise)\b[^\n]{0,60}", re.IGNORECASE
)
_LABELLED_NEXT = re.compile(
    r"(?:[\s$)\]\\,;]*\b(?:and|or)\b|[\s$)\]\\]*[,;])[\s$(\[\\]*[A-Za-z](?:_\{?\w+\}?)?\s*=[\s$(\\]*"
)
_NEGATED_BEFORE = re.compile(
    r"(?:\bnot(?: equal to| be)?|\bnever|n't(?: be)?|\brather than|\binstead of|\bcannot be)"
    r"[\s$:({\[]*\\?[(\[]?\s*$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"[\s$.,)\]\\]*(?:text\{\s*)?(?:is|are|was|would be|cannot|can't)\s*"
    r"(?:n't|not|wrong|incorrect|false|be right|be correct)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


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


def _find_boxes(text: str) -> tuple[list[_Box], bool]:
    """All complete outermost boxes in order, and whether the box that starts last is still open."""
    boxes: list[_Box] = []
    stack: list[tuple[bool, int, int]] = []
    for token in _BOX_TOKEN.finditer(text):
        word = token[0]
        if word == "{":
            stack.append((False, token.start(), token.end()))
        elif word == "}":
            if not stack:
                continue
            is_box, start, content_start = stack.pop()
            if is_box:
                while boxes and boxes[-1].start > start:
                    boxes.pop()
                boxes.append(_Box(start, token.end(), text[content_start : token.start()].strip()))
        elif word[-1] == "{" and len(word) > 2:
            stack.append((True, token.start(), token.end()))
        elif len(word) > 2:
            content = re.compile(r"[^\s$]+").match(text, token.end())
            if content:
                boxes.append(_Box(token.start(), content.end(), content[0].rstrip(".,;")))
    open_start = max((start for is_box, start, _ in stack if is_box), default=-1)
    return boxes, open_start > (boxes[-1].start if boxes else -1)


def _joined(gap: str) -> bool:
    """Whether the text between two boxes only joins them into one answer."""
    if len(gap) > 80:
        return False
    bare = _CONNECTIVE.sub("", _SPACING.sub(" ", gap)).strip()
    return not bare or any(
        pattern.fullmatch(gap) is not None for pattern in (_JOINING_PHRASE, _LABELLED_NEXT, _ALTERNATIVE)
    )


def boxed(text: str) -> str | None:
    r"""The last complete box; boxes joined by connectives are returned together, comma-separated."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    boxes, last_is_open = _find_boxes(text)
    if last_is_open:
        return None
    boxes = [box for box in boxes if not _is_negated(text, box)]
    if not boxes or not boxes[-1].content:
        return None
    different = {box.content for box in boxes}
    if len(different) > MAX_DIFFERENT_BOXES:
        return None
    parts = [boxes[-1].content]
    for earlier, later in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if not _joined(text[earlier.end : later.start]):
            break
        if earlier.content not in parts:
            parts.insert(0, earlier.content)
    candidate = CANDIDATE_AFTER.match(text, boxes[-1].end)
    if candidate and candidate[1] not in parts:
        parts.append(candidate[1])
    parts = [_SAID.sub("", part) or part for part in parts]
    rest = text[boxes[-1].end :]
    before = text[max(0, boxes[-1].start - 12) : boxes[-1].start]
    if _GLUED_BEFORE.search(before) or _GLUED_AFTER.match(rest):
        return None
    if _MINUS_BEFORE.search(before):
        parts[-1] = f"-({parts[-1]})"
    scale = _SCALE_AFTER_BOX.match(rest)
    if scale and _PLAIN_VALUE.fullmatch(parts[-1]):
        parts[-1] += f" {scale[1]}"
    if retracted(rest, parts[-1]):
        return None
    unit = _UNIT_AFTER_BOX.match(rest)
    if unit and _PLAIN_VALUE.fullmatch(parts[-1]):
        parts[-1] += rf"\text{{ {unit[1]}}}"
    return ", ".join(parts)


# -\boxed{5}, 2\cdot\boxed{5}, \frac{\boxed{5}}{2} and x > \boxed{5} do not say 5.
_GLUED_BEFORE = re.compile(
    r"(?:\d|\\(?:cdot|times|div|neq?|leq?|geq?|[lg]t)\s?|(?<![A-Za-z/])[A-Za-z]\s?[<>]\s?|\\[dt]?frac\{|\\x?cancel\{|\\sqrt\{|\^\{?)\Z"
)
_GLUED_AFTER = re.compile(
    r"\d|\^|\s?\\(?:cdot|times|div)(?![A-Za-z])|\s*\$?\s*,\s*\$?-?\d[\d.]*\$?\s*(?:,|$)"
)
_MINUS_BEFORE = re.compile(r"(?:\A|[$(=\s{])-\Z")
_SCALE_AFTER_BOX = re.compile(r"[\s$)\]\\]*(?:text\{\s*)?(hundred|thousand|million|billion|trillion)\b")
_PLAIN_VALUE = re.compile(r"-?[\d.,/]+")
_UNIT_AFTER_BOX = re.compile(
    r"[\s$)\]\\]*(?:text\{\s*)?((?:square |cubic )?(?:mm|cm|km|kg|mg|ml|millimet(?:er|re)s|centimet(?:er|re)s|met(?:er|re)s"
    r"|kilomet(?:er|re)s|inches|inch|feet|foot|yards?|miles?|grams?|kilograms?|pounds?|ounces?|seconds?|minutes?|hours?"
    r"|days?|weeks?|months?|years?|dollars?|cents?|lit(?:er|re)s|gallons?)(?:\^\{?[23]\}?)?|[mgsh](?=[\s.$]*(?:\n|$)))(?![\w^])"
)


# "\text{The answer is } 42" inside of a box.
_SAID = re.compile(
    r"^[\s{]*\\text\s*\{[^{}\d]{0,60}\b(?:answer|result|solution|value)\b[^{}\d]{0,40}(?:\bis\b|\bare\b|:|=)"
    r"\s*\}\s*"
)


def _is_negated(text: str, box: _Box) -> bool:
    before = text[max(0, box.start - 40) : box.start]
    return bool(_NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(text, box.end))


_HASHES = re.compile(r"####[ \t]*(?:(?:Final )?Answer:?[ \t]*)?\n?([^\n]*)")
_LABEL = re.compile(r"^(?:the\s+)?(?:final\s+)?(?:answer|total|result)\s*[:=]\s*(?=\S)", re.IGNORECASE)
_A_LINE = re.compile(r"^[ \t]*A:[ \t]*([^\n]*)", re.MULTILINE)


def gsm8k(text: str) -> str | None:
    """What the last `####` names, else what the last line starting with `A:` names."""
    for mark, pattern in (("####", _HASHES), ("A:", _A_LINE)):
        if mark in text:
            found = pattern.findall(text)
            if found:
                named = _LABEL.sub("", tidy(found[-1])) or tidy(found[-1])
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
            if len(formulas) > 1 and _joined(text[formulas[-2].end() : formulas[-1].start()]):
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
    for rule in (
        gsm8k,
        prose,
        choice_named,
        conclusion,
        closing_line,
        first_line,
        short_sentence,
        last_formula,
    ):
        found = rule(text)
        if found is not None:
            return found
    return None


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


def register_rule(name: str, rule: Rule) -> None:
    """Add a rule: text without thinking -> answer or None. Raises `ValueError` for a taken name."""
    if name in _RULES:
        raise ValueError(f"extraction rule {name!r} is already registered")
    _RULES[name] = rule


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
    if "$^" in text:
        text = _RAISED_UNIT.sub(r"\1", text)
    return function(text)


_CALCULATOR = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's <<48/2=24>>
_RAISED_UNIT = re.compile(r"(?<=[A-Za-z])\$(\^(?:\{-?\d\}|-?\d))\$")  # cm$^2$
