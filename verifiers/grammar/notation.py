"""Other ways to write what the grammar reads: ]0, 1[, 3 x 4, x^\\prime, Rs. 5, 6 (pears), lines."""

from __future__ import annotations

import re

from verifiers.grammar.units import known
from verifiers.grammar.vocabulary import FUNCTIONS

_REVERSED = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")
_CHOOSE = re.compile(
    r"(?:\{\})?[_^](?:\{(\d+)\}|(\d))\s*(?:\\(?:text|mathrm)\{C\}|C)\s*_(?:\{(\d+)\}|(\d))", re.ASCII
)
_TIMES = re.compile(r"(?<=\d)(?:\s+[xX]\s+(?=\\?\$?\d)|\s*[xX]\s*(?=10\s*\^))")
_CURRENCY_NAME = re.compile(
    r"(?:^|(?<==))(\s*\(?[A-J][).:]\s*|\s*)(?:\\(?:text|mathrm)\s*\{\s*)?(USD|US\\?\$|Rs\.?|INR|EUR|GBP)\s*\}?\s*(?=\d|\.\d)"
)
_CURRENCIES = {
    "USD": r"\$", "US": r"\$", "RS": r"\rupee ", "INR": r"\rupee ", "EUR": r"\euro ", "GBP": r"\pounds ",
}  # fmt: skip
_LAKHS = re.compile(r"(?<![\d,.])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])")
_RUPEES_ONLY = re.compile(r"(?<=\d)\s*/-$")
_BRACKETED_NOUN = re.compile(
    r"(?<=[\d}%])\s+\(\s*([A-Za-z]+(?:/[A-Za-z]+)?(?:\^\{?\d\}?)?(?: [a-z]+){0,3})\s*\)$"
)
_NOUN = re.compile(r"[a-z]{4,}|[b-df-hj-np-tv-z][aeiou][b-df-hj-np-tv-z]")
_BOUNDS = re.compile(r"[<>]|\\[lg]eq?(?![a-z])")
_HYPHENED = re.compile(r"(\d\s+[a-z]+)-((?:up|shirt|pointer|out|on|down|in)s?\b)")
_PRIMES = re.compile(r"\s*\^\s*(?:\{((?:\s*(?:\\prime(?![A-Za-z])|'))+)\s*\}|\\prime(?![A-Za-z])|(?='))")
_BASE_IN_WORDS = re.compile(
    r"""
    \s*(?:_\{\s*\\text\s*\{\s*base\s*\}\s*(\d{1,2})\s*\}
     |\\text\s*\{\s*\(?\s*(?:in\ )?base\s*(\d{1,2})\s*\)?\s*\})$
    """,
    re.ASCII | re.VERBOSE,
)
_BASED_BRACKET = re.compile(r"\(([0-9A-F]{1,80})\)(?=_\{?\d)", re.ASCII)
_BRACED_COMMA = re.compile(r"(?<=\d)\{,\}(?=(?:\d{1,2}|\d{4,})(?!\d))", re.ASCII)
_RELATION = re.compile(r"[=<>]|\\(?:[lg]eq?|ne|approx|in)(?![a-z])")
_LINE_END = re.compile(r"\s*\n\s*")
_UNION_OVER_INTEGERS = re.compile(
    r"""
    \\bigcup(?:\\limits)?\s*_\s*\{\s*([a-z])\s*
    (?:=\s*-\s*\\infty\s*\}\s*\^\s*(?:\{\s*\+?\s*\\infty\s*\}|\\infty) | \\in\s*\\mathbb\s*\{?\s*Z\s*\}?\s*\})
    \s*(.+)
    """,
    re.DOTALL | re.VERBOSE,
)
_BARE_CIRCLE = re.compile(r"(?<=\d)\s*(?:\$\s*)?\{\s*\\circ\s*\}\s*\$?$")
_FORMULA = re.compile(r"\$([^$]+)\$")
_FORMULAS = re.compile(r"\$[^$]+\$(?:\s+\$[^$]+\$)+")


