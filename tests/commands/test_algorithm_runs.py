"""PPO, TRPO and others as whole runs: resumed with the critic, replayed from a batch, stopped in time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mathrl.cli import main
from mathrl.commands.replay import replay
from mathrl.run.checkpoint import CheckpointStore
from mathrl.training.objective import PolicyLoss

TINY = f"""
extends = "{Path(__file__).parents[1] / "tiny.toml"}"
[sft]
max_train_steps = 30
[rollout]
max_completion_tokens = 12
[train]
num_steps = 4
[evaluate]
num_problems = 4
every_steps = 0
num_samples = 0
[tracking]
tensorboard = false
save_batch_steps = 2
"""
KINDS = {
    "grpo, two epochs": [
        "--algorithm.name",
        "grpo",
        "--update.num_epochs",
        "2",
        "--update.num_minibatches",
        "2",
    ],
    "ppo": [
        "--algorithm.name",
        "ppo",
        "--algorithm.value_warmup_steps",
        "1",
        "--algorithm.value_rank",
        "2",
        "--reward.mask_truncated",
        "true",
    ],
    "trpo": ["--algorithm.name", "trpo", "--algorithm.cg_iterations", "4"],
    "trpo, critic": [
        "--algorithm.name",
        "trpo",
        "--algorithm.advantage",
        "gae",
        "--algorithm.cg_iterations",
        "4",
    ],
}
VARIES = ("time/", "memory/", "tokens/per_s")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> list[str]:
    """The recipe with a reference made once."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "tiny.toml").write_text(TINY)
    assert main(["sft", str(folder / "tiny.toml"), "--run.output_dir", str(folder)]) == 0
    reference = str(folder / "tiny" / "reference")
    return [str(folder / "tiny.toml"), "--model.path", reference, "--sft.skip", "true"]


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """Run a kind once, undisturbed, and remember where."""
    done: dict[str, Path] = {}

    def run(kind: str) -> Path:
        if kind not in done:
            out = tmp_path_factory.mktemp("whole")
            assert main(["train", *recipe, "--run.output_dir", str(out), *KINDS[kind]]) == 0
            done[kind] = out / "tiny"
        return done[kind]

    return run


def rows(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(VARIES)} for row in found]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_and_resumed_is_the_run_undisturbed(kind, recipe, whole, tmp_path):
    run = whole(kind)
    shutil.copytree(run, tmp_path / "tiny")
    store = CheckpointStore(tmp_path / "tiny" / "checkpoints", 2)
    shutil.rmtree(store.path(4))
    (tmp_path / "tiny" / "summary.json").unlink()
    assert main(["train", *recipe, "--run.output_dir", str(tmp_path), *KINDS[kind], "--resume"]) == 0
    assert rows(tmp_path / "tiny") == rows(run)
    adapters = [
        load_file(path / "adapter" / "adapter_model.safetensors") for path in (run, tmp_path / "tiny")
    ]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    states = [CheckpointStore(p / "checkpoints", 2) for p in (run, tmp_path / "tiny")]
    critics = [s.load(s.path(4))["trainer"]["update"]["critic"] for s in states]
    if "critic" in kind or kind == "ppo":
        assert critics[0]["num_calls"] == 4
        assert all(torch.equal(a, b) for a, b in zip(critics[0]["model"], critics[1]["model"], strict=True))
    else:
        assert critics == [None, None]


def test_each_kind_logs_what_it_does(whole):
    ppo = rows(whole("ppo"))
    assert [row["value/explained_variance"] is not None for row in ppo] == [True] * 4
    assert ["policy/loss" in row for row in ppo] == [False, True, True, True]  # the critic alone at first
    assert all("reward/kl" in row for row in ppo)
    for kind in ("trpo", "trpo, critic"):
        for row in rows(whole(kind)):
            assert row["trust_region/accepted"] in (0.0, 1.0)
            assert row["trust_region/kl"] <= 0.01
    assert "value/loss" in rows(whole("trpo, critic"))[0]
    assert "value/loss" not in rows(whole("trpo"))[0]
    assert max(row["policy/ratio_max"] for row in rows(whole("grpo, two epochs"))) > 1.0


