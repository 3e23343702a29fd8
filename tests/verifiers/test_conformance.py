"""Adding an answer type: the worked example runs, and the conformance kit finds what is wrong with others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from verifiers.pool.pool import VerifierPool
from verifiers.tools.conformance import check, read_examples, render

HERE = Path(__file__).parent
EXAMPLE = HERE / "example"
ROOT = HERE.parent.parent


def verifiers(*arguments: str, cwd: Path, path: Path | None = None, stdin: str = "") -> tuple[int, str, str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(path or ""), str(ROOT)]))}
    command = [sys.executable, "-m", "verifiers", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_the_worked_example_passes_the_kit() -> None:
    code, out, err = verifiers(
        "check",
        "chemical_formula:ChemicalFormula",
        "chemical_formula_examples.jsonl",
        "--jobs",
        "1",
        cwd=EXAMPLE,
    )
    assert (code, err) == (0, "")
    assert "examples 13," in out
    assert out.splitlines()[-1] == "passed"


def test_the_worked_example_judges_completions() -> None:
    lines = [("H2O", "\\boxed{HOH}"), ("H2O", "The answer is $\\mathrm{H_2O_2}$."), ("???", "\\boxed{HOH}")]
    stdin = "".join(
        json.dumps({"id": i, "answer": a, "completion": c}) + "\n" for i, (a, c) in enumerate(lines)
    )
    _, out, _ = verifiers(
        "judge", "--type", "chemical_formula:ChemicalFormula", "--jobs", "1", cwd=EXAMPLE, stdin=stdin
    )
    outcomes = [json.loads(line)["outcome"] for line in out.splitlines()]
    assert outcomes == ["correct", "wrong", "bad_reference"]


def test_readme_shows_the_worked_example_as_it_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    shown = [block for block in blocks if "class ChemicalFormula" in block]
    if not shown:
        pytest.skip("README shows no ChemicalFormula")
    assert shown == [(EXAMPLE / "chemical_formula.py").read_text(encoding="utf-8")]


def test_a_new_type_passes_its_own_kit_and_nothing_is_overwritten(tmp_path: Path) -> None:
    code, out, _ = verifiers("new", "knot_name", cwd=tmp_path)
    assert code == 0
    command = out.splitlines()[-1].split()
    assert command[:3] == ["python", "-m", "verifiers"]
    code, out, _ = verifiers(*command[3:], "--jobs", "1", cwd=tmp_path)
    assert (code, out.splitlines()[-1]) == (0, "passed")
    code, _, err = verifiers("new", "knot_name", cwd=tmp_path)
    assert code == 2
    assert "exists already" in err


BROKEN = """
import time
from verifiers import AnswerType, ParseError

class Careless(AnswerType):
    name = "careless"
    def parse(self, text):
        if not text.isascii() or not text.isprintable() or not 0 < len(text) < 50:
            raise ParseError("no")
        return text
    def equal(self, reference, given):
        return reference == given

class FirstLetter(Careless):
    def equal(self, reference, given):
        return reference[0] == given[0]

class NeverEqual(Careless):
    def equal(self, reference, given):
        return False

class Shorter(Careless):
    def equal(self, reference, given):
        return given in reference

class Neighbours(Careless):
    def equal(self, reference, given):
        return reference == given or abs(len(reference) - len(given)) == 1

class Unbounded(AnswerType):
    name = "unbounded"
    def parse(self, text):
        return eval(text) if text.isascii() and "import" not in text and "exit" not in text else text
    def equal(self, reference, given):
        return reference == given

class Crashing(Careless):
    def parse(self, text):
        return {"red": 1, "red ": 1, "blue": 2, "green": 3}[text]

class Sleepy(Careless):
    def parse(self, text):
        if text == "blue":
            time.sleep(60)
        return super().parse(text)
