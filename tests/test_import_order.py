"""The house's one-way imports: a room may import the rooms left of its own, never right, never a neighbour's.

Reads the source, so a forbidden import inside a function counts as well. A room is a folder, or a file at the
top of a package; rooms of one cell are peers and do not know each other. Inside a room there is no circle.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ORDER = {
    "mathrl": [
        {"errors"},
        {"types"},
        {"config"},
        {"clock"},
        {"distributed"},
        {"recipes"},
        {"algorithms", "rewards"},
        {"data", "memory", "run"},
        {"policy"},
        {"rollout"},
        {"training", "evaluation"},
        {"report"},
        {"commands"},
        {"cli", "api"},
        {"__main__"},
    ],
    "verifiers": [
        {"base", "plugins"},
        {"policy"},
        {"grammar"},
        {"equality"},
        {"extraction"},
        {"answers"},
        {"sympy_objects"},
        {"registry", "fastpath"},
        {"verify"},
        {"pool"},
        {"tools"},
        {"__main__"},
    ],
}
RANK = {(top, room): rank for top, cells in ORDER.items() for rank, cell in enumerate(cells) for room in cell}
_KNOW_VLLM = ("vllm_core.py", "vllm_public.py", "core/scheduler.py")  # of the rollout's room
FACES = {("mathrl", ""), ("verifiers", "")}  # the packages' own __init__: they load what they name when asked


def room_of(module: str) -> tuple[str, str] | None:
    """(package, room) of a dotted module; None for other people's packages."""
    top, _, rest = module.partition(".")
    return (top, rest.split(".")[0]) if top in ORDER else None


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def is_module(dotted: str) -> bool:
    path = ROOT / Path(*dotted.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports_of(path: Path, inside_functions: bool = True) -> set[str]:
    """Every module that the file imports, with the names of ``from package import module`` resolved."""
    found = set()
    left: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while left:
        node = left.pop()
        if inside_functions or not isinstance(node, ast.FunctionDef):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner if is_module(name)}
            found |= modules
            if modules != inner:
                found.add(node.module)
    return {module for module in found if module}


SOURCES = sorted([*ROOT.glob("mathrl/**/*.py"), *ROOT.glob("verifiers/**/*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path):
    module = module_of(path)
    own = room_of(module)
    if own in FACES:
        return
    assert own in RANK, f"{module} has no place in the order of rooms"
    for other in imports_of(path):
        room = room_of(other)
        if room is None or room == own or room[0] != own[0] or room in FACES:
            continue
        assert room in RANK, f"{other} has no place in the order of rooms"
        assert RANK[room] < RANK[own], f"{module} must not import {other}"


def test_no_circle():
    """Module by module, rooms and their insides alike."""
    graph = {module_of(path): imports_of(path) for path in SOURCES}
    done: set[str] = set()

    def walk(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above[above.index(module) :], module])
        if module in done:
            return
        for other in sorted(graph.get(module, ())):
            if room_of(other) not in FACES:
                walk(other, (*above, module))
        done.add(module)

    for module in graph:
        if room_of(module) not in FACES:
            walk(module, ())


def test_only_one_room_knows_the_verifiers_and_only_three_files_know_vllm():
    for path in SOURCES:
        roots = {module.split(".")[0] for module in imports_of(path)}
        name = str(path.relative_to(ROOT))
        if name.startswith("mathrl/") and "verifiers" in roots:
            assert name.startswith("mathrl/rewards/")
        if "vllm" in roots:
            assert name.removeprefix("mathrl/rollout/") in (
                "vllm_core.py",
                "vllm_public.py",
                "core/scheduler.py",
            )
        if name.startswith("verifiers/"):
            assert not roots & {"torch", "numpy", "transformers", "mathrl", "datasets"}


def test_what_runs_in_vllms_core_knows_nothing_else_of_the_house():
    for path in sorted((ROOT / "mathrl" / "rollout" / "core").glob("*.py")):
        others = {module for module in imports_of(path) if room_of(module)}
        assert all(module.startswith("mathrl.rollout.core.") for module in others), path


def test_the_way_with_vllm_knows_no_short_cut_of_a_cpu():
    """What is loaded with the trainer and vLLM, imports inside functions left out: those load when called."""
    embedded = {f"mathrl.rollout.{name}" for name in ("transformers", "decoding", "sampling")}
    loaded, left = (
        set(),
        [
            "mathrl.training.trainer",
            "mathrl.rollout.engine_choice",
            "mathrl.rollout.vllm",
            "mathrl.rollout.vllm_core",
            "mathrl.rollout.vllm_public",
        ],
    )
    while left:
        module = left.pop()
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        if module not in loaded and path.exists():
            loaded.add(module)
            left += imports_of(path, inside_functions=False)
    assert {"mathrl.policy.trunk", "mathrl.policy.attention"} <= loaded
    assert not {module for module in loaded if module.startswith("mathrl.policy.cpu")} | loaded & embedded
    users = {module_of(path) for path in SOURCES if any("policy.cpu" in name for name in imports_of(path))}
    outside = {module for module in users if not module.startswith("mathrl.policy.cpu")}
    assert outside == {"mathrl.policy.trunk", "mathrl.rollout.transformers", "mathrl.rollout.decoding"}


def test_pure_modules_stay_pure():
    for name in ("advantages", "losses", "trust_region"):
        path = ROOT / "mathrl" / "algorithms" / f"{name}.py"
        outside = {m.split(".")[0] for m in imports_of(path)} - {
            "torch",
            "collections",
            "dataclasses",
            "math",
        }
        assert outside <= {"__future__", "typing", "functools", "mathrl"}, f"{name} imports {outside}"
