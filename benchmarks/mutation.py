"""Does a broken line make a test fail? Faults planted one at a time, and the tests of their room run.

``mutation.toml`` holds the faults. Each names a function (or a constant) and an expression or statement of
it, and what stands there instead: found in the syntax tree, so a file that moves or is formatted otherwise
breaks none. A fault is planted in a copy of the sources, and the tests of its room run there in a process
forked from one that has the large packages loaded; what no test notices is listed at the end.

    python benchmarks/mutation.py --minutes 6         # goes on where it stopped; says how many are left
    python benchmarks/mutation.py --room algorithms   # one room
    python benchmarks/mutation.py --check             # whether every fault can still be planted

Results of faults whose file and tests are as they were are not made again. The table and all numbers are
written to ``results/mutation.md`` and ``.json`` once every fault has been tried.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mutation_planting import Fault, Gone, load_faults, plant
from record import RESULTS, ROOT, describe, store

STATE = ROOT / "runs" / "mutation" / "state.json"
COPIED = ("mathrl", "verifiers", "tests", "benchmarks", "pyproject.toml", "README.md")
LIMIT_S = 240.0  # of one run of a room's tests; a fault that makes them hang is noticed
TEST_LIMIT_S = 80  # of one test
PRELOADED = (
    "torch", "transformers", "transformers.models.qwen2.modeling_qwen2", "transformers.models.llama",
    "transformers.models.llama.modeling_llama", "peft", "peft.tuners.lora", "datasets", "sympy", "mpmath",
    "scipy.stats", "scipy.special", "numpy", "statsmodels.stats.proportion", "statsmodels.stats.multitest",
    "statsmodels.stats.contingency_tables", "hypothesis", "pydantic", "jinja2", "rich.console", "rich.table",
    "rich.progress", "safetensors.torch", "huggingface_hub", "torch.utils.tensorboard", "pytest", "tomlkit",
    "cyclopts", "psutil",
)  # fmt: skip


# --- running ------------------------------------------------------------------------------------------------


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of what the tests need, for as long as it is used."""
    with tempfile.TemporaryDirectory(prefix="mathrl-mutation-") as folder:
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
        yield Path(folder)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """(exit status, first failed test); -1 where it took too long, twice: a busy machine may once."""
    found = _run_once(folder, tests)
    return _run_once(folder, tests) if found[0] == -1 else found


