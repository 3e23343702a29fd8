import re
from collections import Counter
from typing import ClassVar

from verifiers import AnswerType, ParseError

ATOM = re.compile(r"([A-Z][a-z]?)(\d{0,3})")
GROUP = re.compile(r"\(((?:[A-Z][a-z]?\d{0,3})+)\)(\d{0,3})")


class ChemicalFormula(AnswerType):
    """A chemical formula, equal to another one of the same atoms: Ca(OH)2 is CaO2H2."""

    name: ClassVar[str] = "chemical_formula"

    def parse(self, text: str) -> Counter[str]:
        formula = re.sub(r"\\(?:mathrm|text|ce)(?![a-z])|[\s{}_$]", "", text)
        while len(formula) <= 300 and (group := GROUP.search(formula)):
            formula = formula.replace(group[0], group[1] * int(group[2] or 1), 1)
        if not 0 < len(formula) <= 300 or ATOM.sub("", formula):
            raise ParseError(f"expected a chemical formula, got {text[:40]!r}")
        atoms: Counter[str] = Counter()
        for element, count in ATOM.findall(formula):
            atoms[element] += int(count or 1)
        return atoms

    def equal(self, reference: Counter[str], given: Counter[str]) -> bool:
        return reference == given
