"""A module is named by a flag or in code, never by data; the current folder is searched, in workers too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import hostile_types
import pytest
from hostile_types import Misbehaving
from test_cli import called, run
from test_isolation import eventually  # noqa: F401  the tests' folder must be importable, as hostile_types is

from mathrl.cli import main
from mathrl.rewards.scorer import check_reference
from mathrl.types import Problem
from verifiers import AnswerType, Outcome, registry
from verifiers.pool.pool import Request, VerifierPool
from verifiers.tools.references import Reading, read_reference

LOUD = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
from verifiers import AnswerType
class Loud(AnswerType):
    name = "loud"
    def parse(self, text):
        return text.upper()
    def equal(self, reference, given):
        return reference == given
def last_word(text):
    return text.split()[-1] if text.split() else None
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loud_type.py").write_text(LOUD)
    return tmp_path


def row(**more: object) -> str:
    return json.dumps({"id": 1, "answer": "yes", "completion": "I say YES"} | more) + "\n"


@pytest.mark.parametrize("named", [{"type": "loud_type:Loud"}, {"extract": "loud_type:last_word"}])
def test_a_row_names_no_module(folder: Path, named: dict[str, str]) -> None:
    (folder / "rows.jsonl").write_text(row(**named))
    for command in (["judge"], ["audit", "rows.jsonl"]):
        done = called(*command, "--jobs", "1", stdin=row(**named), cwd=folder)
        assert "only the flag --" in done.stdout, done.stderr
    assert not (folder / "imported").exists()


def test_a_flag_names_one_and_a_row_may_repeat_it(folder: Path) -> None:
    flags = ["--type", "loud_type:Loud", "--extract", "loud_type:last_word", "--jobs", "1"]
    done = run("judge", *flags, stdin=row() + row(type="loud_type:Loud", answer="no"), cwd=folder)
    outcomes = [json.loads(line)["outcome"] for line in done.stdout.splitlines()]
    assert outcomes == ["correct", "wrong"], done.stderr


def mathrl(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The console script: its own folder, and not the current one, is first on its path."""
    script = folder / "bin" / "mathrl"
    script.parent.mkdir(exist_ok=True)
    script.write_text("import sys\nfrom mathrl.cli import main\nsys.exit(main())\n")
    return subprocess.run(
        [sys.executable, str(script), *arguments, "--jobs", "1"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        timeout=120,
    )


def test_the_console_script_finds_a_type_in_the_current_folder_when_a_flag_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [row(id=i, completion=f"it is {word}") for i, word in enumerate(["YES", "NO"])]
    (folder / "saved.jsonl").write_text("".join(lines))
    flags = ["--answer-type", "loud_type:Loud", "--extract", "loud_type:last_word"]
    done = mathrl(folder, "judge", "saved.jsonl", *flags)
    assert done.returncode == 0, done.stderr
    judged = folder / "saved-judged" / "completions.jsonl"
    rows = [json.loads(line) for line in judged.read_text(encoding="utf-8").splitlines()]
    assert [r["outcome"] for r in rows if "outcome" in r] == ["correct", "wrong"]

    # The file that was written names the module now; as a file of data it is not trusted.
    (folder / "imported").unlink()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "loud_type", raising=False)
    judged_again = ["judge", str(judged), "--jobs", "1"]
    assert main(judged_again) == 2
    assert not (folder / "imported").exists()
    for missing in (0, 2):
        capsys.readouterr()
        assert main([*judged_again, *flags[2 - missing : 4 - missing]]) == 2
        assert f"give {flags[missing]} {flags[missing + 1]}" in capsys.readouterr().err
    assert main([*judged_again, *flags]) == 0


class Registered(Misbehaving):
    """Known by its name in this process only: a worker finds it by its import path."""

    name: ClassVar[str] = "registered_here"


def test_a_type_registered_in_this_process_is_judged_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    registry.register(Registered)
    assert isinstance(registry.get("registered_here"), AnswerType)
    with VerifierPool(num_workers=1, timeout_s=10.0) as pool:
        pid, answer = pool.map(
            [
                Request("pid", "say 1", "registered_here", "bare"),
                Request("say yes", "say yes", "registered_here", "bare"),
            ]
        )
    assert (pid.outcome, answer.outcome) == (Outcome.WRONG, Outcome.CORRECT)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Unfinished", "TypeError: Can't instantiate abstract class Unfinished"),
        ("Wants", "TypeError: Wants.__init__.. missing 1 required positional argument: 'unit'"),
        ("raising_rule", "must name a subclass of verifiers.AnswerType"),
        ("Nobody", "AttributeError: module 'hostile_types' has no attribute 'Nobody'"),
    ],
)
def test_a_type_of_which_no_object_can_be_made_is_told_of(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^cannot import answer type 'hostile_types:{name}': .*{said}"):
        registry.get(f"hostile_types:{name}")
    if name in ("Unfinished", "Wants"):
        with pytest.raises(ValueError, match=said):
            registry.register(getattr(hostile_types, name))
        assert "unfinished" not in registry.names()


@pytest.mark.parametrize(
    ("kind", "reference", "outcome"),
    [("Whole", "7", "correct"), ("Whole", "seven", "error"), ("OwnReference", "seven", "correct"),
     ("OwnReference", "eight", "error")],
)  # fmt: skip
def test_a_reference_at_which_a_type_raises_is_unread(kind: str, reference: str, outcome: str) -> None:
    """Whatever it raises; in a worker it is an error of that verdict."""
    named = f"hostile_types:{kind}"
    with VerifierPool(num_workers=1) as pool:
        assert pool.submit(Request("7", reference, named, "bare")).result().outcome == outcome
    raised = {"seven": "ValueError", "eight": "KeyError"}.get(reference, "")
    said = check_reference(Problem("1", "q", reference, named))
    read = read_reference(reference, named)
    if outcome == "correct":
        assert (said, read.reading) == (None, Reading.MATHEMATICS)
    else:
        assert said is not None
        assert said.startswith(f"{raised}: ")
        assert (read.reading, read.kind) == (Reading.UNREAD, f"its verifier raises {raised}")
