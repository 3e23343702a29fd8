"""The main job as a user runs it: whole, interrupted, killed and resumed, and refused."""

import json
import os
import shutil
import signal
import sys
import types
from pathlib import Path

import pytest
import torch
from killed_run import run_with_signal
from safetensors.torch import load_file

from mathrl.cli import main
from mathrl.evaluation.completions import read_evaluation
from mathrl.report.run_record import read_run
from mathrl.run.checkpoint import CheckpointStore
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
    assert f" CPU, {os.cpu_count()} cores" in summary["hardware"] or torch.cuda.is_available()
    assert f"{summary['hardware']}, python " in (whole / "report.html").read_text(encoding="utf-8")
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


def assert_same_end(run: Path, whole: Path) -> None:
    """Whatever happened to it on the way, the run ended as the undisturbed one."""
    file = "adapter/adapter_model.safetensors"
    assert (run / file).read_bytes() == (whole / file).read_bytes()
    assert [lasting(r) for r in rows(run)] == [lasting(r) for r in rows(whole)]
    assert (run / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    mine, theirs = (json.loads((r / "summary.json").read_text()) for r in (run, whole))
    for name in ("before", "after", "difference", "tokens_sampled", "steps", "best_step", "other_sets"):
        assert mine[name] == theirs[name]
    for when in ("before", "after"):
        mine, theirs = (read_evaluation(r / "evaluations" / f"{when}.jsonl").records for r in (run, whole))
        assert mine == theirs
    assert (run / "report.html").is_file()
    best = [CheckpointStore(r / "checkpoints", 2).best() for r in (run, whole)]
    assert best[0].name == best[1].name
    left = [p.name for p in run.rglob("*") if p.name.endswith((".tmp", ".old")) or p.name == "lock"]
    assert left == []
    assert not (run / "earlier").exists()


SFT_STEP = "call mathrl.training.sft:_Stage._train"
COMPLETION = "call mathrl.evaluation.completions:CompletionLog.add"
ROLLOUT = "call mathrl.training.trainer:Trainer._rollout"
UPDATE = "call mathrl.training.trainer:Trainer._update"
LOOK = "call mathrl.commands.held_out:HeldOut.look"
LOG = "call mathrl.run.tracking:Tracker.log"

KILLED_AT = (  # one process each, in this order; every next one goes on from what the one before left
    "rename .mathrl-run",
    "rename config.toml",
    f"{SFT_STEP} 25",
    "rename reference",
    "call mathrl.commands.train:make_engine 1",
    f"{COMPLETION} 5",
    f"{COMPLETION} 20",
    "rename before.jsonl",
    "rename before.json",
    f"{ROLLOUT} 1",
    f"{UPDATE} 2",
    "rename step-00000002",
    f"{LOOK} 1",
    f"{LOG} 1",
    "rename step-00000003",
    "call mathrl.run.checkpoint:CheckpointStore._forget 1",
    f"{ROLLOUT} 2",
    "rename step-00000006",
    "rename step-00000007",
    "rename adapter",
    f"{COMPLETION} 5",
    "rename after.jsonl",
    "rename after.json",
    "rename summary.json",
    "rename report.html",
)
STOPPED_AT = (
    f"{SFT_STEP} 25",
    f"{COMPLETION} 5",
    f"{ROLLOUT} 2",
    f"{UPDATE} 2",
    f"{LOOK} 1",
    f"{COMPLETION} 9",
)


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("killed")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stopped")


@pytest.mark.parametrize("spot", [*KILLED_AT, ""], ids=lambda spot: spot.rpartition(":")[2] or "nowhere")
def test_killed_at_any_stage_or_between_a_run_ends_bit_for_bit_as_the_whole_one(spot, killed, whole, recipe):
    arguments = ["train", str(recipe), "--run.output_dir", str(killed), "--resume"]
    if spot:
        status = run_with_signal(arguments, spot, signal.SIGKILL, killed / "log")
        assert status == -signal.SIGKILL, (killed / "log").read_text()
        assert json.loads((killed / "tiny" / "lock").read_text())["pid"] != os.getpid()
        return
    assert main(arguments) == 0
    assert_same_end(killed / "tiny", whole)


@pytest.mark.parametrize("spot", [*STOPPED_AT, ""], ids=lambda spot: spot.rpartition(":")[2] or "nowhere")
def test_asked_to_stop_a_run_saves_says_how_to_go_on_and_ends_the_same(spot, stopped, whole, recipe):
    config = stopped / "tiny" / "config.toml"
    arguments = ["train", str(recipe), "--run.output_dir", str(stopped), "--resume"]
    if not spot:
        assert main(arguments) == 0
        assert_same_end(stopped / "tiny", whole)
        return
    before = CheckpointStore(stopped / "tiny" / "checkpoints", 2).steps()
    signum = signal.SIGINT if spot == STOPPED_AT[2] else signal.SIGTERM
    assert run_with_signal(arguments, spot, signum, stopped / "log") == 128 + signum
    said = (stopped / "log").read_text()
    assert f"Stopped by {signum.name}." in said
    assert f" train {config} --resume" in said
    assert "Traceback" not in said
    assert not (stopped / "tiny" / "lock").exists()
    if spot in STOPPED_AT[2:5]:
        saved = CheckpointStore(stopped / "tiny" / "checkpoints", 2).steps()[-1]
        assert f"Step {saved} of 7 is saved" in said
        assert saved >= before[-1] if spot == STOPPED_AT[4] else saved > (before[-1] if before else 0)


def a_copy(whole: Path, folder: Path) -> Path:
    return Path(shutil.copytree(whole, folder / "tiny"))


def test_a_finished_run_can_be_lengthened_and_keeps_its_first_results(whole, recipe, tmp_path, capsys):
    run = a_copy(whole, tmp_path)
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--resume"]
    assert main([*arguments, "--train.num_steps", "9"]) == 0
    said = capsys.readouterr().out
    assert "resumed after step 7" in said
    assert f"the results so far are kept in {run}/earlier/step-00000007" in said
    assert [r["step"] for r in rows(run)] == list(range(1, 10))
    assert [lasting(r) for r in rows(run)[:7]] == [lasting(r) for r in rows(whole)]
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["num_steps"], summary["finished"]) == (9, 9, True)
    earlier = run / "earlier" / "step-00000007"
    for kept in ("summary.json", "report.html", "adapter/adapter_model.safetensors"):
        assert (earlier / kept).read_bytes() == (whole / kept).read_bytes()
        assert (run / kept).read_bytes() != (whole / kept).read_bytes()
    first, second = (read_evaluation(f / "after.jsonl") for f in (earlier, run / "evaluations"))
    assert (first.version, second.version) == (7, 9)
    assert first.records == read_evaluation(whole / "evaluations" / "after.jsonl").records
    assert read_run(run).evaluations["held_out", "after"] == second
    assert main([*arguments, "--train.num_steps", "8"]) == 0  # of these it has made nine
    assert "is finished after 9 steps" in capsys.readouterr().out
    assert read_evaluation(run / "evaluations" / "after.jsonl") == second


