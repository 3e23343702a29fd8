"""Values with units, and ratios with a time of day behind them."""

from __future__ import annotations

from verifiers.base import ParseError
from verifiers.grammar.atoms import AtomParser
from verifiers.grammar.commands import MONEY
from verifiers.grammar.nodes import Node, Num, Op, Quantity, Ratio, Sym
from verifiers.grammar.units import normal_unit

_TIME_SUFFIX = {"am": "am", "pm": "pm", "a.m.": "am", "p.m.": "pm", "a.m": "am", "p.m": "pm",
                "noon": "pm", "midnight": "am"}  # fmt: skip
_SCALES = {
    "hundred": 100, "thousand": 1000, "lakh": 10**5, "lakhs": 10**5, "million": 10**6, "crore": 10**7,
    "crores": 10**7, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip


def _has_pi(node: object) -> bool:
    return node == Sym("pi") or (isinstance(node, Op) and any(_has_pi(arg) for arg in node.args))


class MeasuredParser(AtomParser):
    """What follows a value: the other parts of a ratio, am or pm, a unit, a currency, a scale word."""

    def ratio(self, first: Node) -> Node:
        parts = [first]
        digits = [self.tokens[self.position - 1].value if isinstance(first, Num) else ""]
        while self.accept(":"):
            token = self.token
            parts.append(self.set_expression())
            # 9:24+1 is no time.
            digits.append(token.value if isinstance(parts[-1], Num) and token.kind == "num" else "")
        suffix = ""
        if self.token.kind in ("text", "word", "sym"):
            words = ""
            start = self.position
            while self.token.kind in ("text", "word", "sym") or self.token.value == ".":
                words += self.advance().value
            suffix = _TIME_SUFFIX.get(words.replace(" ", "").strip(".").lower(), "")
            if not suffix:
                self.position = start
        return Ratio(tuple(parts), tuple(digits), suffix)

    def unit_suffix(self, node: Node) -> Node:
        """Text, a currency sign or a known unit after a value; powers and "per" belong to it."""
        words: list[str] = []
        while True:
            token = self.token
            if token.kind in ("text", "word") and token.value.strip().lower() not in ("and", "or"):
                words.append(self.advance().value.strip())
            elif words and token.value == "^" and self.tokens[self.position + 1].kind != "end":
                self.advance()
                exponent = self.script()
                if not isinstance(exponent, Num):
                    raise ParseError("a unit to a power that is not a number")
                words[-1] += f"^{exponent.value}"
            elif (
                (words or isinstance(node, Quantity))
                and token.value in ("/", "*")
                and self.tokens[self.position + 1].kind in ("text", "word", "sym")
            ):
                self.advance()
                words.append("/" if token.value == "/" else "*")
                words.append(self.advance().value.strip())
            elif token.value in MONEY and token.kind in (
                "op",
                "cmd",
            ):
                self.advance()
                words.append(MONEY[token.value])
            else:
                break
        scale, _, rest = " ".join(words).partition(" ")
        value = node.value if isinstance(node, Quantity) else node
        factor = 1000 if scale == "k" else _SCALES.get(scale.lower())
        if factor is not None and isinstance(value, Num):
            scaled = Num(value.value * factor)
            node = Quantity(scaled, node.unit) if isinstance(node, Quantity) else scaled
            words = [rest] if rest else []
        if not words:
            return node
        unit = normal_unit(" ".join(words))
        if unit == "radian" and _has_pi(node):
            return node  # pi/3 radians
        if isinstance(node, Quantity):
            # "\$5 per hour": the currency is part of the unit. "5\% of x" is not a unit we know.
            return Quantity(node.value, normal_unit(f"{node.unit} {' '.join(words)}"))
        return Quantity(node, unit) if unit else node
