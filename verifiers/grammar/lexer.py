"""Cut a cleaned answer into tokens; what is unknown is a token too, nothing is dropped silently."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from verifiers.base import ParseError
from verifiers.grammar.nodes import MAX_DEPTH, MAX_TOKENS
from verifiers.grammar.numerals import letter_numeral, numeral, starts_with_point
from verifiers.grammar.vocabulary import (
    COMMANDS,
    CONSTANT_WORDS,
    FONT_COMMANDS,
    FUNCTIONS,
    GREEK,
    IGNORED_COMMANDS,
    OPERATOR_COMMANDS,
    SHORT_WORDS,
    TEXT_COMMANDS,
    UNIT_WORDS,
    WORD_OPERATORS,
)


@dataclass(frozen=True, slots=True)
class Token:
    """kind: num, sym, fn, cmd, op, text, word or end. spaced: whether a blank stands before it."""

    kind: str
    value: str
    spaced: bool = False


END: Final = Token("end", "")

_COMMAND = re.compile(r"\\([A-Za-z]+)\*?")
_LETTERS = re.compile(r"[A-Za-z]+")
_TWO_CHARS = {"**": "^", "<=": "<=", ">=": ">=", "!=": "!=", "==": "=", "=<": "<=", "=>": ">=", ":=": "="}
_ESCAPED = {
    "\\{": "\\{",
    "\\}": "\\}",
    "\\%": "%",
    "\\$": "$",
    "\\|": "|",
    "\\&": "text:and",
    "\\#": "#",
    "\\_": "_",
}
_PLAIN_OPERATORS = frozenset("+-*/^_!()[]{}|,;:=<>&%'$@#\"")
_CONNECTIVE = re.compile(r"\s*(?:,|;|and/or\b|and\b|or\b)\s*")
_TRAILING_IF = re.compile(r"(.*?)\s*,\s*", re.DOTALL)
_TRAILING_AND = re.compile(r"(.*\S)\s*,?\s+(and|or)\s*", re.DOTALL)
_ENDS_HERE = re.compile(r"\s*(?:$|[,;.)^/}])")
_UNIT_LETTERS = frozenset("msghLlJNWVAKC")
_UNITS_LIKE_FUNCTIONS = frozenset({"min", "sec"})
_NOUNS = frozenset({"logs", "tanks", "dots", "costs", "sins", "tans", "logins"})
_NOUN_ENDS = re.compile(r"\s*(?:$|[,;.)]|[a-z]{3})")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![A-Za-z])")
_NO_UNITS = frozenset("abcefijnopqrtuvwxyzMOPQRSTUXYZ")
_WITHOUT_CONTENT = frozenset(
    {"color", "textcolor", "phantom", "hphantom", "vphantom", "label", "hspace", "vspace", "cline"}
)
_NOON = re.compile(r"([AaPp])\.? ?[Mm]\b\.?")


def brace_content(text: str, start: int) -> tuple[str, int]:
    """The content of the brace that opens at `start` and the index after its closing one."""
    depth = 0
    index = start
    while index < len(text):
        char = text[index]
        if char == "\\":
            index += 2
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : index], index + 1
        index += 1
    raise ParseError("a brace is never closed")


class _Lexer:
    def __init__(self, text: str, depth: int = 0) -> None:
        if depth > MAX_DEPTH:
            raise ParseError(f"more than {MAX_DEPTH} nested braces")
        self.text = text
        self.depth = depth
        self.index = 0
        self.spaced = False
        self.brackets = 0
        self.tokens: list[Token] = []

    def add(self, kind: str, value: str) -> None:
        if len(self.tokens) >= MAX_TOKENS:
            raise ParseError(f"more than {MAX_TOKENS} symbols in the answer")
        if value in ("(", "[", "\\{", "langle"):
            self.brackets += 1
        elif value in (")", "]", "\\}", "rangle"):
            self.brackets -= 1
        self.tokens.append(Token(kind, value, self.spaced))
        self.spaced = False

    def run(self) -> list[Token]:
        text = self.text
        while self.index < len(text):
            char = text[self.index]
            if char in " \t\n\r~":
                self.index += 1
                self.spaced = True
            elif "_" in text and (found := letter_numeral(text, self.index)):
                self.add_number(found)
            elif char.isdigit() or (char == "." and starts_with_point(text, self.index)):
                # "(1,234)" is a pair: a comma groups digits only outside of brackets.
                in_list = bool(self.tokens) and self.tokens[-1].value in (",", ";")
                self.add_number(numeral(text, self.index, commas=self.brackets <= 0 and not in_list))
            elif char == "\\":
                self.command()
            elif char.isalpha() and not char.isascii() and self.follows_value():
                self.index += 1  # a counter word of another script: 30个
                self.add("text", char)
            elif char.isalpha():
                self.letters()
            elif text.startswith("!=", self.index) and not self.spaced and self.follows_number():
                self.add("op", "!")  # 5!=120
                self.index += 1
            elif text[self.index : self.index + 2] in _TWO_CHARS:
                self.add("op", _TWO_CHARS[text[self.index : self.index + 2]])
                self.index += 2
            elif text.startswith("...", self.index):
                self.add("sym", "ldots")
                self.index += 3
            elif char in _PLAIN_OPERATORS:
                self.add("op", char)
                self.index += 1
            else:
                raise ParseError(f"unreadable character {char!r}")
        return [*self.tokens, END]

    def add_number(self, found: tuple[str, int]) -> None:
        value, self.index = found
        self.add("num", value)

    def command(self) -> None:
        text = self.text
        two = text[self.index : self.index + 2]
        if two == "\\\\":
            self.add("op", "\\\\")
            self.index += 2
            # "\\[2pt]" sets the height of a row.
            height = re.compile(r"\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]").match(text, self.index)
            if height:
                self.index = height.end()
            return
        if two in _ESCAPED:
            value = _ESCAPED[two]
            self.add("text" if value == "text:and" else "op", "and" if value == "text:and" else value)
            self.index += 2
            return
        if two[1:] in (",", ";", ":", "!", " ", "\n", "-", ">", ""):
            self.index += 2
            self.spaced = True
            return
        match = _COMMAND.match(text, self.index)
        if match is None:
            if two in ("\\(", "\\)", "\\[", "\\]"):
                self.index += 2
                self.spaced = True
                return
            raise ParseError(f"unreadable command {two!r}")
        name = match[1]
        self.index = match.end()
        if name in FONT_COMMANDS:
            self.font(name)
        elif name in _WITHOUT_CONTENT:
            self.spaced = True
            if self.text[self.index : self.index + 1] == "{":
                self.index = brace_content(self.text, self.index)[1]
        elif name in IGNORED_COMMANDS:
            self.spaced = True
        elif name in ("begin", "end"):
            environment = re.compile(r"\s*\{([a-zA-Z]+)\*?\}").match(text, self.index)
            if environment is None:
                raise ParseError(f"\\{name} without an environment")
            self.index = environment.end()
            self.add("cmd", f"{name}:{environment[1]}")
        elif name in OPERATOR_COMMANDS:
            self.add("op", OPERATOR_COMMANDS[name])
        elif name in COMMANDS:
            self.add("cmd", name)
        elif name in FUNCTIONS:
            self.add("fn", FUNCTIONS[name])
        elif name in CONSTANT_WORDS or not self.run_together(name):
            self.add("sym", CONSTANT_WORDS.get(name, name))

    def run_together(self, name: str) -> bool:
        r"""`\sqrta`, `\quadx`: a command without the blank that should end it."""
        for command in ("sqrt", "qquad", "quad", "cdot", "times", "pi", "infty", "frac"):
            if name.startswith(command) and len(name) - len(command) <= 2:
                self.index -= len(name) - len(command)
                if command in COMMANDS:
                    self.add("cmd", command)
                elif command in OPERATOR_COMMANDS:
                    self.add("op", OPERATOR_COMMANDS[command])
                elif command not in IGNORED_COMMANDS:
                    self.add("sym", CONSTANT_WORDS.get(command, command))
                return True
        return False

    def font(self, name: str) -> None:
        r"""`\text{...}` and the like: words become text, one letter a symbol, digits what they are."""
        while self.text[self.index : self.index + 1] == " ":
            self.index += 1
        if self.text[self.index : self.index + 1] != "{":
            if name == "mathbb" and self.text[self.index : self.index + 1].isalpha():
                self.add("sym", f"set {self.text[self.index]}")
                self.index += 1
            return
        content, self.index = brace_content(self.text, self.index)
        stripped = content.replace("\\ ", " ").replace("~", " ").strip(" $")
        joined = None
        if name in TEXT_COMMANDS:
            stripped = self.connective(stripped)
            joined = _TRAILING_AND.fullmatch(stripped)
            if joined:
                stripped = joined[1]
            content = stripped
        if not stripped:
            self.spaced = True
        elif name == "mathbb":
            self.add("sym", f"set {stripped}")
        elif name in (
            "mathbf",
            "boldsymbol",
            "vec",
            "hat",
            "overrightarrow",
            "overline",
            "bar",
            "widehat",
            "tilde",
        ):
            letters = re.sub(r"[^A-Za-z0-9]", "", stripped)
            if name in ("overline", "bar") and len(letters) > 1 and letters.isupper():
                self.splice(content)  # the segment AB
            elif name in ("overline", "bar") and stripped.isalpha() and len(stripped) == 1:
                self.add("sym", f"bar {stripped}")  # the conjugate or the mean, which is not z itself
            elif letters.isdigit() or not letters or "\\" in stripped:
                self.splice(content)
            else:
                self.add("sym", letters if len(letters) > 1 or letters not in "ie" else f"vector {letters}")
        elif len(stripped) == 1 and stripped in _NO_UNITS and self.follows_value():
            self.add("sym", stripped)  # 12\\text{x} is 12x
        elif (
            name == "mathrm"
            and stripped in _UNIT_LETTERS
            and self.follows_value()
            and self.text[self.index : self.index + 1] != "_"
        ):
            self.add("text", stripped)
        elif stripped == "to" and self.follows_value():
            self.add("op", ":")  # 4 to 3
        elif stripped in _UNITS_LIKE_FUNCTIONS and self.unit_here():
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

    def connective(self, words: str) -> str:
        """Emit an "and", "or" or comma that a text begins with, and return what is left of the text."""
        match = _CONNECTIVE.match(words)
        while match and match[0]:
            self.add("op", "or" if "or" in match[0] else "and" if "and" in match[0] else ",")
            words = words[match.end() :]
            match = _CONNECTIVE.match(words)
        trailing = _TRAILING_IF.fullmatch(words)
        return trailing[1] if trailing else words

    def splice(self, content: str) -> None:
        for token in _Lexer(content, self.depth + 1).run()[:-1]:
            self.add(token.kind, token.value)

    def letters(self) -> None:
        match = _LETTERS.match(self.text, self.index)
        if match is None:
            raise ParseError(f"unreadable character {self.text[self.index]!r}")
        word = match[0]
        lower = word.lower()
        noon = _NOON.match(self.text, self.index)
        if noon and len(self.tokens) > 1 and self.tokens[-2].value == ":":
            self.index = noon.end()
            self.add("text", noon[1].lower() + "m")
            return
        self.index = match.end()
        if self.tokens and self.tokens[-1].kind == "num" and not self.spaced and _ORDINAL.fullmatch(word):
            return  # 7th
        if word in _UNITS_LIKE_FUNCTIONS and self.unit_here():
            self.add("text", word)
        elif word == "to" and self.tokens and self.tokens[-1].kind == "num":
            self.add("op", ":")
        elif word == "in" and self.follows_value() and _ENDS_HERE.match(self.text, self.index):
            self.add("text", "in")  # 6 in, not "in" a set
        elif word in WORD_OPERATORS:
            kind, value = WORD_OPERATORS[word]
            self.add(kind, value)
        elif lower in CONSTANT_WORDS and not (word in _NOUNS and self.spaced and self.follows_value()):
            self.add("sym", CONSTANT_WORDS[lower])
        elif lower in FUNCTIONS and len(word) > 1:
            self.add("fn", FUNCTIONS[lower])
        elif word in GREEK:
            self.add("sym", word)
        elif (self.spaced and self.follows_value() and self.is_noun(word)) or (
            len(word) > 1 and (lower in UNIT_WORDS or word in UNIT_WORDS) and self.follows_value()
        ):
            self.add("text", word)
        elif len(word) == 1:
            self.add("sym", word)
        elif lower in SHORT_WORDS and not word.isupper():
            self.add("word", word)
        elif not self.split_function(word):
            if len(word) <= 3:
                for letter in word:
                    self.add("sym", letter)
            else:
                self.add("word", word)

    def is_noun(self, word: str) -> bool:
        """Whether a word after a number is what it counts, no letters and no function: 24 men, 3 logs."""
        if not word.islower() or len(word) < 3 or word in FUNCTIONS or word in GREEK:
            return False
        return (len(word) == 3 and bool(_NOUN_ENDS.match(self.text, self.index))) or word in _NOUNS

    def follows_number(self) -> bool:
        return bool(self.tokens) and (self.tokens[-1].kind == "num" or self.tokens[-1].value == ")")

    def unit_here(self) -> bool:
        """Whether 25 min or 25 sec ends here, so that it is no function."""
        return self.follows_value() and bool(_ENDS_HERE.match(self.text, self.index))

    def follows_value(self) -> bool:
        return bool(self.tokens) and (
            self.tokens[-1].kind in ("num", "text") or self.tokens[-1].value in ")}/"
        )

    def split_function(self, word: str) -> bool:
        """`sinx` and `xsinx` as products with functions; False where the word holds none."""
        for name in (
            "arcsin",
            "arccos",
            "arctan",
            "sinh",
            "cosh",
            "tanh",
            "sqrt",
            "sin",
            "cos",
            "tan",
            "log",
            "ln",
        ):
            position = word.find(name)
            if 0 <= position <= 2 and len(word) - position - len(name) <= 2:
                for letter in word[:position]:
                    self.add("sym", letter)
                self.add("fn", name)
                for letter in word[position + len(name) :]:
                    self.add("sym", letter)
                return True
        if word in ("xpi", "npi", "kpi"):
            self.add("sym", word[0])
            self.add("sym", "pi")
            return True
        return False


def tokens_of(text: str) -> list[Token]:
    """The tokens of a cleaned answer and `END`. Raises `ParseError` for unreadable or oversized text."""
    return _Lexer(text).run()
