"""What goes wrong on one rank ends all, in time and with one sentence; only the step under way is lost."""

import json
import signal
from pathlib import Path

import pytest
import torch
from forked_ranks import (
    TAG,
    ForkedRanks,
    Plant,
    fail,
    fill_the_disk,
    make_not_finite,
    move_the_weights,
    not_arrived,
)
from launched import left_behind
from safetensors.torch import load_file

from mathrl.cli import main
from mathrl.run.checkpoint import CheckpointStore

SAMPLE = "mathrl.training.trainer:Trainer._sample"
UPDATE = "mathrl.training.trainer:Trainer._update"
VARIES = ("time/", "memory/", "tokens/per_s", "ranks/", "sync/gap")


def run_of(home: Path) -> Path:
    return home / "home0" / "runs" / "tiny"


def saved_steps(home: Path) -> list[int]:
    return CheckpointStore(run_of(home) / "checkpoints", 1).steps()


def rows(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(VARIES)} for row in found]


def assert_same_run(found: Path, whole: Path) -> None:
    """The same problems, completions, rewards; numbers up to the order of float32 sums."""
    assert (found / "samples.jsonl").read_text() == (whole / "samples.jsonl").read_text()
    assert len(rows(found)) == len(rows(whole))
    for row, expected in zip(rows(found), rows(whole), strict=True):
        assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    adapters = [load_file(r / "adapter" / "adapter_model.safetensors") for r in (found, whole)]
    for name, tensor in adapters[1].items():
        torch.testing.assert_close(adapters[0][name], tensor, rtol=1e-3, atol=1e-5)


def go_on(arguments: list[str], home: Path, monkeypatch) -> Path:
    """To the end with one process."""
    monkeypatch.chdir(home / "home0")
    assert main([*arguments, "--resume"]) == 0
    return run_of(home)


@pytest.fixture(scope="module", autouse=True)
def stopped(arguments, tmp_path_factory):
    """A run one of whose ranks is stopped in its third step; it takes half a minute to be missed."""
    home = tmp_path_factory.mktemp("stopped")
    return home, ForkedRanks(arguments, home, Plant(1, f"{SAMPLE} 3", signal.SIGSTOP))


