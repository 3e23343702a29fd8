"""The hash of the verifiers: of what they do, not of where their files lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import verifiers
from mathrl.evaluation.source_hash import source_hash, verifiers_hash

PACKAGE = Path(verifiers.__file__).parent


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def test_moving_a_file_changes_nothing(tmp_path: Path) -> None:
    """The file goes to another room and every import follows it, as `git mv` and an editor do it."""
    moved = tmp_path / "verifiers"
    shutil.copytree(PACKAGE, moved, ignore=shutil.ignore_patterns("__pycache__"))
    (moved / "equality" / "ratios.py").rename(moved / "grammar" / "proportions.py")
    (moved / "answers" / "matrix.py").rename(moved / "equality" / "matrix.py")
    changed = 0
    for path in sources(moved):
        text = path.read_text(encoding="utf-8")
        new = text.replace("verifiers.equality.ratios", "verifiers.grammar.proportions")
        new = new.replace("verifiers.answers.matrix", "verifiers.equality.matrix")
        changed += new != text
        path.write_text(new, encoding="utf-8")
    assert changed >= 2
    assert source_hash(*sources(moved)) == verifiers_hash() == source_hash(*sources(PACKAGE))


def test_any_change_of_what_they_do_changes_it(tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    text = (
        "import re\nfrom verifiers.base import ParseError\nLIMIT = 3\nWORDS = {'no': 'emptyset'}\n"
        "def f(x: int = 2) -> int:\n    return x + LIMIT\n"
    )
    path.write_text(text)
    before = source_hash(path)
    for old, new in (("= 3", "= 4"), ("x +", "x -"), ("'no'", "'none'"), ("= 2", "= 1"), ("LIMIT\n", "x\n")):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        assert source_hash(path) != before, (old, new)
    explained = text.replace("int:\n", "int:\n    'A docstring.'\n    # a remark\n")
    assert explained.count("docstring") == 1
    path.write_text("import sys\n" + explained)
    assert source_hash(path) == before


def test_a_function_may_move_between_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("def f():\n    return 1\n\ndef g():\n    return 2\n")
    second.write_text("X = 1\n")
    before = source_hash(first, second)
    first.write_text("def g():\n    return 2\n")
    second.write_text("X = 1\n\ndef f():\n    return 1\n")
    assert source_hash(first, second) == before
