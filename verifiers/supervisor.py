"""The parent side of the pool: a queue, and one thread a worker that feeds it and keeps its clock."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import IO, Any

from verifiers.base import Outcome, Verdict
from verifiers.worker import READY

_MAX_CHUNK = 32
_MAX_CHUNK_CHARS = 1 << 20
_READ_BYTES = 1 << 16
_START_LIMIT_S = 120.0
_LOAD_LIMIT_S = 60.0
_MAX_FAILED_STARTS = 3
# A request during which a worker dies is judged again, for the kill may have come from outside. SIGKILL
# nearly always does (memory is limited otherwise), so it is forgiven more often than a crash.
_MAX_CRASHES = 2
_MAX_SIGKILLS = 20


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to be judged against one reference answer; the fields are those of `verify`."""

    completion: str
    answer: str
    answer_type: str = "auto"
    extract: str = "auto"
    options: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class Task:
    """A request on its way through the pool, the future it will resolve, and the deaths it has seen.

    type_name: the name under which a worker process finds the answer type.
    """

    request: Request
    type_name: str
    future: Future[Verdict] = field(default_factory=Future)
    crashes: int = 0
    sigkills: int = 0

    def fields(self) -> list[Any]:
        """What a worker needs, ready for JSON."""
        request = self.request
        return [request.completion, request.answer, self.type_name, request.extract, list(request.options)]

    def num_chars(self) -> int:
        """Size of the texts in characters."""
        return len(self.request.completion) + len(self.request.answer)

    def claim(self) -> bool:
        """Mark as running; False if the caller has cancelled it. A task given back is running already."""
        return self.future.running() or self.future.set_running_or_notify_cancel()

    def settle(self, verdict: Verdict) -> None:
        """Resolve the future, unless the caller has cancelled it."""
        if self.claim():
            self.future.set_result(verdict)


class TaskQueue:
    """Tasks waiting for a worker, oldest first; tasks given back go to the head."""

    def __init__(self, num_workers: int) -> None:
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._num_workers = num_workers
        self.closed = False
        self.closed_verdict = Verdict(Outcome.ERROR)

    def put(self, task: Task) -> None:
        """Append a new task; on a closed queue it is settled at once."""
        with self._changed:
            if not self.closed:
                self._tasks.append(task)
                self._changed.notify()
                return
        task.settle(self.closed_verdict)

    def give_back(self, tasks: list[Task]) -> None:
        """Put tasks that a dead worker left behind at the head; on a closed queue they are settled."""
        with self._changed:
            if not self.closed:
                self._tasks.extendleft(reversed(tasks))
                self._changed.notify(len(tasks))
                return
        for task in tasks:
            task.settle(self.closed_verdict)

    def wait(self) -> bool:
        """Block until there is work; False once the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self.closed)
            return not self.closed

    def take(self) -> list[Task]:
        """A chunk, small enough that the workers finish together; empty if another worker was faster."""
        chunk: list[Task] = []
        num_chars = 0
        with self._changed:
            size = max(1, min(_MAX_CHUNK, len(self._tasks) // (2 * self._num_workers)))
            while self._tasks and len(chunk) < size and num_chars < _MAX_CHUNK_CHARS:
                task = self._tasks.popleft()
                if task.claim():
                    chunk.append(task)
                    num_chars += task.num_chars()
        return chunk

    def close(self, reason: str = "the pool was closed before this was judged") -> None:
        """Settle the waiting tasks, and any that come later, with an ERROR verdict that gives the reason."""
        with self._changed:
            if not self.closed:
                self.closed_verdict = Verdict(Outcome.ERROR, detail=reason)
            self.closed = True
            tasks, self._tasks = list(self._tasks), deque()
            self._changed.notify_all()
        for task in tasks:
            task.settle(self.closed_verdict)


class _WorkerDied(Exception):
    """The child's end of a pipe is closed."""