def test_lengthened_while_its_last_evaluation_was_not_done_a_run_goes_on(whole, recipe, tmp_path, capsys):
    run = a_copy(whole, tmp_path)
    for name in ("summary.json", "report.html", "evaluations/after.json"):
        (run / name).unlink()
    after = run / "evaluations" / "after.jsonl"
    begun = b"".join(after.read_bytes().splitlines(keepends=True)[:5])
    after.write_bytes(begun)
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--resume"]
    assert main([*arguments, "--train.num_steps", "8"]) == 0
    assert f"which is kept as {run}/earlier/after-1.jsonl" in capsys.readouterr().out
    assert (run / "earlier" / "after-1.jsonl").read_bytes() == begun
    assert read_evaluation(after).version == 8


def test_a_run_goes_on_with_other_looks_and_another_cut_of_the_same_work(whole, recipe, tmp_path):
    """Its steps stay, and before and after are measured alike."""
    run = a_copy(whole, tmp_path)
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--resume"]
    arguments += ["--train.num_steps", "8", "--evaluate.num_samples", "1", "--evaluate.num_problems", "4"]
    arguments += ["--evaluate.every_steps", "8", "--update.micro_batch_tokens", "64"]
    assert main([*arguments, "--update.fused_lora", "false", "--update.share_prompts", "no"]) == 0
    assert [lasting(r) for r in rows(run)[:7]] == [lasting(r) for r in rows(whole)]
    assert "held_out/accuracy" in rows(run)[7]
    for name in ("before", "after"):
        evaluation = read_evaluation(run / "evaluations" / f"{name}.jsonl")
        assert (evaluation.n, evaluation.k) == (4, 1)
    first, again = (read_evaluation(f / "evaluations" / "before.jsonl") for f in (whole, run))
    assert [r.greedy for r in again.records] == [r.greedy for r in first.records[:4]]


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        (["--evaluate.every_steps", "1", "--evaluate.early_stop_patience", "1"], 2),
        (["--train.max_seconds", "0.000001"], 1),
    ],
    ids=["early stop", "time"],
)
def test_a_run_that_ended_before_its_last_step_makes_no_further_one(limit, steps, whole, recipe, tmp_path):
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--resume", *limit]
    arguments += ["--sft.skip", "--model.path", str(whole / "reference")]
    assert main(arguments) == 0
    run = tmp_path / "tiny"
    for _ in range(2):
        assert len(rows(run)) == steps
        assert json.loads((run / "summary.json").read_text())["steps"] == steps
        before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
        assert main(arguments) == 0  # it is finished
        assert {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")} == before
        (run / "summary.json").unlink()
        (run / "report.html").unlink()
        assert main(arguments) == 0  # as after a kill in the last evaluation


def test_without_checkpoints_on_the_way_a_run_ends_the_same(whole, recipe, tmp_path):
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--resume"]
    arguments += ["--checkpoint.every_steps", "0", "--evaluate.every_steps", "0"]
    arguments += ["--sft.skip", "--model.path", str(whole / "reference")]
    log = tmp_path / "log"
    assert run_with_signal(arguments, f"{ROLLOUT} 3", signal.SIGTERM, log) == 143
    assert "Step 2 of 7 is saved" in log.read_text()
    assert run_with_signal(arguments, f"{COMPLETION} 5", signal.SIGKILL, log) == -signal.SIGKILL
    assert main(arguments) == 0
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "tiny" / file).read_bytes() == (whole / file).read_bytes()
    assert len(rows(tmp_path / "tiny")) == 7