"""


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the module, which is on the import path."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken.py").write_text(BROKEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop("broken", None)


@pytest.fixture(scope="module")
def pool(broken: Path) -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=2, timeout_s=0.3) as shared:
        yield shared


@pytest.mark.parametrize(
    ("name", "texts", "finding"),
    [
        ("FirstLetter", "r7", "mutation: answer 'r7', given 'r8': got correct"),
        ("NeverEqual", "red", "reflexive: answer 'red', given 'red': got wrong"),
        ("Shorter", "red re", "symmetric:"),
        ("Neighbours", "red rose roses", "transitive:"),
        ("Unbounded", "red", "hostile:"),
        ("Crashing", "red green", "KeyError"),
        ("Sleepy", "red", "got timeout"),
    ],
)
def test_the_kit_finds_what_is_wrong(
    broken: Path, pool: VerifierPool, name: str, texts: str, finding: str
) -> None:
    table = written(broken / f"{name}.jsonl", texts)
    report = check(f"broken:{name}", read_examples(table), pool)
    out = render(name, report)
    assert not report.passed
    assert finding in out, out
    assert "FAILED" in out.splitlines()[-1]


def written(table: Path, texts: str) -> Path:
    """A table in which each word is its own answer, and blue is not red."""
    negative = {"answer": "red", "given": "blue", "expected": "wrong"}
    positives = [{"answer": text, "given": text, "expected": "correct"} for text in texts.split()]
    table.write_text("".join(json.dumps(line) + "\n" for line in [*positives, negative]))
    return table


def test_what_the_kit_finds_is_an_exit_code(broken: Path) -> None:
    table = written(broken / "exit_code.jsonl", "red")
    code, out, _ = verifiers("check", "broken:NeverEqual", str(table), "--jobs", "1", cwd=broken)
    assert (code, out.splitlines()[-1].partition(":")[0]) == (1, "FAILED")


def installed(folder: Path, name: str, target: str) -> None:
    """A package that registers an answer type, as pip would leave it."""
    info = folder / f"{name}_{target.partition(':')[2].lower()}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {info.name.partition('-')[0]}\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[mathrl.verifiers]\n{name} = {target}\n")


def test_an_installed_package_adds_a_type_by_name(tmp_path: Path) -> None:
    installed(tmp_path, "chemical_formula", "chemical_formula:ChemicalFormula")
    (tmp_path / "chemical_formula.py").write_text((EXAMPLE / "chemical_formula.py").read_text())
    code, out, _ = verifiers("types", cwd=EXAMPLE.parent, path=tmp_path)
    assert code == 0
    assert "chemical_formula chemical_formula:ChemicalFormula" in out
    stdin = '{"id": 1, "answer": "H2O", "completion": "\\\\boxed{HOH}", "type": "chemical_formula"}\n'
    _, out, _ = verifiers("judge", "--jobs", "1", cwd=HERE, path=tmp_path, stdin=stdin)
    assert json.loads(out)["outcome"] == "correct"
    _, _, err = verifiers("judge", "--type", "chemical_formulas", cwd=HERE, path=tmp_path)
    assert "did you mean 'chemical_formula'" in err


def test_an_installed_package_that_cannot_be_imported_is_told_of(tmp_path: Path) -> None:
    installed(tmp_path, "chemical_formula", "chemical_formula:ChemicalFormula")
    (tmp_path / "chemical_formula.py").write_text("import no_such_module\n")
    code, _, err = verifiers("judge", "--type", "chemical_formula", cwd=HERE, path=tmp_path)
    assert code == 2
    assert "cannot import answer type 'chemical_formula': ModuleNotFoundError: No module named" in err


def test_two_packages_with_one_name_are_refused(tmp_path: Path) -> None:
    installed(tmp_path, "torsion", "first:First")
    installed(tmp_path, "torsion", "second:Second")
    code, _, err = verifiers("judge", "--type", "torsion", cwd=HERE, path=tmp_path)
    assert code == 2
    assert "registered twice" in err
    assert "first:First" in err
    assert "second:Second" in err


def test_a_table_without_negatives_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.jsonl"
    table.write_text(json.dumps({"answer": "1", "given": "1", "expected": "correct"}) + "\n")
    code, _, err = verifiers("check", "number", str(table), cwd=tmp_path)
    assert code == 2
    assert "needs examples of both kinds" in err
