"""The lookout: whether all ranks still live, and one sentence when one of them does not.

Every rank writes a count into the store that torchrun keeps for the ranks, once a second. Rank 0 watches all
counts, every rank that of rank 0, and the processes of its own host; a rank whose count stands still is lost,
be it stopped, hung in the system or on a host that has vanished. Who sees first what has gone wrong writes it
into the store and says it; the others find it there and end in silence.

All of this happens beside the main thread, which may be waiting for a lost rank in a call that never returns.
It is given time to end by itself (session.py), and is ended otherwise.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from mathrl.distributed.environment import Place
from mathrl.errors import first_line

BEAT_S = 1.0
SILENT_S = 30.0
"""A count that stands still so long belongs to a lost rank: long enough for a host that is out of breath."""

_TELL_S = 1.5  # an ended rank stays so long, that the others can still read why
_OWN_END_S = 5.0  # that the main thread has to end by itself
_LAST_WORDS_S = 20.0  # torchrun kills after 30 s

EXIT_LOST = 1
"""Exit status after the loss of a rank: the same command with --resume goes on."""


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the run ends, the same for all ranks: who wrote it first into the store."""

    sentence: str  # "" where there is nothing to say: an interruption
    status: int  # exit status of every rank
    lost: tuple[int, ...] = ()  # ranks that have gone
    by: int = 0  # the rank that says the sentence


@dataclass(frozen=True, slots=True)
class _Process:
    """A rank's process, for those of its host."""

    host: str
    pid: int
    started: float  # a pid may be given again

    @classmethod
    def own(cls) -> _Process:
        return cls(platform.node(), os.getpid(), psutil.Process().create_time())

    def find(self) -> psutil.Process | None:
        """The process, if it lives on this host."""
        try:
            found = psutil.Process(self.pid)
            alive = abs(found.create_time() - self.started) < 2.0 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return found if alive else None


