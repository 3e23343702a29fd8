"""Functions and TeX commands: logarithms, fractions, roots, sums, money, environments."""

from __future__ import annotations

from fractions import Fraction

from verifiers import policy
from verifiers.base import ParseError
from verifiers.grammar.cursor import Cursor
from verifiers.grammar.nodes import Big, Group, Node, Num, Op, Quantity, Sym
from verifiers.grammar.tables import environment
from verifiers.grammar.tokens import END, Token

_BIG = frozenset({"sum", "prod", "int", "iint", "oint", "lim"})
_DELIMITED = {"lfloor": ("rfloor", "floor"), "lceil": ("rceil", "ceil"), "lvert": ("rvert", "abs")}
MONEY = {
    "$": "dollar",
    "dollar": "dollar",
    "euro": "euro",
    "pounds": "pound_sterling",
    "yen": "yen_sign",
    "rupee": "rupee",
}


def literal(text: str) -> Num:
    """A number token: "12", "3.50", "1.5e-3", or whole|decimals|repeating digits."""
    if "|" in text:
        whole, head, cycle = text.split("|")
        value = Fraction(int(whole + head), 10 ** len(head))
        return Num(value + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(head)))
    mantissa, _, exponent = text.replace("E", "e").partition("e")
    whole, _, decimals = mantissa.partition(".")
    value = Fraction(int((whole + decimals) or "0"), 10 ** len(decimals))
    if exponent:
        if abs(int(exponent)) > 1000:
            raise ParseError(f"a power of ten as large as {exponent}")
        value *= Fraction(10) ** int(exponent)
        places = len(decimals) - int(exponent)
        return Num(value, places if decimals and places > 0 else None)
    return Num(value, policy.stated_decimals(decimals))


def _is_d(node: Node) -> bool:
    """The d, or d^2, of a derivative."""
    base = node.args[0] if isinstance(node, Op) and node.name == "pow" else node
    return base in (Sym("d"), Sym("partial"))


class CommandParser(Cursor):
    """What starts with a function's name or a backslash."""

    def function(self, name: str) -> Node:
        r"""`\sin^2 x`, `\log_2 8`, `\sin(x)`, `\sin 2x`, `\sqrt 2`, `max(1, 2)`."""
        base = exponent = None
        while self.token.value in ("^", "_") and self.token.kind == "op":
            if self.advance().value == "^":
                exponent = self.script()
            else:
                self.split_base()
                base = self.script()
        self.enter()
        arguments = self.arguments()
        self.depth -= 1
        if (
            isinstance(exponent, Num)
            and exponent.value == -1
            and name in ("sin", "cos", "tan", "cot", "sec", "csc")
        ):
            name, exponent = f"arc{name}", None
        node: Node
        if name in ("sqrt", "cbrt"):
            node = Op("root", (arguments[0], Num(Fraction(2 if name == "sqrt" else 3))))
        elif name in ("factorial", "binomial"):
            node = Op({"factorial": "fact", "binomial": "binom"}[name], tuple(arguments))
        elif name == "lg":
            node = Op("log", (arguments[0], Num(Fraction(10))))
        elif base is not None:
            node = Op("log" if name in ("log", "ln") else name, (*arguments, base))
        elif name == "exp":
            node = Op("pow", (Sym("e"), arguments[0]))
        else:
            node = Op(name, tuple(arguments))
        return Op("pow", (node, exponent)) if exponent is not None else node

    def split_base(self) -> None:
        r"""`\log_28` is the logarithm of 8 to the base 2 where nothing else follows."""
        digits, following = self.token, self.tokens[self.position + 1]
        if digits.kind == "num" and digits.value.isdigit() and len(digits.value) > 1 and following is END:
            self.tokens[self.position : self.position + 1] = [
                Token("num", digits.value[0]),
                Token("num", digits.value[1:]),
            ]

    def arguments(self) -> list[Node]:
        if self.token.kind == "op" and self.token.value in ("(", "[", "\\{"):
            inner = self.brackets(self.advance().value)
            return list(inner.items) if isinstance(inner, Group) else [inner]
        if self.token.value == "{" and self.token.kind == "op":
            inner = self.braces()
            return list(inner.items) if isinstance(inner, Group) else [inner]
        negative = self.accept("-")
        factors = [self.power()]
        while self.token.kind != "fn" and self.token.value != "(" and self.starts_factor(factors[-1]):
            factors.append(self.power())
        node = factors[0] if len(factors) == 1 else Op("mul", tuple(factors))
        return [Op("neg", (node,)) if negative else node]

    def command(self, token: Token) -> Node:
        name = token.value
        if name in ("frac", "dfrac", "tfrac", "cfrac", "sfrac", "nicefrac"):
            return self.fraction()
        if name in ("binom", "dbinom", "tbinom"):
            return Op("binom", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in _DELIMITED:
            closing, operator = _DELIMITED[name]
            self.enter()
            inner = self.additive()
            self.expect(closing)
            self.depth -= 1
            return Op(operator, (inner,))
        if name == "langle":
            return self.brackets("langle")
        if name in MONEY:
            negative = self.accept("-")
            value = self.power()
            return Quantity(Op("neg", (value,)) if negative else value, MONEY[name])
        if name in _BIG:
            return self.big(name)
        if name.startswith("begin:"):
            return environment(self, name.removeprefix("begin:"))
        if name in ("boxed", "fbox", "underline"):
            return self.argument()
        raise ParseError(f"cannot read \\{name} here")

    def fraction(self) -> Node:
        r"""A quotient; `\frac{d}{dx} f` is an unevaluated derivative, `\frac{dy}{dx}` a name."""
        top, bottom = self.argument(), self.argument()
        differentials = [
            isinstance(part, Op)
            and part.name == "mul"
            and _is_d(part.args[0])
            and isinstance(part.args[-1], Sym)
            for part in (top, bottom)
        ]
        if differentials[1] and _is_d(top):
            return Big("derivative", (bottom, self.term()))
        if all(differentials):
            names = ["".join(getattr(arg, "name", "^") for arg in part.args) for part in (top, bottom)]  # type: ignore[union-attr]
            return Sym("/".join(names))
        return Op("div", (top, bottom))

    def root(self) -> Node:
        index: Node = Num(Fraction(2))
        if self.token.value == "[" and self.token.kind == "op":
            self.advance()
            index = self.additive()
            self.expect("]")
        if self.token.kind == "num":
            inner: Node = literal(self.advance().value)
        else:
            self.enter()
            inner = self.argument()
            self.depth -= 1
        return Op("root", (inner, index))

    def big(self, name: str) -> Node:
        """A sum, product, integral or limit with its bounds and the product that follows."""
        parts: list[Node] = []
        while self.token.value in ("_", "^") and self.token.kind == "op":
            mark = self.advance().value
            parts.append(Op(mark, (self.script(raised=mark == "^"),)))
        self.enter()
        parts.append(self.term())
        self.depth -= 1
        return Big(name, tuple(parts))
