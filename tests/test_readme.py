"""What the README has a reader type: words of commands and keywords of its Python are there."""

import ast
import inspect
import re
import shlex
from pathlib import Path

import pytest
from cyclopts import CycloptsError

import mathrl
from mathrl.cli import COMMANDS, make_app
from mathrl.config import Config

TEXT = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", TEXT, re.DOTALL | re.MULTILINE)
TYPED = [
    line.strip()
    for _, language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.strip().startswith("mathrl ") and "…" not in line
]


def test_there_is_something_to_type():
    assert {shlex.split(line, comments=True)[1] for line in TYPED} >= {
        "init",
        "train",
        "eval",
        "pairs",
        "plan",
    }


@pytest.mark.parametrize("line", TYPED)
def test_a_command_is_understood(line):
    words = shlex.split(line, comments=True)[1:]
    assert words[0] in COMMANDS
    make_app().parse_args(words)  # raises at an unknown option, a missing or a superfluous word


def test_what_is_not_there_would_be_told():
    with pytest.raises(CycloptsError):
        make_app().parse_args(["train", "--data.no_such_field", "x"])


def test_python_calls_have_keywords_that_are_there():
    calls = [
        node
        for indent, language, block in BLOCKS
        if language == "python" and "mathrl.train(" in block
        for node in ast.walk(ast.parse(re.sub(f"^{indent}", "", block, flags=re.MULTILINE)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "mathrl.train"
    ]
    assert calls
    own = inspect.signature(mathrl.train).parameters
    for call in calls:
        for keyword in call.keywords:
            name = str(keyword.arg)
            assert name in own or name in Config.model_fields
            if name not in own:
                section = type(getattr(Config(), name))
                assert set(ast.literal_eval(keyword.value)) <= section.model_fields.keys()
