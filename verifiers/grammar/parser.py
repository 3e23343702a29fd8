"""Tokens to a tree, by precedence: list < relation < set operation < sum < product < power < atom."""

from __future__ import annotations

from verifiers.base import ParseError
from verifiers.grammar.clean import clean
from verifiers.grammar.lexer import tokens_of
from verifiers.grammar.measured import MeasuredParser
from verifiers.grammar.nodes import (
    MAX_ITEMS,
    MAX_TREE_DEPTH,
    Group,
    Node,
    Num,
    Op,
    Quantity,
    Rel,
    SetOp,
    Sym,
    is_deeper,
)
from verifiers.grammar.rows import rows_of
from verifiers.grammar.tokens import Token
from verifiers.grammar.units import add_quantities, normal_unit

_RELATIONS = frozenset(
    {"=", "!=", "<", "<=", ">", ">=", "approx", "in", "notin", "equiv", "to", "subset", "notdivides"}
)
_INEQUALITIES = frozenset({"<", "<=", ">", ">=", "!="})
_NEGATED = {"=": "!=", "in": "notin", "divides": "notdivides"}
_SET_OPERATIONS = {"cup": "union", "cap": "intersection", "setminus": "difference"}
_SEPARATORS = frozenset({",", ";", "and", "or", "\\\\"})
_SIGNS = frozenset({"+", "-", "pm", "mp"})


def _negative(term: Node) -> Node:
    if isinstance(term, Num):
        return Num(-term.value, term.decimals)
    if isinstance(term, Quantity):
        return Quantity(_negative(term.value), term.unit)
    return Op("neg", (term,))


def _unit_fraction(node: Node) -> str:
    r"""The m/s^2 of \frac{\text{m}}{\text{s}^2}; "" for anything else."""
    if not isinstance(node, Op) or node.name != "div":
        return ""
    words = [_unit_words(arg) for arg in node.args]
    return normal_unit("/".join(words)) if all(words) else ""


def _unit_words(node: Node) -> str:
    """Words, or words to a power, as the text of a unit; "" for anything else."""
    if isinstance(node, Sym):
        return node.name.strip('"') if node.name.startswith('"') else ""
    if isinstance(node, Op) and node.name == "pow" and isinstance(node.args[1], Num):
        words = _unit_words(node.args[0])
        return f"{words}^{node.args[1].value}" if words else ""
    return ""


def _is_power_of_number(node: Node) -> bool:
    return isinstance(node, Op) and node.name == "pow" and isinstance(node.args[0], Num)


def _set_operation(name: str, left: Node, right: Node) -> SetOp:
    if isinstance(left, SetOp) and left.name == name != "difference":
        return SetOp(name, (*left.args, right))
    return SetOp(name, (left, right))