def test_while_groups_train_and_others_are_sampled_a_run_can_be_stopped_and_killed(whole, recipe, tmp_path):
    """It ends as the one that trained after sampling, up to the order of sums."""
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--resume", "--train.overlap", "on"]
    arguments += ["--checkpoint.every_steps", "1", "--evaluate.every_steps", "0"]
    arguments += ["--update.micro_batch_tokens", "16"]  # each of a step's three groups trains by itself
    arguments += ["--sft.skip", "--model.path", str(whole / "reference"), "--evaluate.num_problems", "2"]
    log, train = tmp_path / "log", "call mathrl.training.overlap:Overlap._train"
    assert run_with_signal(arguments, f"{train} 8", signal.SIGTERM, log) == 143
    said = log.read_text()
    assert "training: while others of a step are sampled" in said
    assert "Step 2 of 7 is saved" in said
    assert "Traceback" not in said
    assert run_with_signal(arguments, f"{train} 4", signal.SIGKILL, log) == -signal.SIGKILL
    assert main(arguments) == 0
    assert [row["step"] for row in rows(tmp_path / "tiny")] == list(range(1, 8))
    assert all("overlap/trained_frac" in row for row in rows(tmp_path / "tiny"))
    file = "adapter/adapter_model.safetensors"
    mine, theirs = (load_file(run / file) for run in (tmp_path / "tiny", whole))
    for name, tensor in theirs.items():
        assert (mine[name] - tensor).norm() < 1e-3 * tensor.norm(), name
    for mine, theirs in zip(rows(tmp_path / "tiny"), rows(whole), strict=True):
        assert mine["tokens/sampled"] == theirs["tokens/sampled"]
        assert mine["policy/grad_norm"] == pytest.approx(theirs["policy/grad_norm"], rel=1e-3)