class _Child:
    """One worker process and its two pipes; messages are lines of JSON."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        # The parent's import path goes along, so that answer types are found wherever the parent found them.
        # A fixed hash seed makes sympy's orderings, and so every verdict, the same in all workers and runs.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "1"}
        entry = "from verifiers.worker import main; main()"
        # Not multiprocessing: its spawned children import the parent's main module again, torch and all.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", entry, str(timeout_s), str(memory_mb), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            bufsize=0,
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._stdin: IO[bytes] = self.process.stdin
        self._stdout: IO[bytes] = self.process.stdout
        os.set_blocking(self._stdin.fileno(), False)
        self._buffer = b""
        self.loaded: set[str] = set()  # names of the answer types that it has imported

    def send(self, message: Any, limit_s: float) -> None:
        """Write one line; raises `_WorkerDied` if the child does not read it within `limit_s` seconds."""
        data = memoryview(json.dumps(message).encode("ascii") + b"\n")
        deadline = time.monotonic() + limit_s
        while data:
            if not _wait(self._stdin, select.POLLOUT, deadline):
                raise _WorkerDied
            try:
                data = data[os.write(self._stdin.fileno(), data) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise _WorkerDied from error

    def messages(self, limit_s: float) -> Iterator[Any]:
        """What the child says, until it has been silent for `limit_s`; raises `_WorkerDied` at its end."""
        deadline = time.monotonic() + limit_s
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                try:
                    message = json.loads(line)
                except ValueError as error:
                    raise _WorkerDied from error
                yield message
                deadline = time.monotonic() + limit_s
                continue
            if not _wait(self._stdout, select.POLLIN, deadline):
                return
            data = os.read(self._stdout.fileno(), _READ_BYTES)
            if not data:
                raise _WorkerDied
            self._buffer += data

    def await_exit(self) -> None:
        """Let a child whose pipe is closed end by itself, a moment later: its exit code tells the cause."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=1.0)

    def kill(self) -> None:
        """Kill the process and whatever it may have started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def reap(self) -> int:
        """Make sure it is dead; returns the exit code, negative for the signal that ended it."""
        self.kill()
        code = self.process.wait()
        self._stdin.close()
        self._stdout.close()
        return code


class Supervisor:
    """A thread that feeds one child process, keeps its clock, and replaces it when it dies."""

    def __init__(self, queue: TaskQueue, timeout_s: float, memory_mb: int) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._child: _Child | None = None
        self._lock = threading.Lock()  # held to start, kill and reap, so that a reused pid is never killed
        self.thread = threading.Thread(target=self._run, name="verifier-pool", daemon=True)

    @property
    def child_pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        with self._lock:
            return None if self._child is None else self._child.process.pid

    def kill(self) -> None:
        """Kill the child; safe from any thread. The supervisor notices and acts."""
        with self._lock:
            if self._child is not None:
                self._child.kill()

    def _run(self) -> None:
        failed_starts = 0
        while self._queue.wait():
            if self._child is None:
                failed_starts = 0 if self._start() else failed_starts + 1
                if failed_starts >= _MAX_FAILED_STARTS:
                    self._queue.close("the worker processes do not start; their error is on stderr")
            else:
                self._judge(self._child, self._queue.take())
        self._reap()

    def _start(self) -> bool:
        """Start a child and wait until it has imported what it needs; False if it failed of itself."""
        try:
            with self._lock:
                if self._queue.closed:
                    return True
                child = self._child = _Child(self._timeout_s, self._memory_mb)
        except OSError as error:
            print(f"verifier pool: cannot start a worker process: {error}", file=sys.stderr)
            return False
        try:
            if next(child.messages(_START_LIMIT_S), None) == READY:
                return True
            self._reap()
            return False
        except _WorkerDied:
            child.await_exit()
            # Killed from outside while starting is no failure; the next attempt may be left alone.
            return self._reap() == -signal.SIGKILL

    def _reap(self) -> int:
        with self._lock:
            child, self._child = self._child, None
            return 0 if child is None else child.reap()

    def _judge(self, child: _Child, chunk: list[Task]) -> None:
        """Have a chunk judged. A death is charged to the task at work; the others go back to the queue."""
        waiting = deque(chunk)
        died = retiring = False
        item_start = time.monotonic()
        try:
            if waiting:
                child.send([task.fields() for task in chunk], max(self._timeout_s, 1.0))
                if new := {task.type_name for task in chunk} - child.loaded:
                    if next(child.messages(_LOAD_LIMIT_S), None) != READY:
                        raise _WorkerDied
                    child.loaded |= new
                item_start = time.monotonic()
                for outcome, extracted, detail, seconds, retiring in child.messages(self._timeout_s):
                    waiting.popleft().settle(Verdict(Outcome(outcome), extracted, detail, seconds))
                    item_start = time.monotonic()
                    if retiring or not waiting:
                        break
        except _WorkerDied:
            died = True
            child.await_exit()
        if not (waiting or retiring or died):
            return
        elapsed = time.monotonic() - item_start
        code = self._reap()
        if waiting and not retiring:
            verdict = self._charge(waiting[0], code) if died else self._timeout(elapsed)
            if verdict is not None:
                waiting.popleft().settle(verdict)
        self._queue.give_back(list(waiting))

    def _timeout(self, elapsed: float) -> Verdict:
        return Verdict(Outcome.TIMEOUT, detail=f"not decided within {self._timeout_s:g} s", seconds=elapsed)

    def _charge(self, task: Task, code: int) -> Verdict | None:
        """The verdict on a task during which the worker ended with this exit code; None: judge it again."""
        if self._queue.closed:
            return self._queue.closed_verdict
        if code == -signal.SIGKILL:
            task.sigkills += 1
            forgiven = task.sigkills < _MAX_SIGKILLS
        else:
            task.crashes += 1
            forgiven = task.crashes < _MAX_CRASHES
        if forgiven:
            return None
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        deaths = task.sigkills + task.crashes
        return Verdict(Outcome.ERROR, detail=f"{deaths} worker processes ended while judging this ({cause})")


def _wait(pipe: IO[bytes], event: int, deadline: float) -> bool:
    """Whether the pipe is ready (or broken) before the deadline; unlike select, for any file number."""
    poller = select.poll()
    poller.register(pipe, event)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
