"""The processes of a job of scaleout.py: started, asked for a case, killed with all that they started."""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

import psutil
from record import ROOT
from scaleout_cases import Case, ranks_of


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """The processes of a job; only rank 0 tells results."""

    def __init__(self, name: str, scratch: Path, log: Path, args: argparse.Namespace) -> None:
        self.name, self.log, self.ready, self.failed = name, log, False, ""
        self._told: queue.Queue[str | None] = queue.Queue()
        world = ranks_of(name)
        port = free_port()
        command = [sys.executable, str(Path(__file__).parent / "scaleout_ranks.py"), name]
        command += ["--scratch", str(scratch), "--steps", str(args.steps), "--engine", args.engine]
        command += [f"--{name}" for name in ("tiny", "uncompiled") if getattr(args, name)]
        self._log = log.open("ab")
        self.processes = []
        for rank in range(world):
            environment = dict(os.environ)
            environment |= {"VLLM_CACHE_ROOT": str(scratch / "cache" / f"{name}-{rank}")}
            environment |= {"VLLM_USE_FLASHINFER_SAMPLER": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
            if world > 1:
                environment |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
                environment |= {"LOCAL_WORLD_SIZE": f"{world}", "MASTER_ADDR": "127.0.0.1"}
                environment |= {"MASTER_PORT": f"{port}"}
            elif not args.tiny:
                environment |= {"CUDA_VISIBLE_DEVICES": "0"}
            site = args.peer_site if name.startswith("TRL") else ""
            paths = [p for p in (site, str(ROOT), os.environ.get("PYTHONPATH")) if p]
            environment |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
            self.processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE if rank == 0 else self._log,
                    stderr=self._log,
                    text=True,
                    env=environment,
                )
            )
        assert self.processes[0].stdout is not None
        threading.Thread(target=self._read, args=(self.processes[0].stdout,), daemon=True).start()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            if line.startswith(("READY", "RESULT ", "DONE")):
                self._told.put(line)
            else:
                self._log.write(line.encode())
                self._log.flush()
        self._told.put(None)

    def next(self, deadline: float) -> tuple[str, Any]:
        """The next word and its value; ``failed`` where a process ends or the time is over."""
        while True:
            ended = [p.returncode for p in self.processes if p.poll() not in (None, 0)]
            if ended and self._told.empty():
                time.sleep(1.0)  # rank 0 may have said why
                if self._told.empty():
                    return "failed", f"a process ended with {ended[0]}"
            try:
                line = self._told.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() > deadline:
                    return "failed", "not done in time"
                continue
            if line is None:
                return "failed", f"ended with {self.processes[0].wait()}"
            word, _, rest = line.strip().partition(" ")
            return word, json.loads(rest) if rest else None

    def wait_until_ready(self, deadline: float) -> None:
        if self.ready or self.failed:
            return
        word, value = self.next(deadline)
        if word == "READY":
            self.ready, self.started = True, value
        else:
            self.fail(f"did not start: {value}")

    def measure(self, case: Case, seconds: float, keep: Any) -> None:
        """Let it measure the case for at most so long."""
        request = json.dumps({"case": case.title, "until": time.time() + seconds}) + "\n"
        deadline = time.monotonic() + seconds + 10.0
        try:
            for process in self.processes:
                assert process.stdin is not None
                process.stdin.write(request)
                process.stdin.flush()
        except OSError as error:
            self.fail(str(error))
            return
        while True:
            word, value = self.next(deadline)
            if word == "DONE":
                return
            if word == "RESULT":
                keep(value)
            else:
                self.fail(value)
                return

    def fail(self, why: str) -> None:
        self.failed = why
        self.end(0.0)

    def end(self, patience_s: float = 4.0) -> None:
        """Let the processes go, and kill those that stay, with all that they have started."""
        family = []
        for process in self.processes:
            try:
                own = psutil.Process(process.pid)
                family += [own, *own.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        for process in self.processes:
            if process.stdin is not None:
                try:
                    process.stdin.close()
                except OSError:
                    continue
        if patience_s:
            psutil.wait_procs(family, timeout=patience_s)
        for one in family:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        for process in self.processes:
            process.wait()
        self.ready = False

    def last_words(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def kill(process: subprocess.Popen[Any]) -> None:
    try:
        own = psutil.Process(process.pid)
        for one in [*own.children(recursive=True), own]:
            one.kill()
    except psutil.NoSuchProcess:
        pass
    process.wait()
