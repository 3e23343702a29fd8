"""Bring an answer's text to plain ASCII LaTeX before it is cut into tokens."""

from __future__ import annotations

import re
import unicodedata

from verifiers.base import ParseError
from verifiers.grammar.nodes import MAX_CHARS
from verifiers.grammar.notation import as_written_alone, in_usual_notation

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₖₙ", "0123456789+-=()aeoxkn")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
_SUBSCRIPT_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₒₓₖₙ]+")
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
    "Ω": "Omega",
}  # fmt: skip
_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "－": "-",
    "×": r"\times ", "✕": r"\times ", "⨯": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "•": r"\cdot ", "∗": "*", "÷": r"\div ", "∕": "/", "⁄": "/", "√": r"\sqrt ", "∛": r"\sqrt[3] ",
    "∜": r"\sqrt[4] ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "≡": r"\equiv ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ",
    "∖": r"\setminus ", "±": r"\pm ", "∓": r"\mp ", "°": r"^\circ ", "º": r"^\circ ", "′": "'", "’": "'",
    "‘": "'", "“": '"', "”": '"', "…": r"\ldots ", "∑": r"\sum ", "∫": r"\int ", "∏": r"\prod ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⟨": r"\langle ", "⟩": r"\rangle ", "∣": "|", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ",
    "⌉": r"\rceil ", "∧": r"\text{ and }", "∨": r"\text{ or }", "€": r"\euro ", "£": r"\pounds ",
    "¥": r"\yen ", "₹": r"\rupee ", "¢": r"\text{ cents}",
    "→": r"\to ", "℃": r"^\circ C", "，": ",", "。": ".", "、": ",", "：": ":", "；": ";",
}  # fmt: skip
_TABLE = str.maketrans(_SYMBOLS | {letter: rf"\{name} " for letter, name in _GREEK.items()})
_DIRECTION_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

_SPACES = re.compile(
    r"\\(?:quad|qquad|enspace|thinspace|hfill|displaystyle|textstyle|limits|nolimits|hskip|"
    r"left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|middle|mathop|"
    r"mathopen|mathclose|nonumber|noindent|centering|strut|ensuremath)(?![A-Za-z])\.?"
)
_SWALLOWED = re.compile(r"([\x0c\x08])(?=rac\b|rac\{|box|egin\{|oxed\{|inom)")
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2,}|[{}%$])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_INFIX = re.compile(r"\\(?:over|choose)(?![A-Za-z])")
_WRAPPED = re.compile(r"\\(?:boxed|fbox)\s*\{")
# A backslash before the mark would make it the second half of a line break.
_EDGE_SPACES = re.compile(r"^(?:\\[,;:! ]|[~\s])+|(?<!\\)(?:\\[,;:!]|\\ |[~\s])+$")
_TRAILING = re.compile(r"(?:\s|(?<!\\)[.,;:]|\\\\|\\(?:text|mathrm)\s*\{\s*[.,;]?\s*\})+$")


def _fraction_or_self(char: str) -> str:
    """½ -> \\frac{1}{2}, ² -> handled before; other compatibility characters by NFKC."""
    normal = unicodedata.normalize("NFKC", char)
    if "⁄" in normal:
        top, _, bottom = normal.partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}"
    return normal


def _to_ascii(text: str) -> str:
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _SUBSCRIPT_RUN.sub(lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}", text)
    kept: list[str] = []
    for char in text.translate(_TABLE):
        if char.isascii():
            kept.append(char)
            continue
        category = unicodedata.category(char)
        if char in _DIRECTION_OVERRIDES:
            raise ParseError("text direction overrides are not read: what is shown is not what is written")
        if category == "Cf" or "\ufe00" <= char <= "\ufe0f":  # unseen, and the choice of a glyph
            continue
        kept.append(" " if category in ("Zs", "Zl", "Zp") else _fraction_or_self(char))
    return "".join(kept).translate(_TABLE)


def clean(text: str) -> str:
    """Plain text of the answer: no wrappers, no spacing commands, Unicode mathematics as LaTeX.

    Raises `ParseError` for text that is too long, holds control characters, or is empty.
    """
    if len(text) > MAX_CHARS:
        raise ParseError(f"answer of {len(text)} characters, at most {MAX_CHARS} are read")
    if not text.isascii():
        text = _to_ascii(text)
    # "\f" and "\b" that a string literal swallowed: \x0crac was \frac, \x08egin was \begin.
    text = _SWALLOWED.sub(lambda found: "\\" + {"\x0c": "f", "\x08": "b"}[found[1]], text)
    if "\\begin" not in text:
        text = _DOUBLED.sub(r"\\", text)
    if any(ord(char) < 32 and char not in "\n\t\r" for char in text):
        raise ParseError("control characters in the answer")
    text = in_usual_notation(text)
    if "\\" in text:
        text = _SPACES.sub(" ", text)
    text = text.strip().strip("`*").strip()
    previous = None
    while previous != text:
        previous = text
        text = _TRAILING.sub("", _unwrap(_EDGE_SPACES.sub("", text))).strip().strip("`*")
    if not text:
        raise ParseError("empty answer")
    return as_written_alone(text)


def _closes_at_end(text: str) -> bool:
    """Whether the brace that opens a text closes with its last character."""
    depth = 0
    for position, token in enumerate(_BRACE.finditer(text)):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return position > 0 and token.end() == len(text)
    return False


def _unwrap(text: str) -> str:
    for start, end in (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")):
        inner = text[len(start) : -len(end)]
        if len(text) > len(start) + len(end) and text.startswith(start) and text.endswith(end):
            whole = start not in inner.replace("\\$", "") and not inner.endswith("\\")
            if whole:
                return inner.strip()
    # In {1 \\over 2} the braces are the fraction's.
    if text.startswith("{") and text.endswith("}") and not _INFIX.search(text) and _closes_at_end(text):
        return text[1:-1]
    match = _WRAPPED.match(text)
    if match and text.endswith("}") and text.count("{") == text.count("}"):
        return text[match.end() : -1].strip()
    if "$" in text and "\\$" not in text and text.count("$") % 2 == 0:
        return text.replace("$", " ").strip()
    return text
