"""One process at a time works in a folder, and a file in it says which.

The system's own lock (flock) is held as long as the process lives and ends with it, however it ends. What the
file says is for people, and for file systems that keep such locks to one machine: there the holder on another
host shows by the file's time that it lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

import psutil

from mathrl.errors import UserError, cannot_write, says_full

_BEAT_S = 5.0  # a holder touches the file so often
_SILENT_S = 20.0  # and is gone where nobody has touched it for so long
_NO_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Holder:
    """The process that a lock file names."""

    pid: int
    host: str
    place: str  # boot and process namespace: only there the pid means anything
    started: float  # of the process: a pid may be given again
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        return cls(os.getpid(), platform.node(), _place(), psutil.Process().create_time(), now)

    def runs_here(self) -> bool | None:
        """Whether the process lives; None where that cannot be seen from here."""
        if (self.host, self.place) != (platform.node(), _place()):
            return None
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) < 2.0
        except psutil.NoSuchProcess:
            return False


class FolderLock:
    """A context that holds the lock of a folder, which must be there.

    Args:
        folder: it gets a file ``lock`` while it is held.
        what: the folder in the message, such as "the run in runs/x".

    Raises:
        UserError: another process holds it; or the file cannot be written.
    """

    NAME = "lock"

    def __init__(self, folder: Path, what: str) -> None:
        self.file, self.what = folder / self.NAME, what
        self._descriptor = -1
        self._released = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._descriptor, alone = self._open()
        except OSError as error:
            raise UserError(f"{self.file} cannot be written: {error.strerror}") from error
        holder = _read(self.file)
        if holder is not None and self._lives(holder, alone):
            os.close(self._descriptor)
            raise UserError(self._refusal(holder))
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)
        self._released.clear()
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._released.set()
        self.file.unlink(missing_ok=True)  # before it is let go: who waits for it makes a new one
        os.close(self._descriptor)

    def refuse_if_held(self) -> None:
        """Refuse early, without touching anything, where the holder can be seen to live."""
        holder = _read(self.file)
        if holder is not None and holder.runs_here():
            raise UserError(self._refusal(holder))

    def _open(self) -> tuple[int, bool]:
        """The file, locked; and whether the system vouches for being alone on this machine."""
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = True
            except BlockingIOError:
                os.close(descriptor)
                raise UserError(self._refusal(_read(self.file))) from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise
                alone = False
            if _is_at(descriptor, self.file):  # the one before may have removed it meanwhile
                return descriptor, alone
            os.close(descriptor)

    def _lives(self, holder: Holder, alone: bool) -> bool:
        here = holder.runs_here()
        if here is not None:
            return here and not alone
        touched = self.file.stat().st_mtime
        if time.time() - touched > 10 * _SILENT_S:  # whatever the two clocks say
            return False
        deadline = time.monotonic() + _SILENT_S
        while time.monotonic() < deadline:
            time.sleep(0.5)
            if self.file.stat().st_mtime != touched:
                return True
        return False

    def _beat(self) -> None:
        while not self._released.wait(_BEAT_S):
            try:
                os.utime(self._descriptor)
            except OSError:  # let go meanwhile
                return

    def _refusal(self, holder: Holder | None) -> str:
        who = "another process"
        if holder is not None:
            who = f"process {holder.pid} on {holder.host}, since {holder.since}"
        return f"{self.what} is being worked on by {who}: wait for it or stop it first"


@contextmanager
def opened(folder: Path, what: str) -> Iterator[None]:
    """Inside, the folder is there and its lock is held.

    Raises:
        UserError: it cannot be made, another process holds the lock, or the disk is full, whatever was being
            written inside and by which library.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {cannot_write(error)}") from error
    with FolderLock(folder, what):
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or not says_full(error):
                raise
            where = getattr(error, "filename", None) or what
            raise UserError(
                f"{where} cannot be written: the disk is full; make room and go on from what is saved"
            ) from error


def _place() -> str:
    parts = []
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    ):
        try:
            parts.append(read())
        except OSError:
            parts.append("")
    return " ".join(parts)


def _read(file: Path) -> Holder | None:
    """What the file says; None where it is not there or says nothing (its holder has only just begun)."""
    try:
        return Holder(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