@pytest.fixture(scope="module", autouse=True)
def apart(arguments, tmp_path_factory):
    """A run whose ranks work in different folders; they look for each other's for a while."""
    return ForkedRanks(arguments, tmp_path_factory.mktemp("apart"), own_folders=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_is_killed_and_one_process_goes_on_as_if_nothing_had_been(
    arguments, whole, rank, tmp_path, monkeypatch
):
    ranks = ForkedRanks(arguments, tmp_path, Plant(rank, f"{SAMPLE} 4", signal.SIGKILL))
    codes = ranks.wait()
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 1, ranks.told
    (sentence,) = ranks.sentences
    assert f"rank {rank} (process " in sentence
    assert "was killed or crashed" in sentence
    assert saved_steps(tmp_path) == [3]  # by the rank that was left: all but the step under way
    assert_same_run(go_on(arguments, tmp_path, monkeypatch), whole)


def test_a_rank_is_killed_after_its_update(arguments, whole, tmp_path, monkeypatch):
    """The step is made on all ranks, and only its row is still to be written."""
    spot = "mathrl.rollout.transformers:TransformersEngine.load 5"  # the first is before step 1
    ranks = ForkedRanks(arguments, tmp_path, Plant(1, spot, signal.SIGKILL))
    assert ranks.wait() == [1, -signal.SIGKILL], ranks.told
    assert saved_steps(tmp_path) == [4]
    found = go_on(arguments, tmp_path, monkeypatch)
    assert [row["step"] for row in rows(found)] == [1, 2, 3, 4, 5, 6]


def test_an_exception_on_one_rank(arguments, tmp_path):
    ranks = ForkedRanks(arguments, tmp_path, Plant(1, "mathrl.rewards.scorer:RewardScorer.score 3", fail))
    assert ranks.wait() == [1, 1], ranks.told
    assert ranks.sentences == ["rank 1: ZeroDivisionError: planted (its traceback stands above)"]
    assert ranks.told.count("raise ZeroDivisionError") == 1
    assert saved_steps(tmp_path) == [2]


def test_a_reward_function_that_fails_on_one_rank(arguments, tmp_path):
    (tmp_path / "home0").mkdir()
    (tmp_path / "home0" / "own_rewards.py").write_text(
        "import os\n"
        "def brittle(problem, completion, verdict):\n"
        "    return 1 / (1 - int(os.environ['RANK']))\n"
    )
    ranks = ForkedRanks([*arguments, "--reward.functions", "own_rewards:brittle"], tmp_path)
    assert ranks.wait() == [2, 2], ranks.told
    (sentence,) = ranks.sentences
    assert sentence.startswith("rank 1: ")
    assert "brittle" in sentence


def test_a_loss_that_is_not_finite_on_one_rank(arguments, tmp_path):
    ranks = ForkedRanks(arguments, tmp_path, Plant(1, f"{UPDATE} 3", make_not_finite))
    assert ranks.wait() == [2, 2], ranks.told
    (sentence,) = ranks.sentences
    assert "step 3: rank 1: the loss is not finite (completions " in sentence
    kept = load_file(run_of(tmp_path) / "batches" / "step-00000003" / "batch.safetensors")
    assert kept["completion_ids"].shape[0] == 12  # of both ranks, in their places
    bad = kept["advantages"].isnan().any(dim=1).nonzero().flatten().tolist()
    samples = [json.loads(line) for line in (run_of(tmp_path) / "samples.jsonl").read_text().splitlines()]
    assert bad == [4]  # the first of rank 1's group, which is the second of the step
    assert samples


def test_an_engine_of_one_rank_that_keeps_old_weights(arguments, tmp_path):
    """Found after a step's rollout; the step before it is whole."""
    ranks = ForkedRanks(
        arguments, tmp_path, Plant(1, "mathrl.training.sentinel:Sentinel.finish 3", not_arrived)
    )
    assert ranks.wait() == [2, 2], ranks.told
    assert ranks.sentences == ["rank 1: only 0% ± 1% of the policy's move has arrived at the engine"]
    assert saved_steps(tmp_path) == [2]
    assert [row["step"] for row in rows(run_of(tmp_path))] == [1, 2]


def test_a_full_disk(arguments, tmp_path):
    ranks = ForkedRanks(arguments, tmp_path, Plant(0, "mathrl.run.tracking:Tracker.log 3", fill_the_disk))
    assert ranks.wait() == [2, 2], ranks.told
    sentence, last = ranks.sentences
    assert sentence.startswith("rank 0: ")
    assert "the disk is full; make room and go on with --resume" in sentence
    assert last.startswith(
        "the last whole step could not be saved: the checkpoint of step 3 cannot be written"
    )
    assert "Traceback" not in ranks.told


def test_adapters_that_differ(arguments, tmp_path):
    ranks = ForkedRanks(arguments, tmp_path, Plant(1, f"{SAMPLE} 2", move_the_weights))
    assert ranks.wait() == [2, 2], ranks.told
    (sentence,) = ranks.sentences
    assert "step 5: the adapter of rank 1 is no longer that of rank 0" in sentence


def test_a_folder_that_is_not_shared(apart):
    assert apart.wait() == [2, 2], apart.told
    (sentence,) = apart.sentences
    assert sentence.startswith("rank 1: ")
    assert "is not the folder that rank 0 writes to" in sentence


def test_what_is_wrong_on_all_ranks_is_said_once_and_of_none(arguments, tmp_path):
    ranks = ForkedRanks([*arguments, "--model.path", "./nowhere"], tmp_path)
    assert ranks.wait() == [2, 2], ranks.told
    (sentence,) = ranks.sentences
    assert not sentence.startswith("rank")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_one_rank_is_told_to_stop(arguments, whole, signum, tmp_path, monkeypatch):
    ranks = ForkedRanks(arguments, tmp_path, Plant(1, "mathrl.rewards.scorer:RewardScorer.score 4", signum))
    assert ranks.wait() == [128 + signum] * 2, ranks.told
    assert ranks.sentences == []
    assert f"Stopped by {signum.name}. Step 3 of 6 is saved." in ranks.told
    assert_same_run(go_on(arguments, tmp_path, monkeypatch), whole)


def test_a_stopped_rank_is_missed_within_a_minute(stopped, arguments, whole, monkeypatch):
    home, ranks = stopped
    codes = ranks.wait()
    assert codes == [1, -signal.SIGKILL], ranks.told  # what is stopped hears nothing but a kill
    (sentence,) = ranks.sentences
    assert "rank 1 (process " in sentence
    assert "has given no sign of life for 30 s" in sentence
    assert ranks.logs[0].stat().st_mtime - ranks.logs[1].stat().st_mtime < 60
    assert saved_steps(home) == [2]


def test_nothing_is_left_behind():
    """Of all the runs before: neither ranks nor what they had started."""
    left_behind(TAG)