def test_a_tracker_that_refuses_is_heard_of_before_anything_is_trained(recipe, tmp_path, capsys, monkeypatch):
    def refuse(**_):
        raise RuntimeError("No API key configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=refuse))
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--tracking.wandb"]
    assert main(arguments) == 2
    assert "tracking.wandb cannot begin (No API key configured): log in" in capsys.readouterr().err
    assert not (tmp_path / "tiny" / "reference").exists()


def test_a_second_process_in_a_run_is_refused(whole, recipe, tmp_path, capsys):
    run = a_copy(whole, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    arguments = ["train", str(recipe), "--run.output_dir", str(tmp_path), "--train.num_steps", "9"]
    with RunFolder(run).lock:
        for flag in ("--resume", "--overwrite"):
            assert main([*arguments, flag]) == 2
            said = capsys.readouterr().err
            assert f"the run in {run} is being worked on by process {os.getpid()} on " in said
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


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


def test_only_the_reference_can_be_made(recipe, tmp_path, whole, capsys):
    assert main(["sft", str(recipe), "--run.output_dir", str(tmp_path)]) == 0
    assert "SFT 60/60" in capsys.readouterr().out
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
        (["{recipe}", "--lora.targets", "q_proj,qq_proj"], ["'qq_proj', which fits no", "'q_proj'"]),
        (["{recipe}", "--data.path", "{folder}/problem.jsonl"], ["problem.jsonl", "'problems.jsonl'"]),
        (["{recipe}", "--data.path", "{good}", "--data.answer_field", "anser"],
         ["row 1", "'anser'", "'answer'"]),
        (["{recipe}", "--data.path", "{unread}", "--data.answer_type", "number"],
         ["3 of 3 rows", "answer_type", "'no idea' (expected one number"]),
        (["{recipe}", "--data.path", "{good}", "--data.where", "level=9"], ["level"]),
        (["{recipe}", "--data.path", "{good}", "--data.answer_type", "numbr"], ["'numbr'", "'number'"]),
        (["{recipe}", "--data.path", "{good}", "--data.extract", "boxd"], ["data.extract", "'boxed'"]),
        (["{recipe}", "--sft.path", "{good}", "--data.answer_type", "numbr"], ["'numbr'", "'number'"]),
        (["{recipe}", "--data.extract", "boxd"], ["data.extract", "'boxed'"]),
        (["{recipe}", "--data.extract", "nowhere:rule"], ["'nowhere:rule'", "ModuleNotFoundError"]),
        (["{recipe}", "--data.path", "{good}"], ["worked solution", "--sft.path", "--sft.skip"]),
        (["{recipe}", "--sft.skip"], ["model.path"]),
        (["{recipe}", "--sft.skip", "--model.path", "{folder}/none"], ["none"]),
        (["{recipe}", "--sft.skip", "--model.path", "{no_tokenizer}"], ["no tokenizer"]),
        (["{recipe}", "--sft.skip", "--model.path", "{cut}"], ["model.safetensors is damaged", "again"]),
        (["{recipe}", "--sft.skip", "--model.path", "{shards}"], ["lacks model-00002.safetensors"]),
        (["{recipe}", "--sft.skip", "--model.path", "{settings}"],
         ["could be loaded", "hidden_size", "expected int"]),
        (["{recipe}", "--sft.skip", "--model.path", "{model}", "--model.prompt", "chat"], ["chat template"]),
        (["{recipe}", "--sft.skip", "--model.path", "{model}", "--rollout.max_prompt_tokens", "9"],
         ["max_prompt_tokens 9"]),
        (["{recipe}", "--rollout.max_prompt_tokens", "9"], ["max_prompt_tokens 9"]),
        (["{recipe}", "--model.context_length", "40"], ["context of 40", "--data.skip_long_prompts"]),
        (["{recipe}", "--rollout.problems_per_step", "61"], ["61", "60"]),
        (["{recipe}", "--rollout.engine", "vllm", "--run.device", "cuda"], ["cuda"]),
        (["{recipe}", "--algorithm.name", "gropo"], ["'gropo'", "'grpo'"]),
        (["{recipe}", "--tracking.wandb"], ["tracking.wandb", "pip install 'mathrl[wandb]'"]),
        (["{recipe}", "--run.name", ".."], ["run.name '..'", "--run.output_dir"]),
        (["{recipe}", "--reward.memory_mb", "128"], ["reward.memory_mb", "256"]),
    ],
)  # fmt: skip
def test_bad_input_ends_in_one_sentence_before_anything_is_written(
    words, said, recipe, whole, tmp_path, capfd, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    no_tokenizer = tmp_path / "no_tokenizer"
    no_tokenizer.mkdir()
    for name in ("config.json", "model.safetensors"):
        (no_tokenizer / name).write_bytes((whole / "reference" / name).read_bytes())
    (tmp_path / "unread").mkdir()
    cut, shards, settings = (
        Path(shutil.copytree(whole / "reference", tmp_path / name)) for name in ("cut", "shards", "settings")
    )
    weights = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    told = json.loads((settings / "config.json").read_text()) | {"hidden_size": "wide"}
    (settings / "config.json").write_text(json.dumps(told))
    places = {
        "cut": cut,
        "shards": shards,
        "settings": settings,
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
    assert "train.jsonl: 30 problems" in said or "prompt over rollout.max_prompt_tokens" in said
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
