"""The templates for several hosts: a whole new torchrun again and again, each with --resume."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

import mathrl

HOSTS = Path(mathrl.__file__).parent / "recipes" / "hosts"
FAKE = """#!/bin/sh
echo "$@" >> calls
[ "$1" != torchrun ] || shift  # srun's
trap 'echo told >> calls; kill $asleep; exit 1' TERM
case "$PLANT" in
    twice) [ "$(wc -l < calls)" -gt 2 ] ;;
    always) exit 1 ;;
    waits) sleep 60 & asleep=$!; wait ;;
esac
"""


def start(template: str, at: Path, plant: str) -> subprocess.Popen:
    for name in ("torchrun", "srun", "scontrol"):
        at.joinpath(name).write_text(FAKE if name != "scontrol" else "#!/bin/sh\necho host0\necho host1\n")
        at.joinpath(name).chmod(0o755)
    environment = os.environ | {"PATH": f"{at}:{os.environ['PATH']}", "PLANT": plant, "PAUSE": "0"}
    environment |= {"HOSTS": "2", "FIRST": "host0:29400", "RESTARTS": "3"}
    environment |= {"SLURM_NNODES": "2", "SLURM_JOB_ID": "9400", "SLURM_JOB_NODELIST": "host[0-1]"}
    words = ["bash", str(HOSTS / template), "recipe.toml", "--train.num_steps", "7"]
    return subprocess.Popen(words, cwd=at, env=environment)


def calls(at: Path) -> list[str]:
    return (at / "calls").read_text().splitlines()


@pytest.mark.parametrize("template", ["torchrun.sh", "slurm.sh"])
@pytest.mark.parametrize(("plant", "code", "times"), [("twice", 0, 3), ("always", 1, 4)])
def test_a_run_that_ends_badly_is_started_anew(template, plant, code, times, tmp_path):
    assert start(template, tmp_path, plant).wait(20) == code
    assert len(calls(tmp_path)) == times
    for call in calls(tmp_path):
        assert re.search(r"--nnodes 2 .*--rdzv-endpoint host0:29400 -m mathrl train ", call)
        assert call.endswith("train recipe.toml --train.num_steps 7 --resume")


@pytest.mark.parametrize("template", ["torchrun.sh", "slurm.sh"])
def test_a_signal_reaches_torchrun_and_ends_the_loop(template, tmp_path):
    process = start(template, tmp_path, "waits")
    while not (tmp_path / "calls").exists():
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert [call for call in calls(tmp_path) if call == "told"] == ["told"]
    assert len(calls(tmp_path)) == 2


def test_the_cluster_file_starts_what_the_scripts_start():
    """No parser of YAML is among the dependencies: what it says is looked for as text."""
    text = (HOSTS / "kubernetes.yaml").read_text()
    hosts = re.search(r'--nnodes, "(\d+)"', text)[1]
    assert f"completions: {hosts}" in text
    assert f"parallelism: {hosts}" in text
    name = re.search(r"kind: Job\nmetadata:\n  name: (\w+)", text)[1]
    assert f'"{name}-0.{name}:29400"' in text
    assert f"subdomain: {name}" in text
    assert f"job-name: {name}" in text
    assert "-m, mathrl, train" in text
    assert "--resume]" in text