# --- replay -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_batch_replays_to_the_same_numbers(kind, whole, capsys):
    batch = whole(kind) / "batches" / "step-00000004"
    found = {row.name: row for row in replay(batch)}
    assert found["policy/loss"].saved is not None
    assert found["policy/grad_norm"].saved > 0
    assert found["batch advantages"].difference == 0.0
    assert all(row.equal(1e-6) for row in found.values())
    logged = rows(whole(kind))[3]
    compared = {name for name in found if not name.startswith("batch ")}
    assert compared == {n for n in logged if n.startswith(("policy/", "value/", "trust_region/"))} | (
        {"reward/kl"} & logged.keys()
    ) | {n for n in logged if n in ("sync/ess", "sync/gap_mean", "sync/gap_max")}
    assert main(["replay", str(batch)]) == 0
    assert "numbers agree" in capsys.readouterr().out


def changed(batch: Path, out: Path, file: str, name: str) -> Path:
    shutil.copytree(batch, out)
    tensors = load_file(out / file)
    tensors[name].view(-1)[0] += 0.3
    save_file(tensors, out / file)
    return out


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("batch.safetensors", "rewards"),
        ("batch.safetensors", "ref_logprobs"),
        ("state.safetensors", "adapter.base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"),
    ],
)
def test_replay_tells_a_difference_by_its_exit_status(file, name, whole, tmp_path, capsys):
    batch = whole("grpo, two epochs") / "batches" / "step-00000002"
    reference = json.loads((batch / "batch.json").read_text())["reference"]
    spoiled = changed(batch, tmp_path / "spoiled", file, name)
    status = main(["replay", str(spoiled), "--reference", str((batch / reference).resolve())])
    assert status == 1
    assert "differs" in capsys.readouterr().out


def test_replay_refuses_what_is_no_batch(tmp_path, whole, capsys):
    assert main(["replay", str(tmp_path)]) == 2
    assert "tracking.save_batch_steps" in capsys.readouterr().err
    batch = whole("trpo") / "batches" / "step-00000002"
    shutil.copytree(batch, tmp_path / "b")
    assert main(["replay", str(tmp_path / "b")]) == 2
    assert "--reference" in capsys.readouterr().err
    (tmp_path / "b" / "batch.safetensors").write_bytes(b"no tensors")
    assert main(["replay", str(tmp_path / "b")]) == 2
    assert "damaged" in capsys.readouterr().err


# --- not finite ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_with_all_that_is_needed_to_find_out_why(
    recipe, tmp_path, monkeypatch, capsys
):
    """Step 4 meets an infinite loss: the checkpoint of step 2 stays, and the batch is kept to be replayed."""
    calls = []
    original = PolicyLoss.rows

    def spoiled(self, batch, outputs, totals):
        found = original(self, batch, outputs, totals)
        calls.append(1)
        if len(calls) == 4:
            losses = found.losses.clone()
            losses[5] = losses[5] * float("inf")
            return found._replace(losses=losses)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(PolicyLoss, "rows", spoiled)
        arguments = ["train", *recipe, "--run.output_dir", str(tmp_path), "--algorithm.name", "grpo"]
        assert main([*arguments, "--tracking.save_batch_steps", "0"]) == 2
    told = capsys.readouterr().err
    run = tmp_path / "tiny"
    assert "step 4: the loss is not finite (completions " in told
    assert "#2)" in told  # row 5 is the second completion of the second problem
    assert str(run / "checkpoints" / "step-00000002") in told
    assert CheckpointStore(run / "checkpoints", 2).steps() == [2]
    assert [row["step"] for row in rows(run)] == [1, 2, 3]
    kept = run / "batches" / "step-00000004"
    assert str(kept) in told
    assert main(["replay", str(kept)]) == 0  # finite where nothing spoils it
    assert "never finished" in capsys.readouterr().out
    assert main([*arguments, "--tracking.save_batch_steps", "0", "--resume"]) == 0
    assert [row["step"] for row in rows(run)] == [1, 2, 3, 4]
