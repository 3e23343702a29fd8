"""A package of the same name from another distribution is noticed, in one sentence with the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import verifiers
from mathrl.errors import UserError
from mathrl.rewards.own_verifiers import check_owner, require_own_verifiers

ROOT = Path(verifiers.__file__).parent.parent


def foreign(folder: Path) -> Path:
    """A package that would say so if it were imported."""
    (folder / "verifiers").mkdir()
    (folder / "verifiers" / "__init__.py").write_text("print('imported')\n")
    return folder


def test_ours_is_recognised() -> None:
    require_own_verifiers()
    check_owner(PathFinder.find_spec("verifiers", [str(ROOT)]))


def test_another_one_and_none_are_refused(tmp_path: Path) -> None:
    spec = PathFinder.find_spec("verifiers", [str(foreign(tmp_path))])
    with pytest.raises(UserError, match=r"not mathrl's own.*environment of its own.*--force-reinstall"):
        check_owner(spec)
    (tmp_path / "verifiers" / "__init__.py").unlink()  # what is left when the other one is uninstalled
    with pytest.raises(UserError, match="not mathrl's own"):
        check_owner(PathFinder.find_spec("verifiers", [str(tmp_path)]))
    with pytest.raises(UserError, match="not mathrl's own"):
        check_owner(None)


def test_the_command_says_so_and_imports_nothing_of_it(tmp_path: Path) -> None:
    path = os.pathsep.join([str(foreign(tmp_path)), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "mathrl", "judge", "completions.jsonl"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("mathrl: the package 'verifiers' in ")
    assert str(tmp_path) in line