class Parser(MeasuredParser):
    """Recursive descent over a bounded token list; depth is checked at every bracket."""

    def answer(self) -> Node:
        """The whole text as one answer. Raises `ParseError` when something is left over."""
        # "= 42" and "\\approx 42" break off a chain at its start.
        if self.token.kind == "op" and self.token.value in ("=", "approx"):
            self.advance()
        node = self.listing()
        if self.token.kind != "end":
            raise ParseError(f"cannot read {self.token.value!r} here")
        return node

    def listing(self, brackets: str = "") -> Node:
        """Statements separated by commas, semicolons, "and", "or" or line breaks; one alone is itself."""
        items: list[Node] = []
        separators: list[str] = []  # the one after each item but the last
        while True:
            items.append(self.statement())
            if len(items) > MAX_ITEMS:
                raise ParseError(f"more than {MAX_ITEMS} items in a list")
            seen = ""
            while self.token.value in _SEPARATORS and self.token.kind in ("op", "text"):
                separator = self.advance().value
                # In ", and" the word counts.
                if seen in ("", ","):
                    seen = separator
            if not seen or self.token.kind == "end" or self.token.value in (")", "]", "\\}", "}", "rangle"):
                break
            separators.append(seen)
        if not brackets:
            if len(items) == 1:
                return items[0]
            rows = rows_of(items, separators)
            if len(rows) > 1:
                return Group("", tuple(row[0] if len(row) == 1 else Group("", tuple(row)) for row in rows))
        kinds = set(separators)
        kind = kinds.pop() if len(kinds) == 1 else ""
        return Group(brackets or (kind if kind in ("and", "or") else ""), tuple(items))

    def statement(self) -> Node:
        """An expression, a chain of relations, or a union of such chains: 0 < x < 1 \\cup x > 2."""
        node = self.chain()
        while (
            isinstance(node, Rel | SetOp) and self.token.value in _SET_OPERATIONS and self.token.kind == "op"
        ):
            name = _SET_OPERATIONS[self.advance().value]
            node = _set_operation(name, node, self.chain())
        return node

    def chain(self) -> Node:
        sides = [self.quantity()]
        operators: list[str] = []
        while True:
            negated = self.accept("not")
            operator = self.relation()
            if not operator:
                break
            operators.append(_NEGATED.get(operator, operator) if negated else operator)
            # A line break of an aligned derivation, or a relation repeated over it.
            while self.token.kind == "op" and self.token.value in _RELATIONS:
                operators[-1] = self.advance().value
            # The sides of an inequality are values: a union sign after them joins inequalities.
            sides.append(self.quantity(sets=operators[-1] not in _INEQUALITIES))
        return Rel(tuple(sides), tuple(operators)) if operators else sides[0]

    def relation(self) -> str:
        """The relation sign here, "" where there is none; a bar without a partner says "divides"."""
        if self.token.kind != "op":
            return ""
        if self.token.value in ("|", "mid") and not self.set_depth and not self.abs_depth:
            self.advance()
            return "divides"
        return self.advance().value if self.token.value in _RELATIONS else ""

    def quantity(self, *, sets: bool = True) -> Node:
        """A set, sum or ratio with the unit that follows it."""
        node = self.set_expression() if sets else self.additive()
        if self.token.value == ":" and not self.set_depth:
            node = self.ratio(node)
        node = self.unit_suffix(node)
        while isinstance(node, Quantity) and self.token.kind == "num":
            # 5 ft 6 in is one length.
            total = add_quantities((node, self.unit_suffix(self.set_expression())))
            if total is None:
                raise ParseError("two quantities side by side")
            node = total
        if self.token.value == "pmod":
            self.advance()
            node = Op("pmod", (node, self.argument()))
        return node

    def set_expression(self) -> Node:
        node = self.additive()
        while True:
            if self.token.value in _SET_OPERATIONS and self.token.kind == "op":
                name = _SET_OPERATIONS[self.advance().value]
            elif self.token.value == "U" and isinstance(node, Group | SetOp):
                self.advance()
                name = "union"
            else:
                return node
            node = _set_operation(name, node, self.additive())

    def additive(self) -> Node:
        """Signed terms; a ± keeps its place so that both readings can be made later."""
        terms: list[Node] = []
        while True:
            negative = False
            choice = ""
            while self.token.kind == "op" and self.token.value in _SIGNS:
                sign = self.advance().value
                negative ^= sign == "-"
                choice = choice or (sign if sign in ("pm", "mp") else "")
            term = self.term()
            if negative:
                term = _negative(term)
            terms.append(Op(choice, (term,)) if choice else term)
            if self.token.kind != "op" or self.token.value not in _SIGNS:
                break
        return terms[0] if len(terms) == 1 else Op("add", tuple(terms))

    def term(self) -> Node:
        """Factors by *, / and juxtaposition, all of one precedence, from left to right."""
        factors = [self.power()]
        while True:
            token = self.token
            if token.kind == "op" and token.value == "*":
                self.advance()
                factors.append(self.signed_power())
            elif token.kind == "op" and token.value == "/":
                if isinstance(factors[-1], Quantity) and self.tokens[self.position + 1].kind in (
                    "text",
                    "word",
                ):
                    return self.product(factors)  # $6/hour: the word is part of the unit
                self.advance()
                divisor = self.signed_power()
                factors = [Op("div", (self.product(factors), divisor))]
            elif token.value == "mod" or token.value == "bmod":
                self.advance()
                factors = [Op("mod", (self.product(factors), self.power()))]
            elif self.starts_factor(factors[-1]):
                self.juxtapose(factors)
            else:
                return self.product(factors)

    def signed_power(self) -> Node:
        negative = False
        while self.token.value in ("-", "+") and self.token.kind == "op":
            negative ^= self.advance().value == "-"
        node = self.power()
        if not negative:
            return node
        return Num(-node.value, node.decimals) if isinstance(node, Num) else Op("neg", (node,))

    def juxtapose(self, factors: list[Node]) -> None:
        """2x is a product, 2 1/3 and 2\\frac13 are mixed numbers, n 2^n is a product, 2 3 is nothing."""
        left = factors[-1]
        before, here = self.tokens[self.position - 1], self.token
        literal = isinstance(left, Num) and before.kind == "num"
        whole = isinstance(left, Num) and literal and left.decimals is None and left.value.denominator == 1
        right = self.power()
        if here.kind == "num":
            if not literal and self.number_follows(left, right, before, here):
                factors.append(right)
                return
            power = right.value if isinstance(right, Quantity) else right  # 1.25 10^{-3}%
            if literal and here.spaced and len(here.value) < 3 and _is_power_of_number(power):
                factors.append(right)  # 3.2 10^5 and 5 2^n; 1 000^2 lost a comma
                return
            if not (whole and isinstance(right, Num) and self.token.value == "/" and self.token.kind == "op"):
                raise ParseError("two numbers side by side")
            self.advance()
            right = Op("div", (right, self.power()))
        # In 33\frac13\% and 22\frac12^\circ the sign belongs to the whole mixed number.
        part = right.value if isinstance(right, Quantity) else right
        if whole and len(factors) == 1 and isinstance(part, Op) and part.name == "div":
            top, bottom = part.args
            if isinstance(top, Num) and isinstance(bottom, Num) and 0 < top.value < bottom.value:
                mixed = Op("add", (left, part))
                factors[-1] = Quantity(mixed, right.unit) if isinstance(right, Quantity) else mixed
                return
        if here.kind == "num":
            raise ParseError("two numbers side by side")
        unit = _unit_fraction(right)
        if unit:
            factors[:] = [Quantity(self.product(factors), unit)]
        else:
            factors.append(right)

    @staticmethod
    def number_follows(left: Node, right: Node, before: Token, here: Token) -> bool:
        """Whether a number after something that is none is a factor: n 2^{n-1}, 2!2!, 2^3 3^2."""
        if left == Sym("i") or (isinstance(left, Op) and left.name in ("fact", "fact2")):
            return True  # 2!2! and e^{i2\pi/3}
        if isinstance(left, Op) and left.name == "pow" and (before.value == "}" or here.spaced):
            return True  # 2^{3}3^{2} and 2^3 3^2
        # A power of a number is no digit that was lost: x 2 may be one, x 2^n is none.
        return _is_power_of_number(right) and not (isinstance(left, Op) and left.name == "pow")

    @staticmethod
    def product(factors: list[Node]) -> Node:
        return factors[0] if len(factors) == 1 else Op("mul", tuple(factors))


def parse(text: str) -> Node:
    """Read an answer into a tree. Raises `ParseError`, one sentence, if it is unreadable."""
    node = Parser(tokens_of(clean(text))).answer()
    if is_deeper(node, MAX_TREE_DEPTH):
        raise ParseError(f"more than {MAX_TREE_DEPTH} operations one inside the other")
    return node


__all__ = ["Parser", "Sym", "parse"]
