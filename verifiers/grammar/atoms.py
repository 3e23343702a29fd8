"""The parts of an expression that stand alone: numbers, symbols, functions, brackets, fractions, matrices."""

from __future__ import annotations

from fractions import Fraction

from verifiers.base import ParseError
from verifiers.grammar.commands import MONEY, CommandParser, literal
from verifiers.grammar.lexer import END, Token
from verifiers.grammar.nodes import (
    Builder,
    Group,
    Matrix,
    Node,
    Num,
    Op,
    Quantity,
    Sym,
)
from verifiers.grammar.normal_words import normal_words
from verifiers.grammar.vocabulary import words

_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "langle": ("rangle",)}
_STARTS = frozenset({"(", "[", "\\{", "{"})
_CMD_STARTS = words(
    "frac dfrac tfrac cfrac sfrac nicefrac sqrt binom dbinom tbinom lfloor lceil langle sum prod int iint "
    "oint lim boxed fbox cancel underline phantom tag lvert"
)
_BASE_NAMES = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "twelve": 12, "sixteen": 16,
}  # fmt: skip
_ORDINALS = tuple(Op("mul", (Sym(end[0]), Sym(end[1]))) for end in ("st", "nd", "rd", "th"))
MAX_BASE = 36
_COUNTS = frozenset("CAP")


