"""Formulas, Markdown and sentence ends in the text of a completion."""

from __future__ import annotations

import re

WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
# Dollar signs of money ("$40 + $2", "$5 apiece") enclose no formula.
FORMULA = re.compile(
    r"""
    \$\$(.+?)\$\$
    | (?<!\\)\$(?!\s*\d[\d,.]*\s+(?:[a-z]{3}|[A-Za-z]+[\s,.]))((?:\\\$|[^$\n])+?)
      (?<![\\=+*/×-])(?<![=+*/×-]\ )\$
    | \\\[(.+?)\\\]
    | \\\(([^\n]+?)\\\)
    """,
    re.DOTALL | re.VERBOSE,
)
_UNIT_AFTER = re.compile(
    r"""
    ((?:-?\$[^$\n]{1,200}\$|\\\([^\n]{1,200}?\\\)))\s*
    ((?!(?:or|and|if|when|for|as|is|mod)\b)[A-Za-z]+(?:(?:\s?[/*·]\s?|\s)[A-Za-z]+){0,2}(?:\^\{?-?\d\}?)?)
    """,
    re.VERBOSE,
)
_DECORATION = re.compile(r"^(?:\#{1,6}\s+|>\s+|•\s*|-\s+(?=\*\*)|<b>)+|(?:\s?[✅✓✔☑🎉]\ufe0f?|</b>)+$")
_EDGE = re.compile(r"^[\s*_`\"']+|[\s*_`\"']+$")
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</s>|<eos>|<end_of_turn>|\[/?INST\]).*$", re.DOTALL)


def with_unit(answer: str) -> str:
    r"""`$5$ erg/s` with the unit as text, so that its letters are not variables."""
    found = _UNIT_AFTER.fullmatch(answer)
    return rf"{found[1]}\text{{ {found[2]}}}" if found else answer


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
            if text[max(0, index - 2) : index + 1] in ("i.e", "e.g", ".e.", ".g."):
                index += 1
                continue
            if char in ".!?" and (index + 1 == len(text) or text[index + 1] in " \n\t*\"'<" or char != "."):
                # "5!" is a factorial, "5! " too: only a mark after a letter or a bracket ends a sentence.
                is_factorial = char == "!" and text[:index].rstrip()[-1:].isalnum()
                if not is_factorial:
                    return text[:index]
            if char == "<" and text.startswith(("<|", "</"), index):
                return text[:index]
        index += 1
    return text


def tidy(text: str) -> str:
    """Without end-of-text marks, Markdown emphasis, quotes and a closing full stop."""
    if "<" in text or "INST" in text:
        text = _END_TOKEN.sub("", text)
    text = _DECORATION.sub("", text)
    text = _EDGE.sub("", text)
    if text[-1:] in (".", ",", ";", ":", "。") and not text.endswith("\\,") and not text.endswith("\\;"):
        text = _EDGE.sub("", text[:-1])
    return text
