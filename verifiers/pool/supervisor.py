"""The parent side of the pool: a queue, and one thread a worker that feeds it and keeps its clock."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from verifiers import registry
from verifiers.base import Outcome, Verdict
from verifiers.extraction.thoughts import PROMPT_TAIL_CHARS
from verifiers.pool.child import Child, WorkerDied
from verifiers.pool.worker import READY

_MAX_CHUNK = 32
_MAX_CHUNK_CHARS = 1 << 20
_START_LIMIT_S = 120.0
_LATE_START_S = 10.0  # a start takes one or two; what waits for one that takes longer may have another worker
_LOAD_LIMIT_S = 60.0
_SLOW_S = 0.25
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
    prompt: str = ""
    row: Mapping[str, Any] = field(default_factory=dict, hash=False)


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
        return [
            request.completion,
            request.answer,
            self.type_name,
            request.extract,
            list(request.options),
            request.prompt[-PROMPT_TAIL_CHARS:],
            dict(request.row) if registry.get(request.answer_type).takes_row else {},
        ]

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
    """Tasks waiting for a worker, oldest first; tasks given back go to the head.

    A worker that is up and idle is woken before a supervisor without one, which takes seconds to start its
    own: those are woken by what the idle ones leave, and by `want_worker`.
    """

    def __init__(self, num_workers: int) -> None:
        self._tasks: deque[Task] = deque()
        self._lock = threading.Lock()
        self._idle, self._down = threading.Condition(self._lock), threading.Condition(self._lock)
        self._num_idle = 0  # supervisors that wait with a worker that is up
        self._num_starting = 0  # supervisors whose worker will be idle soon
        self._wanted = 0  # workers to start though no task waits
        self._num_workers = num_workers
        self.closed = False
        self.closed_verdict = Verdict(Outcome.ERROR)

    def put(self, task: Task) -> None:
        """Append a new task; on a closed queue it is settled at once."""
        with self._lock:
            if not self.closed:
                self._tasks.append(task)
                self._wake()
                return
        task.settle(self.closed_verdict)

    def give_back(self, tasks: list[Task]) -> None:
        """Put tasks that a dead worker left behind at the head; on a closed queue they are settled."""
        with self._lock:
            if not self.closed:
                self._tasks.extendleft(reversed(tasks))
                self._wake()
                return
        for task in tasks:
            task.settle(self.closed_verdict)

    def want_worker(self) -> None:
        """Have one supervisor start its worker now, if it has none."""
        with self._lock:
            self._wanted += 1
            self._down.notify()

    def wait(self, is_up: bool) -> bool:
        """Block until there is work for one whose worker is up, or is not; False: the queue is closed."""
        with self._lock:
            if is_up:
                self._num_idle += 1
                self._idle.wait_for(lambda: self._tasks or self.closed)
                self._num_idle -= 1
            else:
                self._down.wait_for(lambda: self._wanted or self._unserved() > 0 or self.closed)
                self._wanted = max(0, self._wanted - 1)
                self._num_starting += 1
            return not self.closed

    def end_start(self, *, is_late: bool = False) -> None:
        """A supervisor that `wait` sent to start its worker has done so, or failed.

        Where it is late, others are woken for what it was to take.
        """
        with self._lock:
            self._num_starting -= 1
            if is_late:
                self._wake()

    def _unserved(self) -> int:
        return len(self._tasks) - self._num_idle - self._num_starting

    def _wake(self) -> None:
        self._idle.notify(len(self._tasks))
        if self._unserved() > 0:
            self._down.notify(self._unserved())

    def take(self) -> list[Task]:
        """A chunk, small enough that the workers finish together; empty if another worker was faster."""
        chunk: list[Task] = []
        num_chars = 0
        with self._lock:
            size = max(1, min(_MAX_CHUNK, len(self._tasks) // (2 * self._num_workers)))
            while self._tasks and len(chunk) < size and num_chars < _MAX_CHUNK_CHARS:
                task = self._tasks.popleft()
                if task.claim():
                    chunk.append(task)
                    num_chars += task.num_chars()
        return chunk

    def close(self, reason: str = "the pool was closed before this was judged") -> None:
        """Settle the waiting tasks, and any that come later, with an ERROR verdict that gives the reason."""
        with self._lock:
            if not self.closed:
                self.closed_verdict = Verdict(Outcome.ERROR, detail=reason)
            self.closed = True
            tasks, self._tasks = list(self._tasks), deque()
            self._idle.notify_all()
            self._down.notify_all()
        for task in tasks:
            task.settle(self.closed_verdict)


class Supervisor:
    """A thread that feeds one child process, keeps its clock, and replaces it when it dies."""

    def __init__(self, queue: TaskQueue, timeout_s: float, memory_mb: int) -> None:
        self._queue = queue
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._child: Child | None = None
        self._successor: Child | None = None  # started as soon as the child may have to be killed
        self._lock = threading.Lock()  # held to start, kill and reap, so that a reused pid is never killed
        self._is_counted_on = False  # its worker starts, and the queue counts on it
        self.thread = threading.Thread(target=self._run, name="verifier-pool", daemon=True)

    @property
    def child_pid(self) -> int | None:
        """Process id of the worker, None while there is none."""
        with self._lock:
            return None if self._child is None else self._child.process.pid

    def kill(self) -> None:
        """Kill the child; safe from any thread. The supervisor notices and acts."""
        with self._lock:
            for child in (self._child, self._successor):
                if child is not None:
                    child.kill()

    def _run(self) -> None:
        failed_starts = 0
        while self._queue.wait(self._child is not None):
            if self._child is None:
                self._is_counted_on = True
                failed_starts = 0 if self._start() else failed_starts + 1
                self._end_start()
                if failed_starts >= _MAX_FAILED_STARTS:
                    self._queue.close("the worker processes do not start; their error is on stderr")
            else:
                self._judge_whatever_comes(self._child, self._queue.take())
        self._reap()
        with self._lock:
            if self._successor is not None:
                self._successor.reap()

    def _end_start(self, *, is_late: bool = False) -> None:
        """Once for each start: at its end, or before, where it is late."""
        if self._is_counted_on:
            self._is_counted_on = False
            self._queue.end_start(is_late=is_late)

    def _prepare_successor(self) -> None:
        """Start the next child while this one may be hanging, so that replacing it takes no time."""
        with self._lock, contextlib.suppress(OSError):
            if self._successor is None and not self._queue.closed:
                self._successor = Child(self._timeout_s, self._memory_mb)

    def _start(self) -> bool:
        """Start a child and wait until it has imported what it needs; False if it failed of itself."""
        try:
            with self._lock:
                if self._queue.closed:
                    return True
                child = self._child = self._successor or Child(self._timeout_s, self._memory_mb)
                self._successor = None
        except OSError as error:
            print(f"verifier pool: cannot start a worker process: {error}", file=sys.stderr)
            return False
        try:
            late = partial(self._end_start, is_late=True)
            if next(child.messages(_START_LIMIT_S, _LATE_START_S, late), None) == READY:
                return True
            self._reap()
            return False
        except WorkerDied:
            child.await_exit()
            # Killed from outside while starting is no failure; the next attempt may be left alone.
            return self._reap() == -signal.SIGKILL

    def _reap(self) -> int:
        with self._lock:
            child, self._child = self._child, None
            return 0 if child is None else child.reap()

    def _judge_whatever_comes(self, child: Child, chunk: list[Task]) -> None:
        """`_judge`, and an ERROR verdict for what it leaves open: this thread ends with the pool only."""
        try:
            self._judge(child, chunk)
        except Exception as error:  # noqa: BLE001  a fault of ours, or a reply that no worker of ours sends
            self._reap()
            verdict = Verdict(Outcome.ERROR, detail=f"{type(error).__name__} in the pool: {error}")
            for task in chunk:
                if not task.future.done():
                    task.settle(verdict)

    def _judge(self, child: Child, chunk: list[Task]) -> None:
        """Have a chunk judged. A death is charged to the task at work; the others go back to the queue."""
        waiting = deque(chunk)
        died = retiring = False
        item_start = time.monotonic()
        try:
            if waiting:
                child.send([task.fields() for task in chunk], max(self._timeout_s, 1.0))
                if new := {task.type_name for task in chunk} - child.loaded:
                    if next(child.messages(_LOAD_LIMIT_S), None) != READY:
                        raise WorkerDied
                    child.loaded |= new
                item_start = time.monotonic()
                for outcome, extracted, detail, seconds, retiring in child.messages(
                    self._timeout_s, _SLOW_S, self._prepare_successor
                ):
                    waiting.popleft().settle(Verdict(Outcome(outcome), extracted, detail, seconds))
                    item_start = time.monotonic()
                    if retiring or not waiting:
                        break
        except WorkerDied:
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
