"""The main job as a user runs it: whole, interrupted, killed and resumed, and refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mathrl.cli import main
from mathrl.run.folder import RunFolder

VARIES = ("time/", "memory/", "tokens/per_s")


@pytest.fixture(scope="module")
def recipe() -> Path:
    return Path(__file__).parents[1] / "tiny.toml"


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    assert main(["train", str(recipe), "--run.output_dir", str(out)]) == 0
    return out / "tiny"


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def lasting(row: dict) -> dict:
    """A row of metrics without what depends on the machine's speed."""
    return {name: value for name, value in row.items() if not name.startswith(VARIES)}


def test_a_run_leaves_what_scripts_rest_on(whole):
    summary = json.loads((whole / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(summary[when]) >= {"accuracy", "ci95", "n", "mean_at_k", "k"}
        low, high = summary[when]["ci95"]
        assert 0 <= low <= summary[when]["accuracy"] <= high <= 1
        assert (summary[when]["n"], summary[when]["k"]) == (12, 2)
    assert set(summary["difference"]) >= {"value", "ci95", "p_value"}
    gain = summary["after"]["accuracy"] - summary["before"]["accuracy"]
    assert summary["difference"]["value"] == pytest.approx(gain)
    assert summary["steps"] == 7
    assert summary["finished"] is True
    assert summary["seed"] == 0
    assert {"sft", "rollout", "verify", "update", "evaluate"} <= set(summary["seconds"])
    assert summary["tokens_sampled"] == sum(r["tokens/sampled"] for r in rows(whole))
    assert summary["versions"]["torch"] == torch.__version__
    assert len(rows(whole)) == 7
    for name in ("config.toml", "samples.jsonl", "report.html", "adapter/adapter_model.safetensors"):
        assert (whole / name).stat().st_size > 0
    assert (whole / "reference" / "model.safetensors").is_file()
    assert not list(whole.rglob("*.tmp"))


def test_the_supervised_stage_leaves_its_losses_and_the_report_draws_them(whole):
    losses = [json.loads(line) for line in (whole / "sft_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in losses] == [30, 60]
    assert 0 < losses[1]["sft/held_out_loss"] < losses[0]["sft/held_out_loss"]
    assert 0 <= losses[1]["sft/held_out_exact"] <= 1
    assert list((whole / "tensorboard" / "sft").glob("events.*"))
    assert "Loss of the supervised stage" in (whole / "report.html").read_text()


def test_the_adapter_is_the_one_that_was_trained(whole):
    tensors = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in tensors.items())


def test_the_same_command_again_says_that_it_is_finished(whole, recipe, capsys):
    before = (whole / "metrics.jsonl").read_bytes()
    assert main(["train", str(recipe), "--run.output_dir", str(whole.parent), "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_bytes() == before


def run_until(recipe: Path, out: Path, steps: int, sign: signal.Signals) -> tuple[int, str]:
    """Start or resume a run in its own process and send it a signal once ``steps`` steps are logged."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mathrl.cli", "train", str(recipe), "--run.output_dir", str(out), "--resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    metrics = out / "tiny" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.is_file() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(sign)
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def test_interrupted_and_killed_a_run_ends_bit_for_bit_as_the_whole_one(whole, recipe, tmp_path):
    status, text = run_until(recipe, tmp_path, 1, signal.SIGINT)
    assert status == 130
    assert f" train {tmp_path}/tiny/config.toml --resume" in text
    assert list((tmp_path / "tiny" / "checkpoints").glob("step-*"))  # saved on the way out
    status, _ = run_until(recipe, tmp_path, 5, signal.SIGKILL)
    assert status == -signal.SIGKILL
    assert len(rows(tmp_path / "tiny")) < 7
    assert main(["train", str(tmp_path / "tiny" / "config.toml"), "--resume"]) == 0
    resumed = tmp_path / "tiny"
    file = "adapter/adapter_model.safetensors"
    assert (resumed / file).read_bytes() == (whole / file).read_bytes()
    assert [lasting(r) for r in rows(resumed)] == [lasting(r) for r in rows(whole)]
    assert (resumed / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    mine, theirs = (json.loads((r / "summary.json").read_text()) for r in (resumed, whole))
    for name in ("before", "after", "difference", "tokens_sampled", "steps", "other_sets"):
        assert mine[name] == theirs[name]


def test_another_configuration_and_an_existing_folder_are_refused(whole, recipe, capsys):
    kept = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
    out = ["--run.output_dir", str(whole.parent)]
    assert main(["train", str(recipe), *out]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", str(recipe), *out, "--resume", "--lora.rank", "8"]) == 2
    error = capsys.readouterr().err
    assert "lora.rank is 4 there and 8 here" in error
    assert error.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == kept


def test_only_the_reference_can_be_made(recipe, tmp_path, whole):
    assert main(["sft", str(recipe), "--run.output_dir", str(tmp_path)]) == 0
    made, same = (r / "reference" / "model.safetensors" for r in (tmp_path / "tiny", whole))
    assert made.read_bytes() == same.read_bytes()


def problems_file(folder: Path, lines: list[dict]) -> str:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return str(path)


GOOD = [{"question": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(40)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quikstart"], ["'quikstart'", "'quickstart'"]),
        (["{recipe}", "--rollout.group_sise", "4"], ["rollout.group_sise", "rollout.group_size"]),
        (["{recipe}", "--rollout.group_size", "1"], ["group_size >= 2"]),
        (["{recipe}", "--data.path", "{folder}/problem.jsonl"], ["problem.jsonl", "'problems.jsonl'"]),
        (["{recipe}", "--data.path", "{good}", "--data.answer_field", "anser"],
         ["row 1", "'anser'", "'answer'"]),
        (["{recipe}", "--data.path", "{unread}", "--data.answer_type", "number"],
         ["rows 1, 2", "answer_type"]),
        (["{recipe}", "--data.path", "{good}", "--data.where", "level=9"], ["level"]),
        (["{recipe}", "--data.path", "{good}", "--data.answer_type", "numbr"], ["'numbr'", "'number'"]),
        (["{recipe}", "--data.path", "{good}"], ["worked solution", "--sft.path", "--sft.skip"]),
        (["{recipe}", "--sft.skip"], ["model.path"]),
        (["{recipe}", "--sft.skip", "--model.path", "{folder}/none"], ["none"]),
        (["{recipe}", "--sft.skip", "--model.path", "{no_tokenizer}"], ["no tokenizer"]),
        (["{recipe}", "--sft.skip", "--model.path", "{model}", "--model.prompt", "chat"], ["chat template"]),
        (["{recipe}", "--sft.skip", "--model.path", "{model}", "--rollout.max_prompt_tokens", "9"],
         ["max_prompt_tokens 9"]),
        (["{recipe}", "--rollout.max_prompt_tokens", "9"], ["max_prompt_tokens 9"]),
        (["{recipe}", "--model.context_length", "40"], ["context of 40", "--data.skip_long_prompts"]),
        (["{recipe}", "--rollout.problems_per_step", "61"], ["61", "60"]),
        (["{recipe}", "--rollout.engine", "vllm", "--run.device", "cuda"], ["cuda"]),
        (["{recipe}", "--algorithm.name", "gropo"], ["'gropo'", "'grpo'"]),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_before_anything_is_written(
    words, said, recipe, whole, tmp_path, capfd
):
    no_tokenizer = tmp_path / "no_tokenizer"
    no_tokenizer.mkdir()
    for name in ("config.json", "model.safetensors"):
        (no_tokenizer / name).write_bytes((whole / "reference" / name).read_bytes())
    (tmp_path / "unread").mkdir()
    places = {
        "recipe": recipe,
        "folder": tmp_path,
        "good": problems_file(tmp_path, GOOD),
        "unread": problems_file(tmp_path / "unread", [{"question": "Why?", "answer": "no idea"}] * 3),
        "model": whole / "reference",
        "no_tokenizer": no_tokenizer,
    }
    out = tmp_path / "runs"
    arguments = [word.format(**places) for word in words]
    capfd.readouterr()
    assert main(["train", *arguments, "--run.output_dir", str(out)]) == 2
    error = capfd.readouterr().err
    assert error.startswith("mathrl: ")
    assert error.count("\n") == 1, error
    for word in said:
        assert word in error
    assert not out.exists()


def test_real_problems_go_from_a_file_to_an_adapter(data_dir, recipe, whole, tmp_path, capsys):
    """GSM8K's own questions, a model far too small for them: what is tested is the way, not the score."""
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--sft.skip"]
    arguments += ["--model.path", str(whole / "reference"), "--train.num_steps", "1"]
    arguments += ["--data.path", str(data_dir / "gsm8k/train.jsonl"), "--data.max_problems", "30"]
    arguments += ["--data.eval_path", str(data_dir / "gsm8k/test.jsonl"), "--evaluate.num_problems", "5"]
    assert main([*arguments, "--data.skip_long_prompts"]) == 0
    said = capsys.readouterr().out
    assert "train.jsonl: 30 problems" in said or "prompt too long" in said
    run = RunFolder(tmp_path / "tiny")
    summary = run.read_summary()
    assert summary is not None
    assert summary["after"]["n"] == 5
    assert summary["after"]["accuracy"] <= 0.4
    evaluated = [json.loads(line) for line in (run.evaluations / "after.jsonl").read_text().splitlines()]
    questions = [json.loads(line)["question"] for line in (data_dir / "gsm8k/test.jsonl").open()]
    asked = {row["question"] for row in evaluated if "problem_id" in row}
    assert len(asked) == 5
    assert asked <= set(questions)
