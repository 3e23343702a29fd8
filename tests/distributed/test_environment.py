"""What a rank makes of its environment, and what the command line may ask of ranks."""

import os

import pytest

from mathrl.cli import main
from mathrl.commands.launch import LaunchOptions
from mathrl.distributed import environment, session
from mathrl.distributed.environment import Place, place, settle_in, workers_a_rank
from mathrl.distributed.timing import step_metrics
from mathrl.errors import LostPartError, UserError


@pytest.fixture
def told(monkeypatch):
    """Tell this process of its place, before it has settled in; what it changes is undone."""

    def tell(rank: int, world: int, local_world: int, visible: str | None) -> None:
        names = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % local_world}
        for name, value in (names | {"LOCAL_WORLD_SIZE": local_world}).items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
    monkeypatch.setattr(environment, "_settled", False)
    monkeypatch.setattr(environment.logging, "disable", lambda level: None)
    monkeypatch.setattr(environment.warnings, "simplefilter", lambda kind: None)
    return tell


@pytest.mark.parametrize(
    ("rank", "visible", "own"),
    [
        (1, None, "1"),
        (5, None, "1"),
        (2, "4, 5,6,7", "6"),
        (1, "GPU-a,GPU-b,GPU-c,GPU-d", "GPU-b"),
        (3, "", ""),
    ],
)
def test_a_rank_sees_the_gpu_of_its_number_on_its_host(told, rank, visible, own):
    """Eight ranks on two hosts; what a scheduler has left visible is counted from there."""
    told(rank, 8, 4, visible)
    assert settle_in() == Place(rank, 8, rank % 4, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own
    settle_in()  # once more changes nothing
    assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_more_ranks_than_gpus_are_refused(told):
    told(2, 3, 3, "0,1")
    with pytest.raises(UserError, match="number 3 of 3 on its host, which shows 2 GPUs"):
        settle_in()


def test_one_process_keeps_all_gpus(told, monkeypatch):
    told(0, 1, 1, None)
    assert settle_in() == Place()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    "names",
    [
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "two"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
    ],
)
def test_places_that_cannot_be_are_refused(names):
    with pytest.raises(UserError, match="torchrun"):
        place(names)


def test_half_a_place_is_none():
    assert place({"RANK": "3"}) == place({"WORLD_SIZE": "4"}) == Place()


def test_helpers_share_the_cores_of_a_host(told, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)), raising=False)
    assert workers_a_rank(30) == 30  # one process has them all
    for local_world, workers in ((2, 15), (4, 7), (32, 1)):
        told(0, 64, local_world, "")
        assert workers_a_rank(30) == workers
        assert workers_a_rank(1) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gpus": -1}, "cannot be below 0"),
        ({"gpus": 2, "ranks": 2}, "exclude each other"),
        ({"max_restarts": 1}, "--max-restarts needs --gpus N or --ranks N"),
    ],
)
def test_launch_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        _ = LaunchOptions(**options).wanted


def test_ranks_are_not_started_by_ranks(told):
    told(0, 2, 2, "")
    with pytest.raises(UserError, match="torchrun has started the ranks already"):
        _ = LaunchOptions(gpus=2).wanted
    assert not LaunchOptions().wanted


@pytest.mark.parametrize("words", [["train", "quickstart"], ["sft", "quickstart"], ["eval", "some/model"]])
def test_more_gpus_than_there_are_is_one_sentence(words, capsys):
    assert main([*words, "--gpus", "999"]) == 2
    assert "--gpus 999: there are " in capsys.readouterr().err


def test_a_command_of_one_process_is_refused_under_torchrun(told, capsys):
    told(0, 2, 2, "")
    assert main(["export", "run", "out"]) == 2
    assert "works in one process: start it without torchrun" in capsys.readouterr().err


def test_the_plan_is_of_one_gpu(capsys):
    words = ["plan", "quickstart", "--gpu-memory-gib", "24", "--rollout.problems_per_step", "64"]
    assert main([*words, "--gpus", "4"]) == 0
    four = capsys.readouterr().out.splitlines()
    assert main([*words[:-1], "16"]) == 0
    assert four[1:] == capsys.readouterr().out.splitlines()[1:]
    assert four[0].endswith(", each of 4 GPUs: 16 problems a step")


@pytest.mark.parametrize(
    ("error", "status"), [(UserError("no such file"), 2), (LostPartError("vLLM's process ended"), 1)]
)
def test_the_end_of_an_engine_is_no_fault_of_the_users(error, status, monkeypatch, capsys):
    """With --max-restarts a run goes on after the one, and not after the other."""
    monkeypatch.setattr("mathrl.commands.plan.find_recipe", lambda *args: (_ for _ in ()).throw(error))
    assert main(["plan", "quickstart", "--gpu-memory-gib", "24"]) == status
    settled = []

    class Noted:
        settle = staticmethod(lambda sentence, status, lost=(): settled.append((sentence, status)))
        end = staticmethod(lambda ending: None)

    monkeypatch.setattr(session, "_hear_signals", lambda handler: None)
    session.Session(Place(1, 2, 1, 2), Noted()).end_after(error)
    assert settled == [(str(error), status)]


def test_efficiency_is_the_share_of_own_work():
    ranks = [
        {"rollout": 3.0, "reduce": 0.5, "gather": 0.25, "agree": 0.25, "wait": 0.0},
        {"rollout": 1.0, "reduce": 0.5, "gather": 0.25, "agree": 0.25, "wait": 2.0},
    ]
    metrics = step_metrics(ranks)
    assert metrics["ranks/efficiency"] == pytest.approx(0.5)  # 4 of 8 s
    assert metrics["time/step_s"] == pytest.approx(4.0)
    assert "ranks/efficiency" not in step_metrics(ranks[:1])