def _run_once(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """The same, in a process forked from this one."""
    log = folder / "pytest.log"
    child = os.fork()
    if child == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        status = 1
        with suppress(BaseException):
            status = _pytest(folder, tests)
        os._exit(status)
    deadline = time.monotonic() + LIMIT_S
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1, "it hung"
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test may have left
    first = re.search(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    return os.waitstatus_to_exitcode(status), first[1] if first else ""


def _pytest(folder: Path, tests: Sequence[str]) -> int:
    os.chdir(folder)
    os.environ |= {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sys.path[:] = [
        str(folder),
        *(p for p in sys.path if Path(p or ".").resolve() not in (ROOT, Path(__file__).parent)),
    ]
    sys.dont_write_bytecode = True
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--no-header", "-m", "not gpu"]
    return int(pytest.main([*options, f"--timeout={TEST_LIMIT_S}", *tests]))


def preload() -> None:
    """Load what the tests load, but nothing of ours: that is loaded anew in each fork, with its fault."""
    os.environ.setdefault("TRITON_INTERPRET", "1")  # as in tests/conftest.py, before triton
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        with suppress(ImportError):
            importlib.import_module(name)


# --- results kept -------------------------------------------------------------------------------------------


def fingerprint(fault: Fault, source: str) -> str:
    """Changes with the fault, the file it is planted in, and its tests."""
    digest = hashlib.blake2b(
        repr((fault.function, fault.old, fault.new)).encode() + source.encode(), digest_size=12
    )
    for test in fault.tests:
        path = ROOT / test.split("::")[0]
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _sources() -> str:
    """Changes with any file of the two packages and the tests."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("mathrl", "verifiers", "tests"):
        for file in sorted((ROOT / name).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def read_state() -> dict[str, Any]:
    return json.loads(STATE.read_text()) if STATE.is_file() else {}


def write_state(state: dict[str, Any]) -> None:
    STATE.parent.mkdir(parents=True, exist_ok=True)
    STATE.write_text(json.dumps(state, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--minutes", type=float, default=1e9, help="stop after so many; the next call goes on"
    )
    parser.add_argument("--room", default="", help="faults of this room alone")
    parser.add_argument("--check", action="store_true", help="plant every fault, run nothing")
    args = parser.parse_args()
    planted, gone = {}, []
    for fault in load_faults():
        if args.room in ("", fault.room):
            try:
                planted[fault] = plant(fault)
            except Gone as why:
                gone.append(str(why))
    faults = list(planted)
    print(f"{len(faults)} faults in {len({f.room for f in faults})} rooms can be planted")
    if gone:
        print("not:", *gone, sep="\n  ")
    if args.check:
        raise SystemExit(bool(gone))
    state, deadline = read_state(), time.monotonic() + 60 * args.minutes
    keys = {fault: fingerprint(fault, source) for fault, (_, source) in planted.items()}
    left = [fault for fault in faults if keys[fault] not in state]
    preload()
    with copied() as folder:
        for fault in left:
            if time.monotonic() > deadline:
                break
            try_fault(folder, fault, *planted[fault], keys[fault], state)
    left = [fault for fault in faults if keys[fault] not in state]
    print(f"{len(left)} of {len(faults)} faults are still to be tried")
    if not left and not args.room:
        write_table(faults, [state[keys[fault]] for fault in faults], gone)


def try_fault(folder: Path, fault: Fault, file: Path, source: str, key: str, state: dict[str, Any]) -> None:
    """Plant, run, take out; the result is kept at once."""
    untouched = f"untouched {_sources()} {' '.join(fault.tests)}"
    if untouched not in state:
        start = time.monotonic()
        status, first = run_tests(folder, fault.tests)
        if status:
            raise SystemExit(f"without any fault {first or fault.tests} fails: {folder / 'pytest.log'}")
        state[untouched] = round(time.monotonic() - start, 1)
        print(f"  {fault.room}: its tests take {state[untouched]} s", flush=True)
    place, start = folder / file, time.monotonic()
    original = place.read_text(encoding="utf-8")
    place.write_text(source, encoding="utf-8")
    try:
        status, first = run_tests(folder, fault.tests)
    finally:
        place.write_text(original, encoding="utf-8")
    seconds = round(time.monotonic() - start, 1)
    state[key] = {"noticed": status != 0, "by": first, "seconds": seconds, "status": status}
    write_state(state)
    print(f"{'noticed' if status else 'SURVIVED'} {seconds:6.1f} s  {fault.name}  {first}", flush=True)


def write_table(faults: Sequence[Fault], found: Sequence[dict[str, Any]], gone: Sequence[str]) -> None:
    """results/mutation.md and .json, and the survivors on the console."""
    about = describe(("torch", "pytest", "hypothesis"))
    rows = [
        {"room": f.room, "function": f.function, "what": f.what, "why": f.why, **result}
        for f, result in zip(faults, found, strict=True)
    ]
    noticed = sum(row["noticed"] for row in rows)
    survivors = [row for row in rows if not row["noticed"]]
    rooms = {room: [r for r in rows if r["room"] == room] for room in dict.fromkeys(r["room"] for r in rows)}
    lines = [
        "# Faults planted, and whether a test notices",
        "",
        f"`{about['command']}`, commit {about['commit'][:12]}, {about['hardware']}, {about['date']}.",
        "",
        f"{noticed} of {len(rows)} faults are noticed ({100 * noticed / len(rows):.1f} %): each stands by "
        "itself in a copy of the sources, where the tests of its room run until the first fails.",
        "",
        "| room | faults | noticed | seconds until noticed, median |",
        "|---|---|---|---|",
    ]
    for room, own in rooms.items():
        seconds = sorted(r["seconds"] for r in own)
        caught = sum(r["noticed"] for r in own)
        lines.append(f"| {room} | {len(own)} | {caught} | {seconds[len(own) // 2]:.1f} |")
    lines += ["", "## Not noticed", ""]
    lines += [f"- {r['room']}, `{r['function']}`: {r['what']}. {r['why']}".rstrip() for r in survivors] or [
        "None."
    ]
    if gone:
        lines += ["", "## Not planted: the code has changed", "", *(f"- {why}" for why in gone)]
    lines += ["", "## All", "", "| room | function | fault | noticed by |", "|---|---|---|---|"]
    for r in rows:
        by = r["by"].rsplit("/", 1)[-1].replace("|", "\\|") if r["noticed"] else "nothing"
        lines.append(f"| {r['room']} | `{r['function']}` | {r['what']} | {by.split('[')[0]} |")
    (RESULTS / "mutation.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    store("mutation", about | {"noticed": noticed, "faults": len(rows), "rows": rows})
    print(f"{noticed} of {len(rows)} noticed; not: {[r['what'] for r in survivors]}")


if __name__ == "__main__":
    main()
