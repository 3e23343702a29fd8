"""Multiple choice: one letter A to J: `B`, `(B)`, `B.`, `\\text{(B)}`, "option B", "(B) and its text"."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import ClassVar

from verifiers.base import AnswerType, ParseError
from verifiers.grammar.clean import clean
from verifiers.grammar.normal_words import normal_words

_FONTS = re.compile(
    r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|sf|it)|mbox|bf|rm|boxed|left|right)(?![A-Za-z])|[{}$*~]|\\[,;:! ]"
)
_BLANKS = re.compile(r"\s")
_LETTER = re.compile(
    r"(?:[Oo]ption|[Cc]hoice|[Aa]nswer)?[(\[]?([A-Ja-j])[)\].:]?(?:(?<=[)\].:])(?P<rest>.*))?", re.DOTALL
)
_ANOTHER = re.compile(r"[(\[]?\b[A-J]\b[)\].:]|\b(?:or|and)\b\s*[(\[]?[A-J]\b|[,/]\s*[(\[]?[A-J]\b")


class Choice(AnswerType):
    """One letter of A to J; naming several is not an answer."""

    name: ClassVar[str] = "choice"

    def parse(self, text: str) -> str:
        """The letter in upper case. Raises `ParseError` when there is none, or more than one."""
        if len(text) > 2000:
            raise ParseError(f"a choice of {len(text)} characters")
        text = clean(text)
        visible = _FONTS.sub("", text)
        bare = _BLANKS.sub("", visible)
        match = _LETTER.match(bare)
        if match is None or (match.end() != len(bare)):
            raise ParseError(f"expected one letter such as B or (B), got {text[:40]!r}")
        # "(B) 5" restates its option, "(B), (C)" hedges.
        rest = visible[visible.upper().find(match[1].upper()) + 1 :] if match["rest"] else ""
        if _ANOTHER.search(rest):
            raise ParseError(f"more than one letter in {text[:40]!r}")
        return match[1].upper()

    def equal(self, reference: str, given: str) -> bool:
        return reference == given


_OPTION = re.compile(
    r"""
    \s*(?:\\(?:text|mathrm|mathbf)(?:bf|rm|it)?\s*\{\s*)?
    (?:\(\s*([A-J])\s*\)|([A-J])\s*[).])\s*(\}?)
    [\s~,:]*(?:\\[ ,;:]\s*)*(?=\S)(.*)
    """,
    re.DOTALL | re.VERBOSE,
)


def option_parts(text: str) -> tuple[str, str] | None:
    """(letter, what it stands for) of "(B) 3" or `\\textbf{(B)}\\ 3`; None for any other text."""
    found = _OPTION.fullmatch(text)
    if found is None:
        return None
    value = found[4]
    if not found[3] and value.endswith("}") and value.count("}") > value.count("{"):
        value = value[:-1]
    return (found[1] or found[2], value.strip()) if value.strip(" }") else None


_SEVERAL = re.compile(r"[A-J](?:(?:[\s,;&]|and)*[A-J]){1,9}")


def several_letters(text: str) -> str:
    """The letters of "A, B and D" or "ABD" in order; "" for any other text."""
    plain = _FONTS.sub(" ", text)
    if not _SEVERAL.fullmatch(plain.strip()):
        return ""
    letters = re.findall(r"[A-J]", plain)
    if len(set(letters)) != len(letters) or (plain.strip().isalpha() and letters != sorted(letters)):
        return ""  # BAD is an angle
    return "".join(sorted(letters))


def option_letter(text: str, options: Sequence[str], preferred: str = "") -> str:
    """The letter of the option with this text, or failing that with its words, else the text itself.

    Where several options read alike, `preferred` (the reference's letter) is taken if it is among them, and
    none otherwise.
    """
    for normal in (str.strip, _bare_text, normal_words):
        wanted = normal(text)
        matches = [chr(ord("A") + i) for i, option in enumerate(options) if normal(option) == wanted]
        if wanted and (len(matches) == 1 or preferred in matches):
            return preferred if preferred in matches else matches[0]
    return text


def _bare_text(text: str) -> str:
    """Without the option's letter, blanks, dollar signs and a closing full stop."""
    with contextlib.suppress(ParseError):
        text = clean(text)
    return re.sub(r"^\s*[(\[]?[A-J][)\].:](?=\s*\S)|[\s$]|\.$", "", text).casefold()
