import re
from collections import Counter
from typing import ClassVar

from verifiers import AnswerType, ParseError

PART = re.compile(r"([A-Z][a-z]?)([1-9]\d{0,3})?|(\()|\)([1-9]\d{0,3})?")


class ChemicalFormula(AnswerType):
    """A chemical formula, equal to another one of the same atoms: Ca(OH)2 is CaO2H2."""

    name: ClassVar[str] = "chemical_formula"

    def parse(self, text: str) -> Counter[str]:
        formula = re.sub(r"\\(?:mathrm|text|ce)(?![a-z])|[\s{}_$]", "", text[:500])
        if not formula or len(formula) > 100 or PART.sub("", formula):
            raise ParseError(f"expected a chemical formula, got {text[:40]!r}")
        open_groups: list[Counter[str]] = [Counter()]
        for element, count, opening, times in PART.findall(formula):
            if element:
                open_groups[-1][element] += int(count or 1)
            elif opening:
                open_groups.append(Counter())
            elif len(open_groups) == 1:
                raise ParseError("a bracket is closed that was never opened")
            else:
                group = open_groups.pop()
                open_groups[-1].update({atom: n * int(times or 1) for atom, n in group.items()})
        if len(open_groups) > 1:
            raise ParseError("a bracket is never closed")
        return open_groups[0]

    def equal(self, reference: Counter[str], given: Counter[str]) -> bool:
        return reference == given
