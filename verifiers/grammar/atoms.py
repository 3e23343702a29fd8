"""The parts of an expression that stand alone: numbers, symbols, functions, brackets, fractions, matrices."""

from __future__ import annotations

from fractions import Fraction

from verifiers.base import ParseError
from verifiers.grammar.applied import AppliedParser
from verifiers.grammar.commands import MONEY, literal
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
from verifiers.grammar.tokens import END, Token
from verifiers.grammar.vocabulary import words

_CLOSING = {"(": (")", "]"), "[": ("]", ")"), "\\{": ("\\}",), "langle": ("rangle",)}
_ENDS_STATEMENT = frozenset({"=", "<", ">", "<=", ">=", "!=", ",", ";", "and", "or", "in"})
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


def _indexed_late(node: Node) -> bool:
    """Whether a subscript may still follow: after a prime, or after the exponent of a letter."""
    if isinstance(node, Op) and node.name == "pow":
        return isinstance(node.args[0], Sym) and "_" not in node.args[0].name
    return isinstance(node, Sym) and node.name.endswith("'") and "_" not in node.name


def _count_of_choices(name: str, chosen: Node) -> Node | None:
    letter, _, script = name.partition("_")
    if not script.isdigit() or not isinstance(chosen, Num):
        return None
    total = Num(Fraction(int(script)))
    if not 0 <= chosen.value <= total.value or chosen.value.denominator != 1:
        return None
    ways = Op("binom", (total, chosen))
    return ways if letter == "C" else Op("mul", (ways, Op("fact", (chosen,))))


class AtomParser(AppliedParser):
    """The atoms of the grammar; the operators are in `parser.Parser`."""

    def starts_factor(self, previous: Node) -> bool:
        """Whether the next token continues a product without an operator."""
        kind, value = self.token.kind, self.token.value
        if kind == "num":
            return not isinstance(previous, Quantity)  # 20^\circ 30' and 5 ft 6 in are sums
        if kind == "fn":
            return True
        if kind == "sym":
            return not (value == "U" and isinstance(previous, Group))
        if kind == "op":
            if value in ("|", "mid"):
                return not self.abs_depth and not self.set_depth and self.closes_absolute()
            return value in _STARTS and not isinstance(previous, Group)
        return kind == "cmd" and (value in _CMD_STARTS or value.startswith("begin:"))

    def power(self) -> Node:
        """An atom with its postfixes: factorials, powers, primes, percent and degree signs, an argument."""
        self.enter()
        node = self.applied(self.atom())
        while True:
            if self.accept("!"):
                node = Op("fact2" if self.accept("!") else "fact", (node,))
            elif self.token.value == "^" and self.token.kind == "op":
                self.advance()
                node = self.applied(self.raised(node))
            elif self.accept("degree"):
                node = self.degrees(node)
            elif self.accept("%"):
                node = Quantity(node, "%")
            elif self.token.value == "'" and isinstance(node, Sym):
                self.advance()
                node = self.applied(Sym(node.name + "'"))
            elif self.token.value in ("'", '"') and isinstance(node, Num):
                node = Quantity(node, self.angle_mark())
            elif self.token.value == "_" and self.token.kind == "op" and _indexed_late(node):
                node = self.applied(self.late_index(node))
            else:
                break
        self.depth -= 1
        return node

    def angle_mark(self) -> str:
        """The unit of 30' and 15'': minutes and seconds of arc."""
        if self.accept('"'):
            return "arcsecond"
        self.expect("'")
        return "arcsecond" if self.accept("'") else "arcminute"

    def late_index(self, node: Node) -> Node:
        """D'_1 is D_1', and u^2_0 is u_0^2."""
        if isinstance(node, Op):
            base, exponent = node.args
            assert isinstance(base, Sym)
            indexed = self.subscripted(base.name)
            if base.name in _COUNTS and isinstance(indexed, Sym) and isinstance(exponent, Num):
                return _count_of_choices(indexed.name, exponent) or Op("pow", (indexed, exponent))
            return Op("pow", (indexed, exponent))
        assert isinstance(node, Sym)
        name = node.name.rstrip("'")
        indexed = self.subscripted(name)
        return Sym(indexed.name + "'" * (len(node.name) - len(name))) if isinstance(indexed, Sym) else indexed

    def raised(self, base: Node) -> Node:
        if self.token.value in ("circ", "degree") or (
            self.token.value == "{" and self.tokens[self.position + 1].value in ("circ", "degree")
        ):
            braced = self.accept("{")
            self.advance()
            if braced:
                self.expect("}")
            return self.degrees(base)
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
        # In u^2_0 the subscript is the letter's.
        node = literal(self.advance().value) if self.token.kind == "num" else self.atom()
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
            if value in ("|", "mid"):
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
            name = f"{name}_{script}"
            if name[0] in _COUNTS and script.isdigit() and self.token.value == "^":
                return self.count_of_choices(name)
        return Sym(name)

    def count_of_choices(self, name: str) -> Node:
        """C_5^2 chooses, A_5^2 arranges; with letters they are names with an exponent."""
        start = self.position
        self.advance()
        ways = _count_of_choices(name, self.script())
        if ways is None:
            self.position = start
        return ways or Sym(name)

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
        if opening == "\\{" and self.token.value in ("|", "mid", ":") and len(items) == 1:
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

    def closes_absolute(self) -> bool:
        """Whether the bar here has its partner before the statement ends; else it says "divides"."""
        depth = 0
        for token in self.tokens[self.position + 1 :]:
            if token.kind not in ("op", "cmd"):
                continue
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(token.value, 0)
            if depth < 0 or (depth == 0 and token.value in _ENDS_STATEMENT):
                return False
            if depth == 0 and token.value in ("|", "mid"):
                return True
        return False

    def absolute(self) -> Node:
        self.bar()
        self.enter()
        saved, self.abs_depth = self.abs_depth, 1
        inner = self.additive()
        self.abs_depth = saved
        self.depth -= 1
        self.bar()
        return Op("abs", (inner,))

    def bar(self) -> None:
        if not self.accept("mid"):
            self.expect("|")
