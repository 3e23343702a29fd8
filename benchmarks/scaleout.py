"""One GPU beside two, and TRL beside both, in a given number of seconds: the steps of scaleout_cases.py.

    python benchmarks/scaleout.py [--seconds 420] [--out DIR] [--peer-site DIR] [--resume] [--only TEXT ...]
    python benchmarks/scaleout.py --tiny            the same on the CPU with two gloo ranks and a tiny model

Every job (our 0.5B, our 1.5B, TRL) is a group of processes, a rank a GPU, that start side by side, for that
takes longer than measuring: ours with a whole step, which compiles. They measure one after the other, while
all others rest. Cases come in order of importance, and what there is no time for is left out. ``one GPU`` is
rank 0 of the same group by itself. Results are stored after every case; ``--resume`` measures what an earlier
call left out, ``--smoke`` tries ``mathrl train --gpus 2`` itself, while the jobs start.

scaleout_model.py prints the tables of the stored file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from record import RESULTS, ROOT, describe
from scaleout_cases import CASES, Case, folder_of
from scaleout_jobs import Job, kill
from scaleout_model import ratios

_SMOKE_S = 20.0  # that measuring waits for the trial of the command
_END_S = 12.0  # kept for the end: processes to kill, a table to print
_SMOKE = (
    "train quickstart --gpus 2 --run.name smoke --sft.max_train_steps 5 --train.num_steps 3 "
    "--evaluate.num_problems 8 --evaluate.num_samples 0 --checkpoint.every_steps 0 "
    "--rollout.compile_engine false"
)


def say(text: str, begin: float) -> None:
    print(f"[{time.monotonic() - begin:5.0f} s] {text}", flush=True)


class Measurement:
    """The cases, one after the other, until the time is over."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch, self.begin = args, scratch, time.monotonic()
        self.deadline = self.begin + args.seconds - _END_S
        self.file = args.out / ("scaleout_tiny.json" if args.tiny else "scaleout.json")
        self.found: dict[str, Any] = {}
        if args.resume and self.file.exists():
            self.found = json.loads(self.file.read_text())
        self.found |= describe(("torch", "transformers", "peft", "trl", "vllm", "accelerate"))
        self.found.setdefault("cases", {})
        self.found.setdefault("started", {})
        self.cases = [c for c in CASES if any(text in c.title for text in args.only) and not self._is_done(c)]
        self.jobs: dict[str, Job] = {}
        self.helpers: list[subprocess.Popen[Any]] = []

    def _is_done(self, case: Case) -> bool:
        return bool(self.found["cases"].get(case.title)) and "failed" not in self.found["cases"][case.title]

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def start(self) -> None:
        """Models are written, engines start, ``mathrl train`` is tried, all side by side."""
        for name in dict.fromkeys(folder_of(case.job) for case in self.cases):
            self.helpers.append(self._prepare(name))
        for name in dict.fromkeys(c.job for c in self.cases if c.job != "TRL, one GPU"):
            self._start(name)
        smoke = self._smoke() if self.args.smoke else None
        until = self.begin + self.args.start_seconds
        for job in self.jobs.values():
            job.wait_until_ready(min(until, self.deadline))
            self._tell_of_start(job)
        if smoke is not None:
            self._end_smoke(smoke, min(time.monotonic() + _SMOKE_S, self.deadline))

    def _start(self, name: str) -> Job:
        log = self.args.out / f"scaleout_{name.replace(', ', '_').replace(' ', '_')}.log"
        self.jobs[name] = Job(name, self.scratch, log, self.args)
        return self.jobs[name]

    def _tell_of_start(self, job: Job) -> None:
        if job.failed:
            say(f"{job.name} {job.failed}\n{job.last_words()}", self.begin)
            self.found["started"][job.name] = {"failed": job.failed}
        else:
            say(f"{job.name} is ready: {job.started}", self.begin)
            self.found["started"][job.name] = job.started

    def _prepare(self, name: str) -> subprocess.Popen[Any]:
        command = [sys.executable, str(Path(__file__).parent / "scaleout_ranks.py"), name, "--prepare"]
        command += ["--scratch", str(self.scratch), "--steps", "0", "--engine", "auto"]
        return subprocess.Popen([*command, "--tiny"] if self.args.tiny else command, stdout=sys.stderr)

    def _smoke(self) -> tuple[subprocess.Popen[Any], Path]:
        words = _SMOKE.replace("--gpus", "--ranks") if self.args.tiny else _SMOKE
        words += f" --run.output_dir {self.scratch / 'runs'}"
        log = self.args.out / "scaleout_smoke.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "mathrl", *words.split()],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
            )
        self.helpers.append(process)
        return process, log

    def _end_smoke(self, smoke: tuple[subprocess.Popen[Any], Path], until: float) -> None:
        process, log = smoke
        try:
            code: int | None = process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            code = None
            kill(process)
        words = log.read_text(errors="replace").splitlines()
        self.found["smoke"] = {"exit": code, "last": words[-12:]}
        say(f"mathrl train --gpus 2: exit {code}\n" + "\n".join(words[-8:]), self.begin)

    def run(self) -> None:
        try:
            self.start()
            for number, case in enumerate(self.cases):
                self._measure(case)
                self._end_jobs_without(self.cases[number + 1 :])
        finally:
            for job in self.jobs.values():
                if not job.failed:
                    job.end(0.0)
            for helper in self.helpers:
                kill(helper)
            self._store()

    def _measure(self, case: Case) -> None:
        job = self.jobs.get(case.job)
        if (job is not None and job.failed) or self.left_s() < case.least_s:
            why = job.failed if job is not None and job.failed else "no time left"
            self.found["cases"].setdefault(case.title, {"failed": why})
            say(f"{case.title}: left out, {why}", self.begin)
            return
        if job is None:
            job = self._start(case.job)
            job.wait_until_ready(self.deadline)
            self._tell_of_start(job)
        if not job.failed:
            job.measure(case, min(case.most_s, self.left_s()), lambda value: self._keep(case, value))
        if job.failed:
            self.found["cases"].setdefault(case.title, {"failed": job.failed})
            say(f"{case.title}: {job.failed}\n{job.last_words()}", self.begin)
        found = self.found["cases"].get(case.title, {"failed": "too few steps"})
        told = " ".join(f"{s:.3f}" for s in found["seconds"]) if "seconds" in found else str(found)[:300]
        say(f"{case.title}: {told}", self.begin)
        self._store()

    def _keep(self, case: Case, value: dict[str, Any]) -> None:
        self.found["cases"][case.title] = {k: v for k, v in value.items() if k != "case"}
        self._store()  # whoever ends this before the case does keeps what there is

    def _end_jobs_without(self, cases: list[Case]) -> None:
        wanted = {case.job for case in cases}
        for name, job in self.jobs.items():
            if name not in wanted and job.ready:
                job.end()

    def _store(self) -> None:
        self.found["seconds_in_all"] = time.monotonic() - self.begin
        self.file.write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=420.0, help="in all: it never takes longer")
    parser.add_argument("--start-seconds", type=float, default=200.0, help="for engines to start at most")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose title has one of these texts")
    parser.add_argument("--engine", default="auto", help="rollout.engine of ours")
    parser.add_argument("--peer-site", default="", help="folder with TRL, first on the path of its processes")
    parser.add_argument("--resume", action="store_true", help="measure what the stored file lacks")
    parser.add_argument("--smoke", action="store_true", help="try mathrl train --gpus 2 at first")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument(
        "--uncompiled", action="store_true", help="ours without torch.compile: starts a minute sooner"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    # the last resort where anything of the above hangs: nothing is lost, for every case is stored
    watchdog = threading.Timer(args.seconds - 3.0, _give_up, (scratch,))
    watchdog.daemon = True
    watchdog.start()
    measurement = Measurement(args, scratch)
    try:
        measurement.run()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(ratios(measurement.found), flush=True)
    print(f"stored {measurement.file} after {time.monotonic() - measurement.begin:.0f} s", flush=True)
    os._exit(0)


def _give_up(scratch: Path) -> None:
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    shutil.rmtree(scratch, ignore_errors=True)
    print("the time is over", flush=True)
    os._exit(1)


if __name__ == "__main__":
    main()
