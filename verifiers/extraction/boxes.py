r"""The answer in the last `\boxed{}` or `\fbox{}` of a completion, and what stands right beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from verifiers.extraction.wording import CANDIDATE_AFTER, retracted

MAX_DIFFERENT_BOXES = 10
"""More different boxes than this is naming candidates, not self-correction."""

# A doubled backslash is the trace of a string that was escaped twice.
_BOX_TOKEN = re.compile(
    r"\\{1,2}(?:boxed|fbox)\s*\{|\\{1,2}(?:boxed|fbox)[ \t]+(?=[^\s{])|\\.|[{}]", re.DOTALL
)
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
    r"[ \t$:({\[]*\\?[(\[]?[ \t]*$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"[\s$.,)\]\\]*(?:text\{\s*)?(?:is|are|was|would be|cannot|can't)\s*"
    r"(?:n't|not|wrong|incorrect|false|be right|be correct)",
    re.IGNORECASE,
)
_MAX_CONTEXT_CHARS = 400
# -\boxed{5}, 2\cdot\boxed{5}, \frac{\boxed{5}}{2} and x > \boxed{5} do not say 5.
_GLUED_BEFORE = re.compile(
    r"""
    (?:\d|\\(?:cdot|times|div|neq?|leq?|geq?|[lg]t)\s?|(?<![A-Za-z/])[A-Za-z]\s?[<>]\s?
     |\\[dt]?frac\{|\\x?cancel\{|\\sqrt\{|\^\{?)\Z
    """,
    re.VERBOSE,
)
_GLUED_AFTER = re.compile(
    r"\d|\^|\s?\\(?:cdot|times|div)(?![A-Za-z])|\s*\$?\s*,\s*\$?-?\d[\d.]*\$?\s*(?:,|$)"
)
_MINUS_BEFORE = re.compile(r"(?:\A|[$(=\s{])-\Z")
_SCALE_AFTER = re.compile(r"[\s$)\]\\]*(?:text\{\s*)?(hundred|thousand|million|billion|trillion)\b")
_PLAIN_VALUE = re.compile(r"-?[\d.,/]+")
_UNIT_AFTER = re.compile(
    r"""
    [\s$)\]\\]*(?:text\{\s*)?
    ((?:square\ |cubic\ )?
     (?:[cmk]m|[km]g|ml|(?:milli|centi|kilo)?met(?:er|re)s|inch(?:es)?|feet|foot|yards?|miles?|(?:kilo)?grams?|pounds?
      |ounces?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|dollars?|cents?|lit(?:er|re)s|gallons?)
     (?:\^\{?[23]\}?)?
    |[mgsh](?=[\s.$]*(?:\n|$)))(?![\w^])
    """,
    re.VERBOSE,
)
# "\text{The answer is } 42" inside of a box.
_SAID = re.compile(
    r"^[\s{]*\\text\s*\{[^{}\d]{0,60}\b(?:answer|result|solution|value)\b[^{}\d]{0,40}(?:\bis\b|\bare\b|:|=)"
    r"\s*\}\s*"
)


@dataclass(frozen=True, slots=True)
class _Box:
    start: int
    end: int
    content: str


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


def joined(gap: str) -> bool:
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
        if not joined(text[earlier.end : later.start]):
            break
        if earlier.content not in parts:
            parts.insert(0, earlier.content)
    candidate = CANDIDATE_AFTER.match(text, boxes[-1].end, boxes[-1].end + _MAX_CONTEXT_CHARS)
    if candidate and candidate[1] not in parts:
        parts.append(candidate[1])
    parts = [_SAID.sub("", part) or part for part in parts]
    last = _in_context(
        parts[-1],
        text[max(0, boxes[-1].start - 12) : boxes[-1].start],
        text[boxes[-1].end :][:_MAX_CONTEXT_CHARS],
    )
    return None if last is None else ", ".join([*parts[:-1], last])


def _in_context(content: str, before: str, after: str) -> str | None:
    """A box's content with what is glued to it; None where that makes another value, or takes it back."""
    if _GLUED_BEFORE.search(before) or _GLUED_AFTER.match(after) or retracted(after, content):
        return None
    if _MINUS_BEFORE.search(before):
        return f"-({content})"
    if not _PLAIN_VALUE.fullmatch(content):
        return content
    if scale := _SCALE_AFTER.match(after):
        return f"{content} {scale[1]}"
    unit = _UNIT_AFTER.match(after)
    return rf"{content}\text{{ {unit[1]}}}" if unit else content


def _is_negated(text: str, box: _Box) -> bool:
    before = text[max(0, box.start - 40) : box.start]
    return bool(
        _NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(text, box.end, box.end + _MAX_CONTEXT_CHARS)
    )
