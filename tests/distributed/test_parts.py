"""What ranks do around their calls to each other, in one process: the calls are stood in for."""

import os

import pytest
import torch

from mathrl.distributed import agreement, collectives, environment, timing
from mathrl.distributed.agreement import RankError, agreed_rank, together
from mathrl.distributed.environment import Place, place, workers_a_rank
from mathrl.distributed.group import Ranks
from mathrl.errors import Stopped, UserError


def launched(rank: int, world: int, **more: int) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": str(world)} | {name: str(value) for name, value in more.items()}


def test_a_rank_reads_its_place_among_all_and_on_its_host() -> None:
    assert place({}) == place({"RANK": "3"}) == Place(0, 1, 0, 1)
    assert place(launched(5, 8, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4)) == Place(5, 8, 1, 4)
    assert place(launched(5, 8)) == Place(5, 8, 5, 8)


@pytest.mark.parametrize(
    "told",
    [
        launched(2, 2),
        launched(-1, 2),
        launched(0, 2, LOCAL_RANK=1, LOCAL_WORLD_SIZE=1),
        launched(0, 2, LOCAL_RANK=0, LOCAL_WORLD_SIZE=3),
        {"RANK": "first", "WORLD_SIZE": "2"},
    ],
)
def test_a_place_that_cannot_be_is_refused(told) -> None:
    with pytest.raises(UserError, match="torchrun"):
        place(told)


def test_a_rank_sees_its_own_gpu_alone(monkeypatch) -> None:
    for visible, seen in (("4, 6", "6"), (None, "1"), ("", "")):
        with monkeypatch.context() as inner:
            inner.setenv("CUDA_VISIBLE_DEVICES", "")  # so that it is put back, too, where it was not there
            inner.delenv("CUDA_VISIBLE_DEVICES")
            if visible is not None:
                inner.setenv("CUDA_VISIBLE_DEVICES", visible)
            environment._keep_to_own_gpu(Place(1, 2, 1, 2))
            assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(UserError, match=r"rank 1 is number 2 of 2 on its host, which shows 1 GPUs"):
        environment._keep_to_own_gpu(Place(1, 2, 1, 2))


def test_ranks_of_a_host_share_its_cores(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    for world, wanted, workers in ((1, 32, 32), (4, 8, 3), (4, 2, 2), (16, 8, 1)):
        monkeypatch.setattr(environment, "place", lambda world=world: Place(0, world, 0, world))
        assert workers_a_rank(wanted) == workers


def test_shares_put_together_are_the_whole(monkeypatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        shares.append(collectives.own_share("abcdefgh"))
    assert shares[1] == ["b", "e", "h"]
    assert collectives.interleaved(shares) == list("abcdefgh")


def test_a_gradient_that_a_rank_lacks_counts_as_zero(monkeypatch) -> None:
    monkeypatch.setattr(collectives, "current", lambda: object())
    monkeypatch.setattr(collectives, "_BUCKET", 3)
    sizes = []

    def doubled(group, tensor, op):
        sizes.append((tensor.numel(), op))
        tensor.mul_(2)

    monkeypatch.setattr(collectives, "all_reduce", doubled)
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2,), (1,), (2, 2))]
    parameters[0].grad = torch.tensor([1.0, -3.0])
    parameters[2].grad = torch.full((2, 2), 0.5)
    collectives.sum_gradients(parameters)
    assert [p.grad.tolist() for p in parameters] == [[2.0, -6.0], [0.0], [[1.0, 1.0], [1.0, 1.0]]]
    assert sizes == [(3, "SUM"), (4, "SUM")]


def test_who_comes_last_waits_for_nobody_and_the_rest_is_waiting(monkeypatch) -> None:
    group = Ranks(Place(0, 2, 0, 2), None, None)  # type: ignore[arg-type]
    group.seconds |= {"reduce": 0.5, "gather": 0.25}
    group.agreements += [1.0, 0.25]
    late = timing._Calls(0.5, 0.25, (0.125, 2.0))
    monkeypatch.setattr(timing, "current", lambda: group)
    monkeypatch.setattr(timing, "gather", lambda own: [own, ({"update": 3.0}, late)])
    ranks = timing.seconds_by_rank({"update": 4.0})
    assert [r["agree"] for r in ranks] == [0.375, 0.375]
    assert [r["wait"] for r in ranks] == [0.875, 1.75]
    metrics = timing.step_metrics(ranks)
    assert metrics["time/update_s"] == 3.5
    assert metrics["time/step_s"] == pytest.approx((4.0 + 3.0 + 2 * (0.75 + 0.375) + 0.875 + 1.75) / 2)
    assert metrics["ranks/efficiency"] == pytest.approx(3.5 / metrics["time/step_s"])
    assert "ranks/efficiency" not in timing.step_metrics([{"update": 4.0}])


def ranks_of(monkeypatch, own: int, statuses: list[int], told: list[BaseException | None]) -> None:
    """This process is rank ``own``; the others come with these statuses and errors."""
    group = Ranks(Place(own, len(told), own, len(told)), None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(agreement, "current", lambda: group)

    def all_reduce(group, flag, op, counts_as):
        assert op == "MAX"
        flag.fill_(max(int(flag), *statuses))

    monkeypatch.setattr(agreement, "all_reduce", all_reduce)
    monkeypatch.setattr(agreement, "gather", lambda mine: [*told[:own], mine, *told[own + 1 :]])


def test_the_error_of_the_lowest_rank_is_raised_on_all(monkeypatch) -> None:
    ranks_of(monkeypatch, 0, [1], [None, UserError("the disk is full"), RankError("ValueError: x")])
    with pytest.raises(UserError, match="^rank 1: the disk is full$") as raised, together("writing"):
        pass
    assert agreed_rank(raised.value) == 1


def test_a_ranks_own_error_keeps_its_kind_where_it_is_the_lowest(monkeypatch) -> None:
    ranks_of(monkeypatch, 1, [1], [None, None, RankError("ValueError: x")])
    with pytest.raises(ZeroDivisionError, match="^mine$") as raised, together("judging"):
        raise ZeroDivisionError("mine")
    assert agreed_rank(raised.value) == 1


def test_what_all_ranks_say_names_none_of_them(monkeypatch) -> None:
    ranks_of(monkeypatch, 1, [1], [UserError("no such file"), None])
    with pytest.raises(UserError, match="^no such file$"), together("loading"):
        raise UserError("no such file")


def test_whoever_is_told_to_stop_all_do_whatever_went_wrong_elsewhere(monkeypatch) -> None:
    ranks_of(monkeypatch, 0, [2 + 15], [None, None])
    with pytest.raises(Stopped) as raised, together("sampling"):
        raise ValueError("mine")
    assert raised.value.exit_status == 143


def test_without_trouble_nothing_is_raised(monkeypatch) -> None:
    ranks_of(monkeypatch, 0, [0], [None, None])
    with together("sampling"):
        pass
