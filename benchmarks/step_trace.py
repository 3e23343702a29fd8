"""Which functions of some folders are called while a switch is on, in this process and those it starts.

``Switch`` is one byte in a shared file. Python processes started with ``Switch.environment`` load this file
as ``sitecustomize`` does and look at the same byte; each writes the functions that it calls meanwhile, once
each, to a file of its own. Only the standard library is imported here.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, TextIO

_FOLDER, _ROOTS = "MATHRL_STEP_TRACE", "MATHRL_STEP_ROOTS"


class Call(NamedTuple):
    """A function that was called: where its code begins."""

    process: int
    file: Path
    line: int
    name: str


class Switch:
    """Traces this process and its children; off at first.

    Args:
        folder: an empty folder for the byte and what the processes write.
        roots: source folders; functions of other files are not reported.
    """

    def __init__(self, folder: Path, roots: tuple[Path, ...]) -> None:
        self.folder = folder
        (folder / "switch").write_bytes(b"\0")
        (folder / "sitecustomize.py").write_text(
            f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
            "import step_trace\nsys.path.pop()\nstep_trace.start()\n",
            encoding="utf-8",
        )
        path = os.environ.get("PYTHONPATH")
        self.environment = {
            _FOLDER: str(folder),
            _ROOTS: os.pathsep.join(f"{root.resolve()}{os.sep}" for root in roots),
            "PYTHONPATH": os.pathsep.join([str(folder), *([path] if path else [])]),
        }
        os.environ.update(self.environment)
        self._byte = start()

    def set(self, on: bool) -> None:
        self._byte[0] = on
        if on and hasattr(sys, "monitoring"):
            sys.monitoring.restart_events()

    def calls(self) -> list[Call]:
        """What all processes have called so far."""
        found = []
        for file in sorted(self.folder.glob("*.calls")):
            for text in file.read_text(encoding="utf-8").splitlines():
                path, line, name = text.split("\t")
                found.append(Call(int(file.stem), Path(path), int(line), name))
        return found


def start() -> mmap.mmap:
    """Watch this process from now on, its threads and those to come; returns the switch's byte."""
    folder = Path(os.environ[_FOLDER])
    with (folder / "switch").open("r+b") as file:
        byte = mmap.mmap(file.fileno(), 1)
    out = (folder / f"{os.getpid()}.calls").open("a", buffering=1, encoding="utf-8")
    roots = tuple(os.environ[_ROOTS].split(os.pathsep))
    if hasattr(sys, "monitoring"):
        _monitor(byte, out, roots)
    else:
        _profile(byte, out, roots)
    return byte


def _monitor(byte: mmap.mmap, out: TextIO, roots: tuple[str, ...]) -> None:
    """Python 3.12 and later: all threads, those that torch started in C++ too."""
    tool, events = 3, sys.monitoring.events  # type: ignore[attr-defined]

    def started(code: CodeType, _: int) -> Any:
        if not code.co_filename.startswith(roots):
            return sys.monitoring.DISABLE  # type: ignore[attr-defined]
        if not byte[0]:
            return None
        _write(out, code)
        return sys.monitoring.DISABLE  # type: ignore[attr-defined]

    sys.monitoring.use_tool_id(tool, "step map")  # type: ignore[attr-defined]
    sys.monitoring.register_callback(tool, events.PY_START, started)  # type: ignore[attr-defined]
    sys.monitoring.set_events(tool, events.PY_START)  # type: ignore[attr-defined]


def _profile(byte: mmap.mmap, out: TextIO, roots: tuple[str, ...]) -> None:
    """Python 3.11: every thread that Python itself starts."""
    seen: dict[int, CodeType] = {}  # by id: hashing a code object compares all of it

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and byte[0] and id(frame.f_code) not in seen:
            code = frame.f_code
            seen[id(code)] = code
            if code.co_filename.startswith(roots):
                _write(out, code)

    threading.setprofile(called)
    sys.setprofile(called)


def _write(out: TextIO, code: CodeType) -> None:
    out.write(f"{code.co_filename}\t{code.co_firstlineno}\t{code.co_name}\n")