class Lookout:
    """Threads that watch over the other ranks until ``stop``.

    Args:
        place: of this rank.
        store: a connection of the lookout's own.
    """

    def __init__(self, place: Place, store: dist.Store) -> None:
        self.place, self._store = place, store
        self.last_words: Callable[[], None] | None = None  # called at a bad end, by the lowest rank left
        self.ending: Ending | None = None
        self._processes = self._introduce()
        self._beats = dict.fromkeys(range(place.world), "")  # rank -> its count when last read
        self._heard = dict.fromkeys(range(place.world), time.monotonic())  # and when it last changed
        self._gone: dict[int, float] = {}  # rank -> when its process was first seen to be gone
        self._done: set[int] = set()  # ranks that have ended well
        self._store_heard = time.monotonic()
        self._parent = os.getppid()
        self._stopped = threading.Event()
        self._ending = threading.Lock()  # held by the thread that ends this process
        for work in (self._exchange, self._watch):
            threading.Thread(target=work, name=f"lookout{work.__name__}", daemon=True).start()

    # --- called by the main thread --------------------------------------------------------------------------

    def stop(self) -> None:
        """All has gone well here: what other ranks do from now on is their own affair."""
        self._ask(lambda: self._store.set(f"done/{self.place.rank}", "1"))
        self._stopped.set()

    def settle(self, sentence: str, status: int, lost: tuple[int, ...] = ()) -> Ending:
        """The ending that counts for all ranks: this one, unless another was written before."""
        own = Ending(sentence, status, lost, self.place.rank)
        if self.ending is None:
            text = self._ask(lambda: self._store.compare_set("ending", "", json.dumps(asdict(own))))
            self.ending = _read_ending(text) if text else own
        return self.ending

    def wait_for_ending(self, error: BaseException) -> Ending:
        """What the lookout, or another rank's, finds to be behind an error of a call to other ranks."""
        deadline = time.monotonic() + SILENT_S + 10.0
        while self.ending is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return self.ending or self.settle(
            f"rank {self.place.rank} lost its connection to another rank, though all of them live ({error}): "
            "look at the network between their hosts, then go on with --resume",
            EXIT_LOST,
        )

    def end(self, ending: Ending, *, say: Callable[[str], None] | None = None) -> None:
        """End this process; does not return."""
        if not self._ending.acquire(blocking=False):
            time.sleep(3600)  # the other thread is at it
        if ending.by == self.place.rank and ending.sentence:
            (say or _say)(ending.sentence)
        self._say_last_words(ending)
        if ending.by == self.place.rank:
            time.sleep(_TELL_S)
        _end_children()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ending.status)

    # --- the threads ----------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        """Write the own count, read the others'; may hang in the store, where ``_watch`` notices it."""
        watched = range(self.place.world) if self.place.is_main else (0,)
        count = 0
        while not self._stopped.wait(BEAT_S):
            count += 1
            try:
                self._store.set(f"beat/{self.place.rank}", str(count))
                beats = self._store.multi_get([f"beat/{rank}" for rank in watched])
                if self.ending is None and self._store.check(["ending"]):
                    self.ending = _read_ending(self._store.get("ending"))
                done = [rank for rank in self._gone if self._store.check([f"done/{rank}"])]
            except RuntimeError:  # dist.DistError: the store has gone
                continue
            now = time.monotonic()
            self._store_heard = now
            self._done.update(done)
            for rank, beat in zip(watched, beats, strict=True):
                if beat.decode() != self._beats[rank]:
                    self._beats[rank], self._heard[rank] = beat.decode(), now

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._stopped.wait(BEAT_S / 4):
            now = time.monotonic()
            if now - last > 5 * BEAT_S:  # this process itself was stopped: nothing is known of the others
                self._store_heard = now
                self._heard = dict.fromkeys(self._heard, now)
            last = now
            ending = self.ending or self._look(now)
            if ending is not None:
                self._stopped.wait(_OWN_END_S)  # the main thread has ended this process by then, if it can
                if not self._stopped.is_set():
                    self.end(ending)
                return

    def _look(self, now: float) -> Ending | None:
        """What has gone wrong, if anything has."""
        if os.getppid() != self._parent:
            return self._settle_of_launcher(
                f"the launcher of the ranks on {platform.node()} has ended, and the run with it; go on with "
                "--resume"
            )
        if now - self._store_heard > SILENT_S:
            return self._settle_of_launcher(
                f"the launcher of rank 0 on {self._processes[0].host}, through which all ranks meet, has not "
                f"answered for {SILENT_S:.0f} s; go on with --resume"
            )
        others = [rank for rank in self._processes if rank != self.place.rank and rank not in self._done]
        for rank in others:
            if self._has_gone(rank, now):
                process = self._processes[rank]
                return self.settle(
                    f"rank {rank} (process {process.pid} on {process.host}) was killed or crashed, mostly as "
                    "the machine's memory ran out; its own error, if it had one, stands above; go on with "
                    "--resume",
                    EXIT_LOST,
                    (rank,),
                )
        watched = others if self.place.is_main else [0]
        silent = [rank for rank in watched if rank in others and now - self._heard[rank] > SILENT_S]
        return self._settle_silence(silent) if silent else None

    def _has_gone(self, rank: int, now: float) -> bool:
        """Whether a process of this host has gone, and has had time to say why before it did."""
        process = self._processes[rank]
        if process.host != platform.node() or process.find() is not None:
            self._gone.pop(rank, None)
            return False
        return now - self._gone.setdefault(rank, now) > 2 * BEAT_S

    def _settle_of_launcher(self, sentence: str) -> Ending:
        """Where the store may have gone with the launcher: one rank a host says it."""
        return self.settle(sentence if self.place.local_rank == 0 else "", EXIT_LOST)

    def _settle_silence(self, silent: list[int]) -> Ending:
        process = self._processes[silent[0]]
        ending = self.settle(
            f"rank {silent[0]} (process {process.pid} on {process.host}) has given no sign of life for "
            f"{SILENT_S:.0f} s: it was stopped, or its host has vanished or hangs; go on with --resume",
            EXIT_LOST,
            tuple(silent),
        )
        for rank in ending.lost:  # a stopped process hears nothing else
            process = self._processes[rank]
            found = process.find() if process.host == platform.node() else None
            if found is not None:
                found.kill()
        return ending

    # --- pieces ---------------------------------------------------------------------------------------------

    def _introduce(self) -> dict[int, _Process]:
        """Every rank's process, by what each writes of itself; waits for all."""
        rank, world = self.place.rank, self.place.world
        self._store.set(f"beat/{rank}", "0")
        self._store.set(f"process/{rank}", json.dumps(asdict(_Process.own())))
        keys = [key for r in range(world) for key in (f"process/{r}", f"beat/{r}")]
        self._store.wait(keys, timedelta(minutes=30))
        return {r: _Process(**json.loads(self._store.get(f"process/{r}"))) for r in range(world)}

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The store's answer, or None where it gives none in a few seconds."""
        answer: list[Any] = []

        def ask() -> None:
            try:
                answer.append(question())
            except RuntimeError:  # dist.DistError
                answer.append(None)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(3.0)
        return answer[0] if answer else None

    def _say_last_words(self, ending: Ending) -> None:
        """Where this is the lowest rank that is left: what it keeps, in bounded time."""
        left = [rank for rank in range(self.place.world) if rank not in ending.lost]
        if self.last_words is None or not left or left[0] != self.place.rank:
            return
        thread = threading.Thread(target=_try_to_save, args=(self.last_words,), daemon=True)
        thread.start()
        thread.join(_LAST_WORDS_S)


def connect(own: Place) -> dist.Store:
    """A connection of this lookout's own to the ranks' store: one that waits holds up all that share it."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(
        address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=SILENT_S)
    )
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return dist.PrefixStore("/".join(["mathrl", *(os.environ.get(name, "0") for name in names)]), store)


def _read_ending(text: bytes) -> Ending:
    told = json.loads(text)
    return Ending(told["sentence"], told["status"], tuple(told["lost"]), told["by"])


def _try_to_save(words: Callable[[], None]) -> None:
    try:
        words()
    except Exception as error:  # noqa: BLE001 - why the run ends has been said, and that counts
        _say(f"the last whole step could not be saved: {first_line(error)}")


def _say(sentence: str) -> None:
    print(f"mathrl: {sentence}", file=sys.stderr, flush=True)


def _end_children() -> None:
    """Kill what this process has started: engines, verifiers."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
