"""Cut a cleaned answer into tokens; what is unknown is a token too, nothing is dropped silently."""

from __future__ import annotations

import re
from dataclasses import replace

from verifiers.base import ParseError
from verifiers.grammar.fonts import UNITS_LIKE_FUNCTIONS, FontLexer
from verifiers.grammar.numerals import letter_numeral, numeral, starts_with_point
from verifiers.grammar.tokens import END, ENDS_HERE, Token, brace_content
from verifiers.grammar.vocabulary import (
    COMMANDS,
    CONSTANT_WORDS,
    FONT_COMMANDS,
    FUNCTIONS,
    GREEK,
    IGNORED_COMMANDS,
    OPERATOR_COMMANDS,
    SHORT_WORDS,
    UNIT_WORDS,
    WORD_OPERATORS,
)

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
_NOUNS = frozenset({"logs", "tanks", "dots", "costs", "sins", "tans", "logins"})
_NOUN_ENDS = re.compile(r"\s*(?:$|[,;.)]|[a-z]{3})")
_ORDINAL = re.compile(r"(?:st|nd|rd|th)(?![A-Za-z])")
_WITHOUT_CONTENT = frozenset(
    {"color", "textcolor", "phantom", "hphantom", "vphantom", "label", "hspace", "vspace", "cline"}
)
_NOON = re.compile(r"([AaPp])\.? ?[Mm]\b\.?")


class Lexer(FontLexer):
    """The whole lexer; `fonts` has the arguments of font commands."""

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
        elif name == "Omega" and self.follows_number() and ENDS_HERE.match(text, self.index):
            self.add("text", "ohm")  # 4\Omega
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
        if word in UNITS_LIKE_FUNCTIONS and self.unit_here():
            self.add("text", word)
        elif word == "to" and self.tokens and self.tokens[-1].kind == "num":
            self.add("op", ":")
        elif word == "in" and self.follows_value() and ENDS_HERE.match(self.text, self.index):
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


_VARIANTS = {
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "varrho": "rho", "varsigma": "sigma",
    "varkappa": "kappa",
}  # fmt: skip


def tokens_of(text: str) -> list[Token]:
    r"""The tokens of a cleaned answer and `END`. Raises `ParseError` for unreadable or oversized text.

    A letter in its other form is the letter, \varphi is \phi, unless both stand in the text.
    """
    tokens = Lexer(text).run()
    if "var" not in text:
        return tokens
    names = {token.value for token in tokens if token.kind == "sym"}
    return [
        replace(token, value=_VARIANTS[token.value])
        if token.kind == "sym" and token.value in _VARIANTS and _VARIANTS[token.value] not in names
        else token
        for token in tokens
    ]
