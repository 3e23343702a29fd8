"""A warm pool of killable worker processes: every request gets exactly one verdict, whatever its text does.

What it guards against: a judgement that runs too long (the parent keeps the wall clock and kills the worker),
that takes too much memory (an address-space limit in the worker), that overflows the C stack or otherwise
takes its process down, and workers killed from outside (their requests are judged again). A killed worker is
replaced by one that was started when the judgement began to take long, so that little time is lost; the
requests queued behind the guilty one go back to the head of the queue and lose nothing. Workers leave when
their parent leaves, however it died. An answer type that prints, or that writes large files, disturbs nobody.

What it does not guard against: malicious plug-in code. A worker runs with the user's rights, may read files
and use the network; no model text is ever executed, so only code the user installed could. The easy majority
is decided in the calling process by `verifiers.fastpath`, whose work is bounded by the length of the text; it
is not under the limits. The wall clock is real time: on a machine so busy that a worker gets no CPU for
`timeout_s` seconds a healthy answer times out too. A process that forks (rather than spawns) while a pool is
open holds the pool's pipes open, and its copy of the pool is refused. Memory limits need Linux.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Self

from verifiers import registry
from verifiers.base import Outcome, Verdict
from verifiers.extraction.rules import find_rule
from verifiers.fastpath import try_fast
from verifiers.pool.supervisor import Request, Supervisor, Task, TaskQueue

__all__ = ["Request", "VerifierPool"]

MIN_MEMORY_MB = 256
"""Room for a worker with its imports, a plug-in's sympy among them, before it judges anything."""


class VerifierPool:
    """Judges requests in worker processes, each under `timeout_s` seconds of wall clock and `memory_mb` MiB.

    num_workers: processes, started when first needed (`start`: sooner) and kept warm. A context manager,
    usable from any thread. Raises `ValueError` for limits out of range, and on `submit` for an unknown answer
    type or rule. Closing settles what is still open with an ERROR verdict and leaves no process behind.
    """

    def __init__(self, num_workers: int = 2, timeout_s: float = 5.0, memory_mb: int = 1024) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        if not 0 < timeout_s < 1e6:
            raise ValueError(f"timeout_s must be a positive number of seconds, got {timeout_s}")
        if memory_mb < MIN_MEMORY_MB:
            raise ValueError(f"memory_mb must be at least {MIN_MEMORY_MB} (MiB a worker), got {memory_mb}")
        self._queue = TaskQueue(num_workers)
        self._supervisors = [Supervisor(self._queue, timeout_s, memory_mb) for _ in range(num_workers)]
        self._start_lock = threading.Lock()
        self._started = False
        self._pid = os.getpid()
        # Also runs when the pool is dropped without close() and when the interpreter exits.
        self._finalizer = weakref.finalize(self, _shut_down, self._queue, self._supervisors, self._pid)

    def start(self) -> None:
        """Start one worker now, without waiting for it, so that the first hard answer finds it ready."""
        self._check_usable()
        if self._ensure_started():
            self._queue.want_worker()

    def submit(self, request: Request) -> Future[Verdict]:
        """Start judging; the future resolves to the verdict and never raises by itself.

        A request whose fields are of other kinds than `Request` says gets an ERROR verdict. Raises
        `ValueError` for an unknown answer type or rule.
        """
        self._check_usable()
        if problem := malformed(request):
            return _settled(Verdict(Outcome.ERROR, detail=f"malformed request: {problem}"))
        find_rule(request.extract)  # raises for an unknown one, before anything is queued
        task = Task(request, _name_for_workers(request.answer_type))
        if registry.get(request.answer_type).takes_row and (problem := _unwritable(request.row)):
            return _settled(Verdict(Outcome.ERROR, detail=f"malformed request: {problem}"))
        verdict = try_fast(
            request.completion,
            request.answer,
            request.answer_type,
            request.extract,
            request.options,
            request.prompt,
        )
        if verdict is not None:
            return _settled(verdict)
        self._ensure_started()
        self._queue.put(task)
        return task.future

    def map(self, requests: Iterable[Request]) -> list[Verdict]:
        """Judge all requests; verdicts come in the order of the requests, exactly one for each."""
        futures = [self.submit(request) for request in requests]
        return [future.result() for future in futures]

    async def verify_async(self, request: Request) -> Verdict:
        """Judge one request without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(request))

    def worker_pids(self) -> list[int]:
        """Process ids of the live workers, for monitoring."""
        return [pid for supervisor in self._supervisors if (pid := supervisor.child_pid) is not None]

    def close(self) -> None:
        """Kill the workers; requests still open get an ERROR verdict. Closing twice is harmless."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("a VerifierPool belongs to the process that made it; make one in each process")
        if not self._finalizer.alive:
            raise RuntimeError("this VerifierPool is closed; make a new one")

    def _ensure_started(self) -> bool:
        """Start the threads that supervise; whether it was this call that did."""
        with self._start_lock:
            if self._started:
                return False
            for supervisor in self._supervisors:
                supervisor.thread.start()
            self._started = True
            return True


def malformed(request: object) -> str:
    """What is wrong with the fields of a request; "" where nothing is."""
    for name in ("completion", "answer", "answer_type", "extract", "prompt"):
        value = getattr(request, name, None)
        if not isinstance(value, str):
            return f"{name} must be a string, got {type(value).__name__}"
    options = getattr(request, "options", None)
    if not isinstance(options, tuple | list) or not all(isinstance(option, str) for option in options):
        return "options must be strings"
    if not isinstance(getattr(request, "row", None), Mapping):
        return "row must be a mapping of column names to values"
    return ""


def _unwritable(row: Mapping[str, Any]) -> str:
    """Why a worker process cannot be sent this row; "" where it can."""
    try:
        json.dumps(dict(row), default=str)
    except Exception as error:  # noqa: BLE001  a column may hold any object, and its text is asked for
        return f"row cannot be written as JSON: {error}"
    return ""


def _settled(verdict: Verdict) -> Future[Verdict]:
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def _name_for_workers(answer_type: str) -> str:
    """The name under which another process finds this type; raises `ValueError` for an unknown one.

    A type registered in this process only is found by its import path, `module:Class`.
    """
    cls = type(registry.get(answer_type))
    return answer_type if cls.__module__.startswith("verifiers.") else f"{cls.__module__}:{cls.__qualname__}"


def _shut_down(queue: TaskQueue, supervisors: list[Supervisor], owner_pid: int) -> None:
    if os.getpid() != owner_pid:
        return
    queue.close()
    for supervisor in supervisors:
        supervisor.kill()
    for supervisor in supervisors:
        # The finalizer of a dropped pool may run in any thread, also in one of these.
        if supervisor.thread.is_alive() and supervisor.thread is not threading.current_thread():
            supervisor.thread.join()
