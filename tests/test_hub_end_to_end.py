"""The real client libraries against a hub on loopback: data sets, models, refusals, broken downloads, a push.

The libraries read the hub's address when they are imported, so all commands run in one process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import FakeHub, Repo

from mathrl.cli import main

TINY = Path(__file__).with_name("tiny.toml")
ROOT = Path(__file__).parents[1]
ROWS = [
    {
        "question": f"{i} pens and {i + 1} pens are how many?",
        "answer": f"{i} + {i + 1}\n#### {2 * i + 1}",
    }
    for i in range(80)
]
CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
- config_name: socratic
  data_files:
  - split: train
    path: socratic/train.jsonl
---
"""
BENCHMARK = """
[mine]
hub = "owner/mine"
revision = "v1"
split = "test"
answer_type = "number"
rule = "gsm8k"
"""
SMALL = "--train.num_steps 1 --evaluate.num_problems 4 --evaluate.every_steps 0 --run.num_threads 1"
TRAIN = f"train {TINY} --data.source gsm8k --model.path owner/tiny --sft.skip {SMALL}"
COMMANDS = {
    "train": f"{TRAIN} --run.name a",
    "revision": f"{TRAIN} --run.name b --model.path owner/tiny@v1",
    "eval": "eval owner/tiny --benchmark gsm8k --max-problems 3 --max-completion-tokens 8",
    "own benchmark": "eval owner/tiny@v1 --benchmark bench.toml --max-completion-tokens 8",
    "push": "export runs/a out --push owner/mine",
    "a configuration": "data openai/gsm8k --data.config socratic --show 0",
    "no configuration": "data openai/gsm8k --show 0",
    "no such model": f"{TRAIN} --run.name c --model.path owner/tinny",
    "no such revision": f"{TRAIN} --run.name c --model.path owner/tiny@v9",
    "gated model": f"{TRAIN} --run.name c --model.path owner/closed",
    "gated data": f"{TRAIN} --run.name c --data.source owner/secret",
    "no such data": f"{TRAIN} --run.name c --data.source owner/nothing",
    "broken data": f"{TRAIN} --run.name c --data.source owner/broken",
    "broken model": f"{TRAIN} --run.name c --model.path owner/cut",
    "push without login": "export runs/a out2 --push owner/mine",
}
RUN = """
import contextlib, io, json, os, sys
from mathrl.cli import main
results = {}
for name, command in json.loads(sys.argv[1]).items():
    if name == "push without login":
        os.environ.pop("HF_TOKEN")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command.split())
    results[name] = [status, out.getvalue(), err.getvalue()]
print("\\n" + json.dumps(results))
"""


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(status, stdout, stderr) of each command, the folder they ran in, and the hub that they asked."""
    folder = tmp_path_factory.mktemp("hub")
    made = ["--run.output_dir", str(folder / "made"), "--sft.max_train_steps", "2"]
    assert main(["sft", str(TINY), *made]) == 0
    model = contents(folder / "made" / "tiny" / "reference")
    train, test = lines(ROWS[:60]), lines(ROWS[60:])
    sets = {"README.md": CARD.encode(), "main/train.jsonl": train, "main/test.jsonl": test}
    sets["socratic/train.jsonl"] = lines(ROWS[:40])
    plain = {"train.jsonl": train, "test.jsonl": test}
    (folder / "bench.toml").write_text(BENCHMARK)
    with FakeHub() as hub:
        hub.repos |= {
            "openai/gsm8k": Repo("dataset", {"main": sets}),
            "owner/mine": Repo("dataset", {"main": {}, "v1": {"test.jsonl": lines(ROWS[60:64])}}),
            "owner/secret": Repo("dataset", {"main": plain}, gated=True),
            "owner/broken": Repo("dataset", {"main": plain}, breaks={"train.jsonl"}),
            "owner/tiny": Repo("model", {"main": model, "v1": model}),
            "owner/closed": Repo("model", {"main": model}, gated=True),
            "owner/cut": Repo("model", {"main": model}, breaks={"model.safetensors"}),
        }
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "cache"), "HF_TOKEN": "hf_good",
            "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(COMMANDS)],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        yield json.loads(done.stdout.splitlines()[-1]), folder, hub


def test_train_with_model_and_data_of_the_hub(results):
    found, folder, hub = results
    for name in ("train", "revision"):
        status, _, errors = found[name]
        assert status == 0, errors
    summary = json.loads((folder / "runs" / "a" / "summary.json").read_text())
    assert summary["data"] == "openai/gsm8k train"
    adapter = json.loads((folder / "runs" / "a" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "owner/tiny"
    assert any(path.startswith("GET /api/models/owner/tiny/revision/v1") for path in hub.asked)


def test_a_configuration_of_a_set_is_chosen(results):
    status, told, errors = results[0]["a configuration"]
    assert status == 0, errors
    assert "0 of 40 rows" in " ".join(told.split())


def test_evaluations_with_benchmarks_of_the_hub(results):
    found, folder, _ = results
    for name in ("eval", "own benchmark"):
        status, _, errors = found[name]
        assert status == 0, errors
    (own,) = (folder / "evaluations").glob("tiny*/mine/completions.json")
    assert json.loads(own.read_text())["n"] == 4


def test_a_run_is_pushed_with_its_card(results):
    found, folder, hub = results
    status, told, errors = found["push"]
    assert status == 0, errors
    assert "owner/mine" in told
    pushed = {name.removeprefix("owner/mine/"): data for name, data in hub.uploaded.items()}
    for path in (*(folder / "out" / "merged").iterdir(), *(folder / "out" / "adapter").iterdir()):
        name = path.name if path.parent.name == "merged" else f"adapter/{path.name}"
        assert pushed[name] == path.read_bytes()
    card = pushed["README.md"].decode()
    summary = json.loads((folder / "runs" / "a" / "summary.json").read_text())
    assert "base_model: owner/tiny" in card
    assert f"{100 * summary['after']['accuracy']:.1f} %" in card
    assert '"max_completion_tokens": 16' in card
    assert "openai/gsm8k" in card or "gsm8k" in card


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no such model", "no model 'owner/tinny' on the hub, or it is private"),
        ("no such revision", "model 'owner/tiny' has no revision 'v9'"),
        (
            "gated model",
            "'owner/closed' is gated: accept its terms at https://huggingface.co/owner/closed",
        ),
        (
            "gated data",
            "'owner/secret' is gated: accept its terms at https://huggingface.co/datasets/owner/",
        ),
        (
            "no configuration",
            "'openai/gsm8k' has several configurations, main, socratic: choose one with --data.config",
        ),
        ("no such data", "no data set 'owner/nothing' on the hub"),
        ("broken data", "the download of data set 'owner/broken' from the hub broke off"),
        ("broken model", "the download of model 'owner/cut' from the hub broke off"),
        ("push without login", "owner/mine may not be written"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(results, name, words):
    found, folder, _ = results
    status, _, errors = found[name]
    assert status == 2
    assert words in errors
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("mathrl:")]) == 1
    assert not (folder / "runs" / "c").exists()