def in_usual_notation(text: str) -> str:
    """The text with other notations written in the usual one; what is asked first is cheap."""
    if "[" in text and (text.count("[") != text.count("]") or text.find("]") < text.find("[")):
        text = _REVERSED.sub(_usual_brackets, text)
    if "C" in text:
        text = _CHOOSE.sub(lambda m: rf"\binom{{{m[1] or m[2]}}}{{{m[3] or m[4]}}}", text)
    if "x" in text or "X" in text:
        text = _TIMES.sub(r" \\times ", text)
    if " U " in text and _BOUNDS.search(text):
        text = text.replace(" U ", r" \cup ")
    if "-" in text:
        text = _HYPHENED.sub(r"\1\2", text)
    text = text.replace("{:}", ":")
    if "^" in text and ("prime" in text or "'" in text):
        text = _PRIMES.sub(_as_primes, text)
    if "circ" in text:
        text = _BARE_CIRCLE.sub(r"^\\circ", text)
    if "base" in text:
        text = _BASE_IN_WORDS.sub(lambda m: f"_{{{m[1] or m[2]}}}", text)
    if ")_" in text:
        text = _BASED_BRACKET.sub(r"\1", text)
    if "{,}" in text:
        text = _BRACED_COMMA.sub(".", text)
    return _lines_as_list(text) if "\n" in text or "$" in text else text


def as_written_alone(text: str) -> str:
    """A bare answer with currencies as signs, and what is counted as text: Rs. 5, 6 (pears).

    A union over all integers k is what it joins, for k in the integers.
    """
    if "bigcup" in text and (union := _UNION_OVER_INTEGERS.fullmatch(text)):
        return rf"{union[2]}, {union[1]}\in\mathbb{{Z}}"
    if text[:1] in "UEGI\\" or "Rs" in text or "INR" in text:
        text = _CURRENCY_NAME.sub(_as_sign, text)
    if "rupee" in text:
        text = _LAKHS.sub(lambda amount: amount[0].replace(",", ""), text)
    if text.endswith((")", "-")):
        text = _BRACKETED_NOUN.sub(_as_text, _RUPEES_ONLY.sub("", text))
    return text


def _usual_brackets(interval: re.Match[str]) -> str:
    """]0, 1[ as (0, 1), and [0, 1[ as [0, 1)."""
    opening, inner, closing = interval.groups()
    return f"{'(' if opening == ']' else '['}{inner}{')' if closing == '[' else ']'}"


def _as_primes(found: re.Match[str]) -> str:
    r"""x^{\prime\prime}, x^\prime and x^' as x'', x' and x'."""
    if found[1]:
        return "'" * (found[1].count("prime") + found[1].count("'"))
    return "" if found[0].strip() == "^" else "'"


def _as_sign(name: re.Match[str]) -> str:
    """Rs. 5 as the rupee sign and 5, also behind the letter of an option."""
    return name[1] + _CURRENCIES[name[2].rstrip(".$\\").upper()]


def _as_text(noun: re.Match[str]) -> str:
    r"""6 (pears) as 6\text{ pears}; 3 (xy) stays a product."""
    words = noun[1].split()
    is_noun = known(noun[1]) or all(_NOUN.fullmatch(w) and w not in FUNCTIONS for w in words)
    return rf"\text{{ {noun[1]}}}" if is_noun else noun[0]


def _lines_as_list(text: str) -> str:
    """Statements on lines or in formulas of their own as a list: a = 2, b = 5 is no chain a = 2b = 5."""
    if "\\begin" in text:
        return text
    bare = text.strip()
    parts = _FORMULA.findall(bare) if _FORMULAS.fullmatch(bare) else _LINE_END.split(bare)
    parts = [part.strip(" $,;.") for part in parts]
    return ", ".join(parts) if len(parts) > 1 and all(map(_is_statement, parts)) else text


def _is_statement(part: str) -> bool:
    """Whether a line says something by itself, and neither goes on the one before it nor is gone on with."""
    found = _RELATION.search(part)
    return found is not None and found.start() > 0 and part[-1:] not in "=<>+-*/\\"