class AtomParser(CommandParser):
    """The atoms of the grammar; the operators are in `parser.Parser`."""

    def starts_factor(self, previous: Node) -> bool:
        """Whether the next token continues a product without an operator."""
        kind, value = self.token.kind, self.token.value
        if kind in ("num", "fn"):
            return True
        if kind == "sym":
            return not (value == "U" and isinstance(previous, Group))
        if kind == "op":
            if value == "|":
                return not self.abs_depth and not self.set_depth
            return value in _STARTS and not isinstance(previous, Group)
        return kind == "cmd" and (value in _CMD_STARTS or value.startswith("begin:"))

    def power(self) -> Node:
        """An atom with its postfixes: factorials, powers, primes, percent and degree signs."""
        self.enter()
        node = self.atom()
        while True:
            if self.accept("!"):
                node = Op("fact2" if self.accept("!") else "fact", (node,))
            elif self.token.value == "^" and self.token.kind == "op":
                self.advance()
                node = self.raised(node)
            elif self.accept("degree"):
                node = self.degrees(node)
            elif self.accept("%"):
                node = Quantity(node, "%")
            elif self.token.value == "'" and isinstance(node, Sym):
                self.advance()
                node = Sym(node.name + "'")
            else:
                break
        self.depth -= 1
        return node

    def raised(self, base: Node) -> Node:
        if self.token.value in ("circ", "degree") or (
            self.token.value == "{" and self.tokens[self.position + 1].value in ("circ", "degree")
        ):
            braced = self.accept("{")
            self.advance()
            if braced:
                self.expect("}")
            return self.degrees(base)
        if self.token.value == "prime":
            self.advance()
            return Sym(base.name + "'") if isinstance(base, Sym) else base
        exponent = self.script()
        if isinstance(base, Num) and exponent in _ORDINALS:
            return base
        if isinstance(exponent, Sym) and exponent.name in ('"th"', '"st"', '"nd"', '"rd"'):
            return base
        return Op("pow", (base, exponent))

    def degrees(self, node: Node) -> Node:
        """A value in degrees, of angle or of temperature where C or F follows."""
        if (self.token.kind == "sym" and self.token.value in ("C", "F")) or self.token.value.strip() in (
            "C",
            "F",
        ):
            return Quantity(node, f"degree{self.advance().value.strip()}")
        return Quantity(node, "degree")

    def script(self, raised: bool = True) -> Node:
        """What ^ or _ applies to: a brace group, or one signed atom (`raised` in 2^3^2, not in x_1^2)."""
        if self.token.value == "{" and self.token.kind == "op":
            return self.braces()
        negative = False
        while self.token.value in ("-", "+") and self.token.kind == "op":
            negative ^= self.advance().value == "-"
        self.enter()
        node = self.atom()
        if raised and self.token.value == "^" and self.token.kind == "op":
            self.advance()
            node = self.raised(node)
        self.depth -= 1
        return Op("neg", (node,)) if negative else node

    def argument(self) -> Node:
        """The argument of a TeX command: a brace group, or one digit or symbol."""
        if self.token.kind == "num":
            token = self.advance()
            if len(token.value) > 1 and token.value.isdigit():
                self.position -= 1
                self.tokens[self.position] = Token("num", token.value[1:])
            return literal(token.value[0] if token.value.isdigit() else token.value)
        if self.token.value == "{" and self.token.kind == "op":
            return self.braces()
        return self.atom()

    def braces(self) -> Node:
        """`{...}` of TeX, which groups and is not seen; `{a \\over b}` and `{n \\choose k}` too."""
        self.expect("{")
        self.enter()
        saved, self.abs_depth = self.abs_depth, 0
        node = self.listing()
        for name, operator in (("over", "div"), ("choose", "binom")):
            if self.accept(name):
                node = Op(operator, (node, self.listing()))
        self.abs_depth = saved
        self.depth -= 1
        self.expect("}")
        return node

    def atom(self) -> Node:
        token = self.token
        kind, value = token.kind, token.value
        if kind == "num":
            self.advance()
            return self.based(token)
        if kind == "sym":
            self.advance()
            return self.subscripted(value)
        if kind == "fn":
            self.advance()
            return self.function(value)
        if kind in ("text", "word"):
            return self.words()
        if kind == "cmd":
            return self.command(self.advance())
        if kind == "op":
            if value == "{":
                return self.braces()
            if value in ("(", "[", "\\{"):
                return self.brackets(self.advance().value)
            if value == "]":
                self.advance()
                return self.brackets("(", (("[", ")"), ("]", "]")))
            if value == "|":
                return self.absolute()
            if value in MONEY:
                return self.command(self.advance())
        raise ParseError("the answer breaks off" if token is END else f"cannot read {value!r} here")

    def words(self) -> Node:
        """Consecutive words are one name in quotation marks: never a product of letters."""
        words: list[str] = []
        while self.token.kind in ("text", "word"):
            words.append(self.advance().value)
        return Sym('"' + normal_words(" ".join(words)) + '"')

    def based(self, token: Token) -> Node:
        """A numeral, in the base of its subscript if it has one."""
        if self.token.value != "_" or self.token.kind != "op":
            return literal(token.value)
        self.advance()
        script = self.script()
        base = script.value if isinstance(script, Num) else None
        if isinstance(script, Sym):
            base = Fraction(_BASE_NAMES.get(script.name.strip('"').removeprefix("base "), 0))
        if base is None or base.denominator != 1 or not 2 <= base <= MAX_BASE or not token.value.isdigit():
            raise ParseError("a subscript on a number that is not a base from 2 to 36")
        try:
            return Num(Fraction(int(token.value, int(base))))
        except ValueError:
            raise ParseError(f"{token.value} is no numeral of base {base}") from None

    def subscripted(self, name: str) -> Node:
        if self.token.value == "_" and self.token.kind == "op":
            self.advance()
            start = self.position
            if self.token.kind == "fn":
                self.advance()
            elif self.token.value == "{" and self.tokens[self.position + 1].kind in ("fn", "text", "word"):
                while self.token.value != "}" and self.token is not END:
                    self.advance()
                self.expect("}")
            else:
                self.script(raised=False)
            script = "".join(part.value for part in self.tokens[start : self.position]).strip("{}")
            if name in _COUNTS and script.isdigit() and self.token.value == "^":
                return self.count_of_choices(name, script)
            name = f"{name}_{script}"
        return Sym(name)

    def count_of_choices(self, name: str, script: str) -> Node:
        """C_5^2 chooses, A_5^2 arranges; with letters they are names with an exponent."""
        start = self.position
        self.advance()
        chosen = self.script()
        total = Num(Fraction(int(script)))
        if (
            not isinstance(chosen, Num)
            or not 0 <= chosen.value <= total.value
            or chosen.value.denominator != 1
        ):
            self.position = start
            return Sym(f"{name}_{script}")
        ways = Op("binom", (total, chosen))
        return ways if name == "C" else Op("mul", (ways, Op("fact", (chosen,))))

    def brackets(self, opening: str, closers: tuple[tuple[str, str], ...] = ()) -> Node:
        """A bracketed expression, tuple, interval, list or set; set-builder notation in braces."""
        self.enter()
        saved, self.abs_depth, self.set_depth = (self.abs_depth, self.set_depth), 0, int(opening == "\\{")
        endings = dict(closers) or {close: close for close in _CLOSING[opening]}
        if opening == "\\{" and self.accept("\\}"):
            node: Node = Sym("emptyset")
        else:
            node = self.bracket_content(opening, endings)
        self.abs_depth, self.set_depth = saved
        self.depth -= 1
        return node

    def bracket_content(self, opening: str, endings: dict[str, str]) -> Node:
        content = self.listing("list")
        items = content.items if isinstance(content, Group) else (content,)
        if opening == "\\{" and self.token.value in ("|", ":") and len(items) == 1:
            self.advance()
            self.set_depth = 0
            conditions = self.listing()
            self.expect("\\}")
            listed = isinstance(conditions, Group) and conditions.brackets in ("", "and")
            return Builder(items[0], conditions.items if listed else (conditions,))  # type: ignore[union-attr]
        if opening == "\\{" and len(items) == 1 and isinstance(items[0], Group | Matrix):
            # \left\{ \begin{array}... \right. is a system of equations: its brace is never closed.
            self.accept("\\}")
            if isinstance(items[0], Matrix):
                return Group("", tuple(cell for row in items[0].rows for cell in row))
            return items[0] if items[0].brackets == "" else Group("\\{\\}", items)
        closing = self.advance()
        if closing.value not in endings or closing.kind not in ("op", "cmd"):
            raise ParseError(f"{opening} is never closed")
        brackets = opening + endings[closing.value]
        if len(items) == 1 and brackets in ("()", "[]"):
            return items[0]
        if brackets in ("(]", "[)") and len(items) != 2:
            raise ParseError("an interval needs two ends")
        return Group(brackets, items)

    def absolute(self) -> Node:
        self.expect("|")
        self.accept("|")
        self.enter()
        saved, self.abs_depth = self.abs_depth, 1
        inner = self.additive()
        self.abs_depth = saved
        self.depth -= 1
        self.expect("|")
        self.accept("|")
        return Op("abs", (inner,))
