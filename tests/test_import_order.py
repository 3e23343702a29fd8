"""The house's one-way imports: a module may import what stands left of it, never right.

Reads the source, so a forbidden import inside a function counts as well.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ORDER = [
    {"verifiers"},
    {"mathrl", "errors", "types", "config", "clock", "recipes"},
    {"advantages", "losses", "trust_region", "statistics"},
    {
        "data",
        "data_rows",
        "data_source",
        "wordproblems",
        "prompts",
        "rewards",
        "batch",
        "micro_batching",
        "distributed",
        "algorithms",
        "reward_model",
        "hub",
        "run_folder",
    },
    {"policy", "scratch", "rollout", "tracking", "progress", "checkpoint", "sentinel", "plan", "shapes"},
    {
        "objective",
        "value_update",
        "trust_region_update",
        "update",
        "dry_run",
        "evaluate",
        "evaluation",
        "comparison",
        "completions",
        "sft",
        "sft_loss",
        "few_shot",
        "benchmark_sets",
        "contamination",
        "export",
    },
    {"trainer"},
    {
        "pages",
        "charts",
        "run_record",
        "training_charts",
        "evaluation_page",
        "model_source",
        "saved_completions",
        "run_comparison",
        "report",
        "judge",
        "compare",
        "doctor",
        "replay",
        "algorithm_trial",
        "algorithm_comparison",
        "algorithm_page",
        "job",
        "preparation",
        "summary",
        "evaluation_cli",
        "evaluation_run",
        "templates",
    },
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}


def package_of(module: str) -> str | None:
    """The room a dotted module belongs to; None for other people's packages."""
    parts = module.split(".")
    if parts[0] == "verifiers":
        return "verifiers"
    if parts[0] != "mathrl":
        return None
    return parts[1] if len(parts) > 1 else "mathrl"


def imports_of(path: Path) -> set[str]:
    """Every module that the file imports, with the names of ``from package import module`` resolved."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            for alias in node.names:
                inner = ROOT / Path(*node.module.split("."), alias.name)
                if inner.with_suffix(".py").exists() or inner.is_dir():
                    found.add(f"{node.module}.{alias.name}")
    return {module for module in found if module}


SOURCES = sorted([*ROOT.glob("mathrl/**/*.py"), *ROOT.glob("verifiers/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path):
    own = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert own in RANK, f"{path.name} has no place in the order of imports"
    for module in imports_of(path):
        other = package_of(module)
        if other is None or other == own:
            continue
        assert other in RANK, f"{module} has no place in the order of imports"
        if other == "mathrl":  # ``from mathrl import __version__`` or a module already counted
            continue
        assert RANK[other] <= RANK[own], f"{own} must not import {other}"


def test_only_rewards_knows_the_verifiers_and_only_one_file_knows_vllm():
    for path in SOURCES:
        roots = {module.split(".")[0] for module in imports_of(path)}
        name = str(path.relative_to(ROOT))
        if name.startswith("mathrl/") and "verifiers" in roots:
            assert name == "mathrl/rewards.py"
        if "vllm" in roots:
            assert name == "mathrl/rollout/vllm.py"
        if name.startswith("verifiers/"):
            assert not roots & {"torch", "numpy", "transformers", "mathrl", "datasets"}


def test_pure_modules_stay_pure():
    for name in ("advantages", "losses", "trust_region"):
        path = ROOT / "mathrl" / f"{name}.py"
        outside = {m.split(".")[0] for m in imports_of(path)} - {
            "torch",
            "collections",
            "dataclasses",
            "math",
        }
        assert outside <= {"__future__", "typing", "functools", "mathrl"}, f"{name} imports {outside}"
