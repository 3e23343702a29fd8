r"""The answer in the last `\boxed{}` or `\fbox{}` of a completion, and what stands right beside it."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from verifiers.extraction.beside_box import MAX_CONTEXT_CHARS, with_context
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
# \boxed{3}+\boxed{4}i and \boxed{3}:\boxed{4} are one value.
_OPERATOR_GAP = re.compile(r"\s*(?:\\(?:cdot|times|div|pm)(?![A-Za-z])|[-+*:^×÷⋅·])\s*")
# What a box holds that only shows where an answer will stand: nothing, dots, "your answer".
_PLACEHOLDER_BOX = re.compile(
    r"""
    \\{1,2}(?:boxed|fbox)\s*\{
    (?:[\s~.…_?]|\\[,;:!\ ]|\\(?:q?quad|[lc]?dots|square|Box)(?![A-Za-z])|\{\}|\\(?:phantom|text)\{[\s~.…_]*\}
     |\\text\{\s*(?:(?:your|the|final|my)\s)*answer(?:\ here)?\s*\}
     |(?:(?:your|the|final|my)\s)*answer(?:\ here)?
    ){0,20}
    \}
    """,
    re.IGNORECASE | re.VERBOSE,
)
_MARKS = " \t\r\n" + string.punctuation


def without_placeholders(text: str) -> str:
    """Without the empty boxes that words follow; one that ends a text stays, an answer that never came."""
    if _PLACEHOLDER_BOX.search(text) is None:
        return text
    end = len(text.rstrip(_MARKS))
    return _PLACEHOLDER_BOX.sub(lambda box: box[0] if box.end() >= end else "", text)


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
    return boxed_without_placeholders(without_placeholders(text))


def boxed_without_placeholders(text: str) -> str | None:
    """`boxed` of a text that `without_placeholders` has been through."""
    boxes, last_is_open = _find_boxes(text)
    if last_is_open:
        return None
    boxes = [box for box in boxes if not _is_negated(text, box)]
    if not boxes or not boxes[-1].content:
        return None
    different = {box.content for box in boxes}
    if len(different) > MAX_DIFFERENT_BOXES:
        return None
    after = text[boxes[-1].end :][:MAX_CONTEXT_CHARS]
    if retracted(after, boxes[-1].content):
        return None
    after = _merge_operands(text, boxes, after)
    parts = [boxes[-1].content]
    for earlier, later in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        if not joined(text[earlier.end : later.start]):
            break
        if earlier.content not in parts:
            parts.insert(0, earlier.content)
    candidate = CANDIDATE_AFTER.match(text, boxes[-1].end, boxes[-1].end + MAX_CONTEXT_CHARS)
    if candidate and candidate[1] not in parts:
        parts.append(candidate[1])
    parts = [_SAID.sub("", part) or part for part in parts]
    last = with_context(parts[-1], text[max(0, boxes[-1].start - 60) : boxes[-1].start], after)
    return None if last is None else ", ".join([*parts[:-1], last])


def _merge_operands(text: str, boxes: list[_Box], after: str) -> str:
    """The last boxes with nothing but an operator between them become one; what is left of the text after."""
    while len(boxes) > 1 and (gap := _OPERATOR_GAP.fullmatch(text, boxes[-2].end, boxes[-1].start)):
        left, right = boxes[-2].content, with_context(boxes[-1].content, "", after) or boxes[-1].content
        content = f"{left}:{right}" if gap[0] == ":" else f"({left}){gap[0]}({right})"
        boxes[-2:], after = [_Box(boxes[-2].start, boxes[-1].end, content)], ""
    return after


def _is_negated(text: str, box: _Box) -> bool:
    before = text[max(0, box.start - 40) : box.start]
    return bool(
        _NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(text, box.end, box.end + MAX_CONTEXT_CHARS)
    )
