"""The child side of the pool: read chunks of requests, judge each under limits, answer with one line each.

Run as `python -c "from verifiers.pool.worker import main; main()" TIMEOUT_S MEMORY_MB PARENT_PID`. Requests
come on stdin and verdicts go to stdout, both as lines of JSON: whatever comes back, the parent unpickles
nothing.
A line `READY` follows all that takes time but judges nothing: the start, and the import of an answer type.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any, TextIO

from verifiers import registry
from verifiers.base import Outcome, Verdict
from verifiers.verify import verify

READY = "ready"

_CPU_GRACE_S = 2
"""CPU seconds past the wall-clock limit after which the kernel kills a worker whose parent is gone."""

_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal this process gets when its parent thread ends."""

_MAX_WRITTEN_FILE_BYTES = 1 << 20


def main() -> None:
    """Serve until stdin closes; then leave at once, even in the middle of a judgement."""
    timeout_s, memory_mb, parent_pid = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    _die_with_parent(parent_pid)
    requests, replies = _take_over_stdio()
    lines = _lines_until_parent_leaves(requests)
    _load({"auto"})
    _limit_process(memory_mb)
    _say(replies, READY)
    loaded: set[str] = set()
    for line in lines:
        chunk = json.loads(line)
        # What a type imports is no answer's fault: the parent starts the clock when it hears READY.
        if new := {fields[2] for fields in chunk} - loaded:
            _load(new)
            loaded |= new
            _say(replies, READY)
        for fields in chunk:
            _limit_cpu_of_next(timeout_s)
            verdict = _judge(*fields)
            # The allocator rarely gives back what one large answer took; a fresh worker starts small.
            retiring = _peak_mb() > memory_mb / 2
            _say(replies, [verdict.outcome, verdict.extracted, verdict.detail, verdict.seconds, retiring])
            if retiring:
                return


def _die_with_parent(parent_pid: int) -> None:
    """Let Linux kill this process with the supervisor thread that started it, even in a call into C."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it left before the call
        os._exit(0)


def _load(type_names: set[str]) -> None:
    """Import what these answer types need, one judgement of the largest built-in one included."""
    for name in type_names:
        if name == "auto":
            # Two equal functions take the longest way: mpmath's points, then sympy's polynomials.
            verify("\\boxed{\\sqrt{2}+x}", "x+\\sqrt{2}")
        # A type that cannot be imported is told of by the verdict on its request.
        with contextlib.suppress(Exception):
            registry.get(name)


def _judge(
    completion: str,
    answer: str,
    answer_type: str,
    extract: str,
    options: list[str],
    prompt: str,
    row: dict[str, Any],
) -> Verdict:
    try:
        return verify(completion, answer, answer_type, extract, options, prompt, row)
    except Exception as error:  # noqa: BLE001  a plug-in may raise anything; its worker must not die of it
        return Verdict(Outcome.ERROR, detail=f"{type(error).__name__}: {error}")


def _take_over_stdio() -> tuple[int, TextIO]:
    """Keep the two pipes for ourselves, so that an answer type that prints cannot garble the protocol."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, os.fdopen(replies, "w", encoding="ascii")


def _lines_until_parent_leaves(requests: int) -> Iterator[bytes]:
    """Lines from the parent, read by a thread: it sees the pipe close while the main thread is judging."""
    lines: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        with os.fdopen(requests, "rb") as pipe:
            for line in pipe:
                lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def _limit_process(memory_mb: int) -> None:
    def lower(kind: int, limit: int) -> None:
        # A stricter limit set by the administrator stays; macOS refuses RLIMIT_AS altogether.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))

    lower(resource.RLIMIT_AS, memory_mb << 20)
    lower(resource.RLIMIT_FSIZE, _MAX_WRITTEN_FILE_BYTES)
    lower(resource.RLIMIT_CORE, 0)


def _limit_cpu_of_next(timeout_s: float) -> None:
    """Let the kernel end this process if the parent, which keeps the wall clock, dies during a judgement."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime + timeout_s) + _CPU_GRACE_S
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(
        resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _peak_mb() -> float:
    """Most memory this program has had; getrusage counts the starting process's as well, up to the exec."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024


def _say(replies: TextIO, message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()
