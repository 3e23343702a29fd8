r"""Commands that set their argument in another font or under a mark: `\text{cm}`, `\mathbb{R}`, `\dot{y}`."""

from __future__ import annotations

import re

from verifiers.grammar.tokens import Token, TokenList, brace_content
from verifiers.grammar.vocabulary import FUNCTIONS, GREEK, TEXT_COMMANDS, words

_CONNECTIVE = re.compile(r"\s*(?:,|;|and/or\b|and\b|or\b)\s*")
_TRAILING_IF = re.compile(r"(.*?)\s*,\s*", re.DOTALL)
_TRAILING_AND = re.compile(r"(.*\S)\s*,?\s+(and|or)\s*", re.DOTALL)
_UNIT_LETTERS = frozenset("msghLlJNWVAKC")
UNITS_LIKE_FUNCTIONS = frozenset({"min", "sec"})
_NO_UNITS = frozenset("abcefijnopqrtuvwxyzMOPQRSTUXYZ")
_MARKS = words("dot ddot bar overline")
"""Under these a letter is another one: the derivative, the mean, the conjugate."""
_PLAIN_MARKS = words("mathbf boldsymbol vec hat overrightarrow widehat tilde")
"""These are left out where they are forgotten: a vector's letter is the vector."""
_MARKED = re.compile(r"\s*(?:\\([A-Za-z]+)|([A-Za-z]))\s*((?:_.*)?)", re.DOTALL)
_ONE_SYMBOL = re.compile(r"\s*(\\[A-Za-z]+|[A-Za-z](?![A-Za-z]))")


class FontLexer(TokenList):
    """The part of the lexer that reads an argument by what its font says of it."""

    def font(self, name: str) -> None:
        r"""`\text{...}` and the like: words become text, one letter a symbol, digits what they are."""
        while self.text[self.index : self.index + 1] == " ":
            self.index += 1
        if self.text[self.index : self.index + 1] == "{":
            content, self.index = brace_content(self.text, self.index)
        elif name == "mathbb" and self.text[self.index : self.index + 1].isalpha():
            content, self.index = self.text[self.index], self.index + 1
        elif name in _MARKS and (symbol := _ONE_SYMBOL.match(self.text, self.index)):
            content, self.index = symbol[1], symbol.end()
        else:
            return
        stripped = content.replace("\\ ", " ").replace("~", " ").strip(" $")
        if not stripped:
            self.spaced = True
        elif name == "mathbb":
            self.add("sym", f"set {stripped}")
        elif name in _MARKS:
            self.marked(name, stripped, content)
        elif name in _PLAIN_MARKS:
            self.bold(stripped, content)
        else:
            self.upright(name, stripped, content)

    def marked(self, name: str, stripped: str, content: str) -> None:
        r"""`\dot{y}`, `\dot{y_0}` and `\bar{z}` as symbols of their own; `\overline{AB}` as AB."""
        found = _MARKED.fullmatch(stripped)
        letter = found and (found[2] or (found[1] if found[1] in GREEK else None))
        letters = re.sub(r"[^A-Za-z0-9]", "", stripped)
        if found and letter:
            self.add("sym", f"{'bar' if name == 'overline' else name} {letter}")
            if found[3]:
                self.splice(found[3])
        elif letters == stripped and not letters.isupper() and not letters.isdigit():
            self.add("sym", letters)  # the number with the digits a, b and c
        elif letters == stripped or name in ("dot", "ddot"):
            self.splice(content)
        else:
            self.add("fn", "conj")
            self.add("op", "(")
            self.splice(content)
            self.add("op", ")")

    def bold(self, stripped: str, content: str) -> None:
        letters = re.sub(r"[^A-Za-z0-9]", "", stripped)
        if letters.isdigit() or not letters or "\\" in stripped:
            self.splice(content)
        else:
            self.add("sym", letters if len(letters) > 1 or letters not in "ie" else f"vector {letters}")

    def upright(self, name: str, stripped: str, content: str) -> None:
        joined = None
        if name in TEXT_COMMANDS:
            stripped = self.connective(stripped)
            joined = _TRAILING_AND.fullmatch(stripped)
            if joined:
                stripped = joined[1]
            content = stripped
        if not stripped:
            self.spaced = True
        elif len(stripped) == 1 and stripped in _NO_UNITS and self.follows_value():
            self.add("sym", stripped)  # 12\\text{x} is 12x
        elif self.is_unit_letter(name, stripped):
            self.add("text", stripped)
        elif stripped == "\\Omega" and self.follows_value():
            self.add("text", "ohm")
        elif stripped == "to" and self.follows_value():
            self.add("op", ":")  # 4 to 3
        elif stripped in UNITS_LIKE_FUNCTIONS and self.follows_value() and not self.has_argument():
            self.add("text", stripped)
        elif stripped in ("infinity", "Infinity"):
            self.add("sym", "oo")
        elif stripped in FUNCTIONS:
            self.add("fn", FUNCTIONS[stripped])
        elif len(stripped) == 1 and stripped.isalpha() and name not in ("text", "textbf", "mbox", "textrm"):
            self.add("sym", stripped)
        elif re.search(r"[A-Za-z]{1}", re.sub(r"\\[A-Za-z]+", "", stripped)) is None:
            self.splice(content)
        else:
            self.add("text", content.replace("\\ ", " "))
        if joined:
            self.add("op", joined[2])

    def has_argument(self) -> bool:
        """Whether a bracket opens here."""
        return re.match(r"\s*\\?[({]", self.text[self.index :]) is not None

    def is_unit_letter(self, name: str, letter: str) -> bool:
        r"""Whether `\mathrm{m}` after a value is a unit; with a subscript it is a name."""
        subscripted = self.text[self.index : self.index + 1] == "_"
        return name == "mathrm" and letter in _UNIT_LETTERS and self.follows_value() and not subscripted

    def connective(self, text: str) -> str:
        """Emit an "and", "or" or comma that a text begins with, and return what is left of the text."""
        match = _CONNECTIVE.match(text)
        while match and match[0]:
            self.add("op", "or" if "or" in match[0] else "and" if "and" in match[0] else ",")
            text = text[match.end() :]
            match = _CONNECTIVE.match(text)
        trailing = _TRAILING_IF.fullmatch(text)
        return trailing[1] if trailing else text

    def splice(self, content: str) -> None:
        inner = type(self)(content, self.depth + 1)
        for token in inner.run():
            if token.kind != "end":
                self.add(token.kind, token.value)

    def run(self) -> list[Token]:
        """The tokens of the text and `END`; `lexer` reads them."""
        raise NotImplementedError
