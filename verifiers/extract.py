r"""Take one final answer out of a completion, by one named rule; None means that there is no answer.

Every rule first drops `<think>...</think>`; an unclosed `<think>` leaves no answer. Then

- `boxed`: the last complete `\boxed{}` or `\fbox{}`; a later unclosed box means no answer. Boxes that
  follow each other with nothing but connectives between them are one answer with several parts ("1, 2"): a
  list reference accepts it, a single-valued one never does, so naming candidates does not pay.
- `gsm8k`: the rest of the line after the last `####`, else after the last line that starts with `A:`.
- `prose`: what follows the last "the answer is" (or "answer:"), to the end of its sentence.
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

Rule = Callable[[str], str | None]

MAX_BARE_CHARS = 4000
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
_LABELLED_NEXT = re.compile(r"[\s$)\]\\,;]*\b(?:and|or)\b[\s$(\[\\]*[A-Za-z](?:_\{?\w+\}?)?\s*=[\s$(\\]*")
_NEGATED_BEFORE = re.compile(
    r"(?:\bnot(?: equal to| be)?|\bnever|n't(?: be)?|\brather than|\binstead of|\bcannot be)"
    r"[\s$:({\[]*\\?[(\[]?\s*$",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"[\s$.,)\]\\]*(?:is|are|was|would be|cannot|can't)\s*"
    r"(?:n't|not|wrong|incorrect|false|be right|be correct)",
    re.IGNORECASE,
)
_CANDIDATE_AFTER = re.compile(
    r"[\s$*)\]\\]*,?\s*(?:or|and/or)\s+(?:maybe\s+|perhaps\s+)?[$\\(]*\s*(-?\d[\d,./]*)"
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
    candidate = _CANDIDATE_AFTER.match(text, boxes[-1].end)
    if candidate and candidate[1].rstrip(".,") not in parts:
        parts.append(candidate[1].rstrip(".,"))
    return ", ".join(parts)


def _is_negated(text: str, box: _Box) -> bool:
    before = text[max(0, box.start - 40) : box.start]
    return bool(_NEGATED_BEFORE.search(before) or _NEGATED_AFTER.match(text, box.end))


_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_A_LINE = re.compile(r"^[ \t]*A:[ \t]*([^\n]*)", re.MULTILINE)


def gsm8k(text: str) -> str | None:
    """What the last `####` names, else what the last line starting with `A:` names."""
    for mark, pattern in (("####", _HASHES), ("A:", _A_LINE)):
        if mark in text:
            found = pattern.findall(text)
            if found:
                return _tidy(found[-1]) or None
    return None


_ANCHOR = re.compile(
    r"\b(?:(?:final\s+|correct\s+)?answer\s*(?:\b(?:is|are|would be|will be|must be)\b|=|:)|final answer\b)"
    r"(?:\s*(?:equal to|therefore|thus|simply|exactly)\b)?[\s:*]*",
    re.IGNORECASE,
)
_NOT = re.compile(r"(?:not|n't|never|neither)\b", re.IGNORECASE)
_LATER_NOT = re.compile(r"[,;]\s*(?:and\s+)?not\b.*$", re.IGNORECASE | re.DOTALL)


def prose(text: str) -> str | None:
    """What follows the last "the answer is", to the end of that sentence; "is not 42" names nothing."""
    if "nswer" not in text and "NSWER" not in text:
        return None
    anchors = list(_ANCHOR.finditer(text))
    for anchor in reversed(anchors):
        sentence = _LATER_NOT.sub("", _first_sentence(text[anchor.end() : anchor.end() + MAX_BARE_CHARS]))
        answer = _tidy(sentence)
        if answer and not _NOT.match(answer):
            return _value_named(answer)
    return None


_CONCLUSION = re.compile(r"\b(?:therefore|thus|hence|so|consequently)\b[,\s]", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|equals|equal to|becomes)\b\s*:?\s*", re.IGNORECASE)
_NUMBER_IN_TEXT = re.compile(r"(?<![\w.\\])-?(?:\\?\$)?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?:\\?%)?(?![\w^])")
MAX_CONCLUSION_CHARS = 300


def _value_named(sentence: str) -> str:
    """The answer in a sentence of several words: what stands after its last "is", else its only number."""
    words = _WORD.findall(_FORMULA.sub(" ", sentence))
    if len(words) < 3 or "\\text" in sentence:
        return sentence
    copulas = list(_COPULA.finditer(sentence))
    tail = _tidy(sentence[copulas[-1].end() :]) if copulas else ""
    if (
        any(char.isdigit() for char in tail)
        or _FORMULA.search(tail)
        or (tail and len(_WORD.findall(tail)) <= 2)
    ):
        if len(_WORD.findall(_FORMULA.sub(" ", tail))) < 3:
            return tail
        sentence = tail
    formulas = list(_FORMULA.finditer(sentence))
    numbers = _NUMBER_IN_TEXT.findall(_FORMULA.sub(" ", sentence))
    if len(formulas) == 1 and not numbers:
        return _tidy(formulas[0][0])
    return numbers[0] if len(numbers) == 1 and not formulas else sentence


def conclusion(text: str) -> str | None:
    """What the last sentence that starts with "therefore" (thus, hence, so) names, if it ends the text."""
    starts = list(_CONCLUSION.finditer(text[-MAX_CONCLUSION_CHARS:]))
    if not starts:
        return None
    tail = text[-MAX_CONCLUSION_CHARS:][starts[-1].end() :]
    sentence = _tidy(_first_sentence(tail))
    if re.search(r"\bnot\b|n't\b", sentence):
        return None
    formulas = list(_FORMULA.finditer(sentence))
    if formulas and not _COPULA.search(sentence[: formulas[-1].start()]):
        return None
    named = _value_named(sentence)
    return None if named == sentence and len(_WORD.findall(_FORMULA.sub(" ", sentence))) >= 3 else named


_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\s*\d[\d,.]*\s+[a-z]{3})([^$\n]+?)(?<!\\)\$|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)",
    re.DOTALL,
)
MAX_BARE_WORDS = 12


def bare(text: str) -> str | None:
    """The whole text, without blanks around it."""
    return text.strip() or None


def last_formula(text: str) -> str | None:
    """The last formula (or joined formulas) of a short text; the text itself if it is a line of few words."""
    text = text.strip()
    if not text or len(text) > MAX_BARE_CHARS:
        return None
    formulas = list(_FORMULA.finditer(text))
    if formulas:
        outside = _FORMULA.sub(" ", text)
        words = [w for w in _WORD.findall(outside) if w.lower() not in ("and", "or")]
        if words and not _short_unit(text[formulas[-1].end() :]):
            if len(formulas) > 1 and _joined(text[formulas[-2].end() : formulas[-1].start()]):
                return _tidy(text[formulas[-2].start() : formulas[-1].end()])
            return _tidy(formulas[-1][0])
    elif "\n" in text or len(_WORD.findall(text)) > MAX_BARE_WORDS:
        return None
    return _tidy(text)


def _short_unit(tail: str) -> bool:
    """Whether what follows the last formula can be its unit ("miles", "square feet")."""
    return 0 < len(_WORD.findall(tail)) <= 2 and len(tail) < 30


def _first_sentence(text: str) -> str:
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
            if char == "<" and text.startswith(("<|", "</s>"), index):
                return text[:index]
        index += 1
    return text


_EDGE = re.compile(r"^[\s*_`\"']+|[\s*_`\"']+$")
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>).*$", re.DOTALL)


def _tidy(text: str) -> str:
    """Without end-of-text marks, Markdown emphasis, quotes and a closing full stop."""
    if "<" in text:
        text = _END_TOKEN.sub("", text)
    text = _EDGE.sub("", text)
    if text[-1:] in (".", ",", ";", ":") and not text.endswith("\\,") and not text.endswith("\\;"):
        text = _EDGE.sub("", text[:-1])
    return text


def auto(text: str) -> str | None:
    r"""The first rule that finds something; an unclosed box is no answer, whatever else is there."""
    if "\\boxed" in text or "\\fbox" in text:
        return boxed(text)
    for rule in (gsm8k, prose, conclusion, last_formula):
        found = rule(text)
        if found is not None:
            return found
    return None


_RULES: dict[str, Rule] = {"auto": auto, "boxed": boxed, "gsm8k": gsm8k, "prose": prose, "bare": bare}


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
    text = without_thinking(completion)
    return None if text is None else function(text)
